"""The sizes at which the experiments run: a family of recipes, and how its models are trained in a run of seconds."""

from dataclasses import dataclass, replace

from ultramem import recipes
from ultramem.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One size.

    Fields:
        family: prefix of the recipes' names.
        tokens: what each model learns from, unless the command says otherwise.
        learning_rates: what the sweep tries for the trunk.
        batch_size, sequence_length: of a step.
        validation_tokens: that each validation reads.
    """

    family: str
    tokens: int
    learning_rates: tuple[float, ...]
    batch_size: int
    sequence_length: int
    validation_tokens: int

    def recipe(self, name: str) -> TrainConfig:
        """The family's recipe `name`, such as "dense"."""
        return recipes.get(f"{self.family}-{name}")

    def fit(self, config: TrainConfig, tokens: int, *, name: str | None = None, seed: int = 0) -> TrainConfig:
        """Make a run of this size of a recipe: so many tokens, a tenth of them warm-up, six validations."""
        steps = max(1, tokens // (self.batch_size * self.sequence_length))
        return replace(
            config,
            name=name or config.name,
            seed=seed,
            steps=steps,
            batch_size=self.batch_size,
            micro_batch_size=None,
            sequence_length=self.sequence_length,
            # Compiling takes longer than a run.
            compile=False,
            optimizer=replace(config.optimizer, warmup_steps=max(1, steps // 10)),
            evaluate_every_steps=max(1, steps // 6),
            evaluate_batches=-(-self.validation_tokens // (self.batch_size * self.sequence_length)),
        )


SCALES = {
    "cpu": Scale(
        family="cpu",
        tokens=400_000,
        learning_rates=(4e-3, 8e-3, 16e-3),
        batch_size=8,
        sequence_length=256,
        validation_tokens=1 << 15,
    ),
    "gpu-25m": Scale(
        family="gpu-25m",
        tokens=10_000_000,
        learning_rates=(1e-3, 2e-3, 4e-3),
        batch_size=64,
        sequence_length=512,
        validation_tokens=1 << 18,
    ),
    "gpu-100m": Scale(
        family="gpu-100m",
        tokens=20_000_000,
        learning_rates=(5e-4, 1e-3, 2e-3),
        batch_size=128,
        sequence_length=512,
        validation_tokens=1 << 18,
    ),
}
