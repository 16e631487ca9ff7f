"""What a training run is: keyword-only dataclasses whose field docstrings are the command line's help."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.optim.schedules import Constant, Cosine, Schedule, TableMultiplier, WarmupStableDecay


def _require(condition: bool, name: str, value: Any, rule: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value!r}: {rule}")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW for the trunk and for the tables, and how their learning rates move."""

    learning_rate: float = 6e-4
    """Peak learning rate of everything but the tables."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running means of the gradient and of its square."""
    epsilon: float = 1e-8
    """Added to the root of the squared gradient's mean."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; norms and biases have none."""
    table_weight_decay: float = 0.0
    """Decoupled weight decay of the memory tables."""
    lazy_tables: bool = False
    """Step only the table rows that the batch read (lazy AdamW): cheaper for large tables, not the same mathematics."""
    lazy_share: float = 1.0
    """With `lazy_tables`: the largest share of a table's rows that a batch may read and they alone be stepped; where it
    read more, as measured in every step, all rows are stepped."""
    table_optimizer_state: Literal["full", "small"] = "full"
    """What AdamW keeps of a table: `full`, two moments an element (8 bytes); `small`, a bfloat16 first moment and one
    second moment a row (2 bytes)."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradient, trunk and tables together; none: gradients are not clipped."""
    schedule: Literal["constant", "cosine", "wsd"] = "cosine"
    """Shape of the learning rate after the warm-up; `wsd` stays at the peak and falls linearly at the end."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; none: a hundredth of the run."""
    decay_steps: int | None = None
    """Steps of the fall at the end of `wsd`; none: a fifth of the run."""
    floor: float = 0.1
    """Learning rate of the last step, as a share of the peak."""
    table_multiplier_start: float = 10.0
    """The tables' learning rate at the first step, in multiples of the trunk's."""
    table_multiplier_end: float = 1.0
    """The same at the end of the horizon, and after it."""
    table_horizon_steps: int | None = None
    """Steps over which the multiple falls from start to end; none: the whole run."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon", "clip_norm"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"optimizer.{name}", value, "it must be above 0")
        for name in ("weight_decay", "table_weight_decay", "table_multiplier_start", "table_multiplier_end"):
            _require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "it cannot be negative")
        _require(all(0 <= beta < 1 for beta in self.betas), "optimizer.betas", self.betas, "both must be in [0, 1)")
        for name in ("warmup_steps", "decay_steps", "table_horizon_steps"):
            steps = getattr(self, name)
            _require(steps is None or steps >= 0, f"optimizer.{name}", steps, "it cannot be negative")
        _require(0 <= self.lazy_share <= 1, "optimizer.lazy_share", self.lazy_share, "it is a share, from 0 to 1")
        alone = "it says when lazy tables are stepped densely: set optimizer.lazy_tables too"
        _require(self.lazy_share == 1 or self.lazy_tables, "optimizer.lazy_share", self.lazy_share, alone)
        _require(0 <= self.floor <= 1, "optimizer.floor", self.floor, "it is a share of the peak, from 0 to 1")
        states, state = ("full", "small"), self.table_optimizer_state
        _require(state in states, "optimizer.table_optimizer_state", state, f"choose from {', '.join(states)}")
        schedules = ("constant", "cosine", "wsd")
        _require(self.schedule in schedules, "optimizer.schedule", self.schedule, f"choose from {', '.join(schedules)}")

    def learning_rate_schedule(self, steps: int) -> Schedule:
        """Return the multiplier of the learning rate at each step of a run of ``steps`` steps."""
        warmup_steps = steps // 100 if self.warmup_steps is None else self.warmup_steps
        if self.schedule == "constant":
            return Constant(warmup_steps=warmup_steps)
        if self.schedule == "cosine":
            return Cosine(total_steps=steps, warmup_steps=warmup_steps, floor=self.floor)
        decay_steps = steps // 5 if self.decay_steps is None else self.decay_steps
        return WarmupStableDecay(
            total_steps=steps, warmup_steps=warmup_steps, decay_steps=decay_steps, floor=self.floor
        )

    def table_multiplier(self, steps: int) -> Schedule:
        """Return the tables' further multiplier at each step of a run of ``steps`` steps."""
        horizon_steps = steps if self.table_horizon_steps is None else self.table_horizon_steps
        return TableMultiplier(
            horizon_steps=horizon_steps, start=self.table_multiplier_start, end=self.table_multiplier_end
        )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """What each of several processes holds; a single one holds all."""

    tables: Literal["auto", "rows", "columns", "replicate"] = "auto"
    """How memory tables are divided among processes; `replicate`: each has them whole; `auto`: so that sending
    takes the least time, and whole only where they are small."""
    table_shards: int | None = None
    """Processes among which a table is divided; none: all."""
    trunk: Literal["shard", "replicate"] = "shard"
    """Whether all but the tables is divided among processes (FSDP2), or each has it whole."""
    trunk_shards: int | None = None
    """Processes among which the trunk is divided; none: all."""

    def __post_init__(self) -> None:
        for name, choices in (("tables", ("auto", "rows", "columns", "replicate")), ("trunk", ("shard", "replicate"))):
            value = getattr(self, name)
            _require(value in choices, f"parallel.{name}", value, f"choose from {', '.join(choices)}")
        for name in ("table_shards", "trunk_shards"):
            shards = getattr(self, name)
            _require(shards is None or shards >= 1, f"parallel.{name}", shards, "it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, complete but for where the data lies and where the run goes."""

    name: str
    """Name of the run, for people."""
    model: UltraMemConfig
    """The model; its vocabulary is replaced by the data's."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizers and learning rates."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """What each of several processes holds."""
    steps: int
    """Optimizer steps of the whole run."""
    batch_size: int
    """Sequences a step."""
    micro_batch_size: int | None = None
    """Sequences that go through the model of a process at once, gradients adding up to the step's; none: all."""
    sequence_length: int
    """Tokens a sequence."""
    seed: int = 0
    """Of initial weights, of dropout and of the order of the data."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass; `bf16` is autocast, weights and optimizer stay in 32 bits."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    compile: bool = False
    """Run blocks and loss, forward and backward, through `torch.compile`: faster steps after a slow first one."""
    evaluate_every_steps: int = 250
    """Steps between two validations; the last step is always validated."""
    evaluate_batches: int = 16
    """Batches of the validation split that a validation reads, always the same ones."""
    checkpoint_every_steps: int = 500
    """Steps between two checkpoints; the last step always has one."""
    keep_checkpoints: int = 2
    """How many checkpoints stay; the oldest go first."""
    checkpoint_in_background: bool = False
    """Copy what a checkpoint holds into memory and write it while training goes on: no waiting for the disk, and the
    memory for one more copy of weights and optimizers. A kill may cost two intervals instead of one: the one under way,
    and the one before if its checkpoint is still being written; the next checkpoint waits for it."""
    skip_damaged_checkpoints: bool = False
    """Where the last checkpoint is damaged, set it aside and go on from the one before; otherwise that is an error."""
    collective_timeout_seconds: float = 600.0
    """With several processes: how long one waits for another before all of them stop; while a checkpoint is written,
    half an hour."""
    log_every_steps: int = 10
    """Steps between two lines of metrics.jsonl."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too."""

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "sequence_length", "evaluate_every_steps", "evaluate_batches")
        for name in (*counts, "checkpoint_every_steps", "keep_checkpoints", "log_every_steps"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "it must be at least 1")
        timeout = self.collective_timeout_seconds
        _require(timeout > 0, "collective_timeout_seconds", timeout, "it must be above 0")
        micro = self.micro_batch_size
        _require(
            micro is None or 1 <= micro <= self.batch_size,
            "micro_batch_size",
            micro,
            f"from 1 to batch_size, which is {self.batch_size}",
        )
        _require(self.seed >= 0, "seed", self.seed, "it cannot be negative")
        _require(self.precision in ("fp32", "bf16"), "precision", self.precision, "choose fp32 or bf16")
        positions = self.model.max_position_embeddings
        _require(
            self.sequence_length <= positions,
            "sequence_length",
            self.sequence_length,
            f"the model takes max_position_embeddings = {positions}",
        )
        warmup_steps = self.optimizer.warmup_steps or 0
        _require(
            warmup_steps <= self.steps,
            "optimizer.warmup_steps",
            warmup_steps,
            f"the run has only {self.steps} steps; lower it too",
        )
        schedule = self.optimizer.learning_rate_schedule(self.steps)
        if isinstance(schedule, WarmupStableDecay):
            _require(
                schedule.warmup_steps + schedule.decay_steps <= self.steps,
                "optimizer.decay_steps",
                schedule.decay_steps,
                f"a warm-up of {schedule.warmup_steps} leaves {self.steps - schedule.warmup_steps} of the run's steps",
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step learns from."""
        return self.batch_size * self.sequence_length
