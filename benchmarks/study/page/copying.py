"""The page's table of the loss of new tokens at equal progress in copying: what seeds differ in is taken out."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.study.page.tables import Row, anchored, markdown_table, short_name, with_error

# Fewer would give the errors at random.
FEWEST_DEGREES_OF_FREEDOM = 4


class Adjusted(NamedTuple):
    """Losses of new tokens, as they would be if all models had the same loss of repeated ones.

    Fields:
        losses: `(models,)` of new tokens, at the mean loss of repeated ones.
        covariance: `(models, models)` of these losses.
        slope: by how much a seed's loss of new tokens is higher, for 1 of repeated tokens.
        slope_error: the standard error of that.
        repeated: the mean loss of repeated tokens.
    """

    losses: np.ndarray
    covariance: np.ndarray
    slope: float
    slope_error: float
    repeated: float

    def difference(self, model: int, other: int) -> tuple[float, float]:
        """A model's loss minus another's, and its standard error."""
        contrast = np.zeros(len(self.losses))
        contrast[model], contrast[other] = 1.0, -1.0
        return float(contrast @ self.losses), float(np.sqrt(contrast @ self.covariance @ contrast))


def adjusted(groups: Sequence[Sequence[Row]]) -> Adjusted | None:
    """Fit one slope to the seeds of all models, and a level to each: an analysis of covariance.

    Args:
        groups: the runs of each model, all with "new_loss" and "repeated_loss".

    Returns:
        None where seeds are too few, or too alike, to tell a slope.
    """
    new = np.array([run["new_loss"] for runs in groups for run in runs])
    repeated = np.array([run["repeated_loss"] for runs in groups for run in runs])
    degrees = len(new) - len(groups) - 1
    if degrees < FEWEST_DEGREES_OF_FREEDOM:
        return None
    is_of = np.repeat(np.eye(len(groups)), [len(runs) for runs in groups], axis=0)
    design = np.column_stack([is_of, repeated - repeated.mean()])
    fitted, _, rank, _ = np.linalg.lstsq(design, new)
    if rank < design.shape[1]:
        return None
    variance = ((new - design @ fitted) ** 2).sum() / degrees
    covariance = variance * np.linalg.inv(design.T @ design)
    return Adjusted(
        losses=fitted[:-1],
        covariance=covariance[:-1, :-1],
        slope=float(fitted[-1]),
        slope_error=float(np.sqrt(covariance[-1, -1])),
        repeated=float(repeated.mean()),
    )


def copying(groups: Sequence[Sequence[Row]]) -> str:
    """The models in the order of that loss, beside the dense model and UltraMem; nothing where it cannot be told."""
    if not all({"new_loss", "repeated_loss"} <= set(run) for runs in groups for run in runs):
        return ""
    fit = adjusted(groups)
    if fit is None:
        return ""
    names = [short_name(runs[0]) for runs in groups]
    beside = [other for other in ("dense", "ultramem") if other in names]

    def line(model: int) -> list[str]:
        return [
            anchored("equal_copying", groups[model][0], names[model]),
            f"{fit.losses[model]:.3f}",
            *(
                "" if names[model] == other else with_error(*fit.difference(model, names.index(other)))
                for other in beside
            ),
        ]

    table = markdown_table(
        ["model", "loss of new tokens, adjusted", *(f"beside {other}" for other in beside)],
        [line(int(model)) for model in np.argsort(fit.losses)],
    )
    return (
        "\nNew tokens at equal progress in copying. A seed that learns to copy later ends with a higher loss of new "
        f"tokens, too: by {fit.slope:.2f} ± {fit.slope_error:.2f} of what its loss of repeated tokens is higher. An "
        "analysis of covariance, with this slope for all models, moves each to the mean loss of repeated tokens, "
        f"{fit.repeated:.3f}. So it takes out what seeds differ in, and also what a model may owe to copying early; ± "
        f"is the standard error.\n\n{table}"
    )
