"""What the page says of the ladder: each step beside the paper's, what can be told from its runs, E, r and h alone."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, pairwise
from statistics import fmean

from benchmarks.study.ladder import CHOICES, PAPER, PAPER_ALONE
from benchmarks.study.page.picture import picture
from benchmarks.study.page.tables import (
    Row,
    Section,
    anchored,
    by_name,
    change,
    difference,
    markdown_table,
    mean_of,
    short_name,
    step_time,
    with_spread,
)
from ultramem.plots import Series

TITLE = "The ladder from product keys to UltraMem"
EXPLANATION = (
    "Each rung adds a step to the one before. ± is the standard deviation of a rung's runs, with other seeds or at "
    "other commits, and the standard error of a step; two or three runs give either only roughly."
)

Rungs = dict[str, list[Row]]

LOSS = "validation_loss"
BELOW = {above[:2]: name for name, above in pairwise(PAPER)}
WHAT_RAN = (
    "The same runs in detail. Rows read, run by run, and the outputs' standard deviation are of validation at the end, "
    "the mean over a model's memories. FLOPs are relative to the first step's: the trunk stays. Times are of runs that "
    "had the machine to themselves.\n"
)


def section(rows: list[Row]) -> Section:
    """What can be told, the steps, what varies alone, the runs in detail, and the picture beside the paper's."""
    runs = {short_name(same[0]): same for same in by_name(rows).values()}
    said = [reading(runs)] if _steps(runs) else []
    text = "\n".join([*said, steps(runs), *alone(runs), WHAT_RAN, details(runs)])
    return Section(text, {"ladder.svg": plot(runs)})


def reading(runs: Rungs) -> str:
    """Which steps help, which cost, which are not told from noise; and what all of them give together."""
    changes = {name: change(runs[name], runs[lower], LOSS) for name, lower in _steps(runs)}
    told = {name: gives for name, (gives, error) in changes.items() if error is not None and abs(gives) > 2 * error}
    kinds = {
        "lower the loss": [name for name, gives in told.items() if gives < 0],
        "raise it": [name for name, gives in told.items() if gives > 0],
        "are not told from noise": [name for name in changes if name not in told],
        "have the other sign in the paper": [name for name in told if told[name] * _in_paper(name) < 0],
    }
    first, *_, last = _known(runs)
    return (
        "A step is told from noise where it is more than twice its standard error. Steps that "
        + "; ".join(f"{what}: {', '.join(names)}" for what, names in kinds.items() if names)
        + f". From {first} to {last}: {difference(runs[last], runs[first], LOSS)} here, "
        f"{PAPER[last] - PAPER[first]:+.3f} in the paper.\n"
    )


def steps(runs: Rungs) -> str:
    """Each rung with its spread, and its step with the standard error and with each seed, beside the paper's."""
    return markdown_table(
        ["step", "validation loss", "the step gives", "with each seed", "in the paper", "runs"],
        [
            [
                anchored("ladder", runs[name][0], name),
                with_spread(_losses(runs[name])),
                *_gives(runs, name),
                f"{_in_paper(name):+.3f}" if name[:2] in BELOW else "",
                str(len(runs[name])),
            ]
            for name in _known(runs)
        ],
    )


def alone(runs: Rungs) -> Iterable[str]:
    """The choices of E, r and h on the rung below, and which is best; nothing where there is only the ladder's own."""
    names = [name for name in PAPER_ALONE if name in runs and BELOW[name[:2]] in runs]
    if set(names) <= set(PAPER):
        return
    best = [
        f"{choice(min(several, key=lambda name: mean_of(runs[name], LOSS)))} here, "
        f"{choice(min(several, key=PAPER_ALONE.__getitem__)).rpartition(' ')[2]} in the paper"
        for several in ([*group] for _, group in groupby(names, key=lambda name: name[:2]))
    ]
    yield (
        "E, r and h alone, each choice on the rung below; where no spread stands, of one run. "
        f"The best: {'; '.join(best)}.\n"
    )
    yield markdown_table(
        ["alone", "recipe", "validation loss", "gives", "with each seed", "in the paper", "runs"],
        [
            [
                choice(name),
                name if name in PAPER else anchored("ladder", runs[name][0], name),
                with_spread(_losses(runs[name])),
                *_gives(runs, name),
                f"{PAPER_ALONE[name]:+.4f}".rstrip("0"),
                str(len(runs[name])),
            ]
            for name in names
        ],
    )


