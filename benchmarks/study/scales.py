"""The scales at which the experiments run: a family of recipes, and how its models are trained in a run of seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ultramem import recipes
from ultramem.accounting import count_flops
from ultramem.train.config import TrainConfig

# What a run takes besides its steps: a process, a model, kernels, validations, and its blocks' compilation, which the
# cache of an earlier run with the same shapes shortens.
START_SECONDS = 40.0


def kind(config: TrainConfig) -> str:
    """What a model's feed-forward branches or memories are."""
    return config.model.memory or ("moe" if config.model.ffn == "moe" else "dense")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One scale: a size and a regime of training.

    Fields:
        name: of the scale.
        family: prefix of the recipes' names.
        tokens: what each model learns from, unless the command says otherwise.
        learning_rates: what the sweep tries first for the trunk.
        batch_size, sequence_length: of a step.
        validation_tokens: that each validation reads.
        step_milliseconds: of a machine that many runs share, what a step of each kind of model takes as if alone,
            roughly: only to tell whether a run ends in time. On a GPU a step that is alone waits for its host longer.
    """

    name: str
    family: str
    tokens: int
    learning_rates: tuple[float, ...]
    batch_size: int
    sequence_length: int
    validation_tokens: int
    step_milliseconds: Mapping[str, float]

    def recipe(self, name: str) -> TrainConfig:
        """The family's recipe `name`, such as "dense"."""
        return recipes.get(f"{self.family}-{name}")

    def with_batch(self, batch_size: int, *, name: str, tokens: int, learning_rates: tuple[float, ...]) -> "Scale":
        """The same size in another regime; a step takes a machine's time in proportion to its batch."""
        share = batch_size / self.batch_size
        return replace(
            self,
            name=name,
            tokens=tokens,
            learning_rates=learning_rates,
            batch_size=batch_size,
            step_milliseconds={kind: share * time for kind, time in self.step_milliseconds.items()},
        )

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
            optimizer=replace(config.optimizer, warmup_steps=max(1, steps // 10)),
            evaluate_every_steps=max(1, steps // 6),
            evaluate_batches=-(-self.validation_tokens // (self.batch_size * self.sequence_length)),
        )

    def seconds(self, config: TrainConfig) -> float:
        """A run's share of a machine's time, probably; larger models in proportion to their FLOPs."""
        dense = self.recipe("dense").model
        work, common = (count_flops(model, self.sequence_length).per_token for model in (config.model, dense))
        return config.steps * self.step_milliseconds[kind(config)] / 1e3 * max(1.0, work / common)


_CPU = Scale(
    name="cpu",
    family="cpu",
    tokens=400_000,
    learning_rates=(4e-3, 8e-3, 16e-3),
    batch_size=8,
    sequence_length=256,
    validation_tokens=1 << 15,
    step_milliseconds={
        "dense": 400.0,
        "moe": 550.0,
        "pkm": 550.0,
        "memory_plus": 550.0,
        "ultramem": 550.0,
        "ultramem_v2": 700.0,
    },
)

_GPU_15M = Scale(
    name="gpu-15m",
    family="gpu-15m",
    tokens=16_000_000,
    learning_rates=(2e-3, 4e-3, 8e-3),
    batch_size=32,
    sequence_length=512,
    validation_tokens=1 << 18,
    step_milliseconds={
        "dense": 12.0,
        "moe": 22.0,
        "pkm": 17.0,
        "memory_plus": 24.0,
        "ultramem": 23.0,
        "ultramem_v2": 33.0,
    },
)

_GPU_25M = Scale(
    name="gpu-25m",
    family="gpu-25m",
    tokens=10_000_000,
    learning_rates=(1e-3, 2e-3, 4e-3),
    batch_size=64,
    sequence_length=512,
    validation_tokens=1 << 18,
    step_milliseconds={
        "dense": 31.0,
        "moe": 52.0,
        "pkm": 45.0,
        "memory_plus": 60.0,
        "ultramem": 60.0,
        "ultramem_v2": 90.0,
    },
)

_GPU_100M = Scale(
    name="gpu-100m",
    family="gpu-100m",
    tokens=20_000_000,
    learning_rates=(5e-4, 1e-3, 2e-3),
    batch_size=128,
    sequence_length=512,
    validation_tokens=1 << 18,
    step_milliseconds={
        "dense": 160.0,
        "moe": 260.0,
        "pkm": 220.0,
        "memory_plus": 280.0,
        "ultramem": 280.0,
        "ultramem_v2": 400.0,
    },
)

SCALES = {
    scale.name: scale
    for scale in (
        _CPU,
        _CPU.with_batch(8, name="cpu-long", tokens=3_276_800, learning_rates=(4e-3, 8e-3)),
        _GPU_15M,
        _GPU_15M.with_batch(16, name="gpu-15m-small-batch", tokens=32_000_000, learning_rates=(2e-3, 4e-3)),
        _GPU_25M,
        _GPU_25M.with_batch(32, name="gpu-25m-small-batch", tokens=40_000_000, learning_rates=(1e-3, 2e-3)),
        _GPU_100M,
    )
}