def choice(name: str) -> str:
    """What a recipe of the ladder chooses alone.

    Example:
        >>> choice("07-ive"), choice("07-ive-9")
        ('E = 4', 'E = 9')
    """
    step = next(step for step in CHOICES if name.startswith(step))
    symbol, papers = CHOICES[step]
    return f"{symbol} = {name.removeprefix(step).removeprefix('-') or papers}"


def details(runs: Rungs) -> str:
    """What else each recipe's runs gave, and which they are."""

    def health(row: Row, field: str) -> float:
        return fmean(unit[field] for unit in row["memory"].values())

    flops = runs[_known(runs)[0]][0]["flops_per_token"]
    return markdown_table(
        ["recipe", "FLOPs", "training loss", "bits per byte", "rows read", "outputs", "ms a step", "seed at commit"],
        [
            [
                name,
                f"{runs[name][0]['flops_per_token'] / flops:.3f}",
                with_spread([row["training_loss"] for row in runs[name]]),
                with_spread([row["bits_per_byte"] for row in runs[name]], 4),
                ", ".join(f"{health(row, 'rows_read'):.0%}" for row in runs[name]),
                f"{fmean(health(row, 'output_std') for row in runs[name]):.2f}",
                step_time(runs[name]),
                ", ".join(f"{row['seed']} at {row['commit']}" for row in runs[name]),
            ]
            for name in sorted(runs, key=[*PAPER, *PAPER_ALONE].index)
        ],
    )


def plot(runs: Rungs) -> str:
    """Both ladders against their first rungs; faintly each seed's."""
    known = _known(runs)
    start = mean_of(runs[known[0]], LOSS)

    def line(height: Callable[[str], float], names: Sequence[str] = known) -> list[tuple[float, float]]:
        return [(float(name[:2]), height(name)) for name in names]

    seeds = {row["seed"] for name in known for row in runs[name]}
    each = [
        line(
            lambda name, seed=seed: _of(seed, runs[name]) - start,
            [name for name in known if seed in _seeds(runs[name])],
        )
        for seed in sorted(seeds)
    ]
    return picture(
        [
            Series("here", line(lambda name: mean_of(runs[name], LOSS) - start), each if len(seeds) > 1 else ()),
            Series("paper, 151M", line(lambda name: PAPER[name] - PAPER[known[0]])),
        ],
        x_label="step of the ladder",
        y_label="validation loss, against the first step",
    )


def _known(runs: Rungs) -> list[str]:
    return [name for name in PAPER if name in runs]


def _steps(runs: Rungs) -> list[tuple[str, str]]:
    """The rungs that ran and whose rung below ran, with that rung."""
    return [(name, BELOW[name[:2]]) for name in _known(runs) if BELOW.get(name[:2]) in runs]


def _in_paper(name: str) -> float:
    return PAPER[name] - PAPER[BELOW[name[:2]]]


def _losses(rows: Iterable[Row]) -> list[float]:
    return [row[LOSS] for row in rows]


def _seeds(rows: Iterable[Row]) -> set[int]:
    return {row["seed"] for row in rows}


def _of(seed: int, rows: Iterable[Row]) -> float:
    return fmean(_losses(row for row in rows if row["seed"] == seed))


def _gives(runs: Rungs, name: str) -> tuple[str, str]:
    """What a recipe gives against the rung below: over all runs, and with each seed that both have."""
    lower = runs.get(BELOW.get(name[:2], ""))
    if lower is None:
        return "", ""
    seeds = sorted(_seeds(runs[name]) & _seeds(lower))
    each = ", ".join(f"{_of(seed, runs[name]) - _of(seed, lower):+.3f}" for seed in seeds)
    return difference(runs[name], lower, LOSS), each
