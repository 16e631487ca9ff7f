"""What each of a run's processes holds, and what it sends in a step: from the run's configuration alone.

The bytes of a read are those of `ultramem.distributed.communication`; here they are added up over layers and passes.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal

from ultramem.accounting import TRAINING_BYTES
from ultramem.distributed.communication import (
    NUMBER_BYTES,
    Links,
    Read,
    Traffic,
    expected_distinct,
    ring_all_reduce,
    sent_by_columns,
    sent_by_replicas,
    sent_by_rows,
    sent_by_trunk,
)
from ultramem.distributed.sharded_table import shard_sizes
from ultramem.layers.tables import placement
from ultramem.models.sharing import table_rows
from ultramem.train.config import TrainConfig
from ultramem.train.trunk_shards import TrunkShard, trunk_shard

TableStyle = Literal["rows", "columns", "replicate"]

REPLICA_BYTES = 2**30
"""Tables that take no more than this in training, whole, may be replicated without a word of the user."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one process of a run holds and sends."""

    tables: TableStyle
    """How tables are divided."""
    table_shards: int
    """Among how many processes."""
    trunk_shards: int
    """Among how many processes all the rest is divided."""
    trunk_bytes: int
    """Weights, gradients and AdamW's moments of the process's part of the trunk, as of a process that needs no padding;
    where the trunk does not divide evenly, others hold fewer gradients and moments."""
    table_bytes: int
    """The same of the tables; where they do not divide evenly, the last process holds less."""
    trunk_traffic: list[Traffic]
    """Sent in a step for the trunk: parameters and gradients."""
    table_traffic: list[Traffic]
    """Sent in a step for the tables: reads, and gradients of replicas. Rows are taken to be all as likely."""

    def seconds(self, links: Links) -> float:
        """Time of all that is sent in a step, one after the other."""
        return sum(map(links.seconds, self.trunk_traffic + self.table_traffic))


def share_of(config: TrainConfig, num_processes: int) -> Share:
    """Work out what each process of a run holds and sends.

    Args:
        config: the run.
        num_processes: all of them.

    Raises:
        ValueError: the processes do not divide the batch, or do not divide into such groups.

    Example:
        >>> from ultramem import recipes
        >>> share = share_of(recipes.get("ultramem-1.6b-x12"), num_processes=64)
        >>> share.tables, round(share.table_bytes / 2**30, 2)
        ('columns', 4.58)
    """
    style = choose_tables(config, num_processes)
    table_shards, trunk_shards = _shards(config, num_processes, style)
    trunk = trunk_shard(config.model, trunk_shards)
    return Share(
        tables=style,
        table_shards=table_shards,
        trunk_shards=trunk_shards,
        trunk_bytes=TRAINING_BYTES * sum(trunk),
        table_bytes=_table_bytes(config, style, table_shards),
        trunk_traffic=_trunk_traffic(config, num_processes, trunk, trunk_shards),
        table_traffic=_table_traffic(config, num_processes, style, table_shards) if config.model.memory_units else [],
    )


def choose_tables(config: TrainConfig, num_processes: int) -> TableStyle:
    """Divide tables as told or, with "auto", so that what is sent for them takes the least time by `Links`.

    Then tables of more than `REPLICA_BYTES` are not replicated; rows and columns must be enough for all.

    Example:
        >>> from ultramem import recipes
        >>> choose_tables(recipes.get("cpu-ultramem"), num_processes=2)
        'columns'
    """
    if config.parallel.tables != "auto":
        return config.parallel.tables
    if num_processes == 1 or not config.model.memory_units:
        return "replicate"
    shards = config.parallel.table_shards or num_processes

    def seconds(style: TableStyle) -> float:
        table_shards, _ = _shards(config, num_processes, style)
        return sum(map(Links().seconds, _table_traffic(config, num_processes, style, table_shards)))

    return min(_possible(config, shards), key=seconds)


def _possible(config: TrainConfig, shards: int) -> list[TableStyle]:
    styles: list[TableStyle] = ["columns", "rows"]
    found = [style for style in styles if _enough(config, style, shards)] or ["rows"]
    return ["replicate", *found] if _table_bytes(config, "replicate", 1) <= REPLICA_BYTES else found


def _enough(config: TrainConfig, style: TableStyle, shards: int) -> bool:
    """Whether every process of the table axis gets some rows or columns."""
    lengths = _widths(config.model) if style == "columns" else table_rows(config.model)
    return all(shard_sizes(length, shards)[-1] for length in lengths)


def _shards(config: TrainConfig, num_processes: int, style: TableStyle) -> tuple[int, int]:
    """Among how many processes tables and trunk are divided."""
    layout = config.parallel
    table_shards = 1 if style == "replicate" else layout.table_shards or num_processes
    trunk_shards = 1 if layout.trunk == "replicate" else layout.trunk_shards or num_processes
    for name, shards in (("table_shards", table_shards), ("trunk_shards", trunk_shards)):
        if num_processes % shards:
            raise ValueError(
                f"parallel.{name} is {shards}: it must divide the number of processes, which is {num_processes}"
            )
    if config.model.memory_units and not _enough(config, style, table_shards):
        raise ValueError(
            f"parallel.table_shards is {table_shards}: tables of {config.model.memory_value_size} columns and "
            f"{min(table_rows(config.model))} rows cannot be divided by {style} among so many; give fewer"
        )
    if config.batch_size % num_processes:
        raise ValueError(f"batch_size is {config.batch_size}: it must be a multiple of {num_processes} processes")
    return table_shards, trunk_shards


def _table_bytes(config: TrainConfig, style: TableStyle, num_shards: int) -> int:
    """Weights, gradients (lazy tables have fewer, at times) and what the optimizer keeps, of the first part of each."""
    if not config.model.memory_units:
        return 0
    rows, columns = (num_shards, 1) if style == "rows" else (1, num_shards)
    heights = sum(-(-num_rows // rows) for num_rows in table_rows(config.model))
    widths = sum(-(-width // columns) for width in _widths(config.model))
    state_bytes = {"full": 8, "small": 2}[config.optimizer.table_optimizer_state]
    return (2 * NUMBER_BYTES + state_bytes) * heights * widths


def _micro_batches(config: TrainConfig, num_processes: int) -> Counter[int]:
    """How many micro-batches of how many sequences a process has in a step."""
    sequences = config.batch_size // num_processes
    size = min(config.micro_batch_size or sequences, sequences)
    return Counter({size: sequences // size}) + Counter({sequences % size: 1} if sequences % size else {})


def _trunk_traffic(config: TrainConfig, num_processes: int, shard: TrunkShard, num_shards: int) -> list[Traffic]:
    passes = sent_by_trunk(blocks=shard.blocks * num_shards, rest=shard.rest * num_shards, num_shards=num_shards)
    gathered = (passes.forward + passes.backward) * _micro_batches(config, num_processes).total()
    num_replicas = num_processes // num_shards
    return [
        Traffic(gathered, num_shards),
        Traffic(ring_all_reduce(NUMBER_BYTES * sum(shard), num_replicas), num_replicas, num_shards),
    ]


def _table_traffic(config: TrainConfig, num_processes: int, style: TableStyle, num_shards: int) -> list[Traffic]:
    model: Any = config.model
    exchanged = 0.0
    for sequences, times in _micro_batches(config, num_processes).items():
        for read in unit_reads(model, sequences * config.sequence_length):
            if num_shards > 1:
                sent = (sent_by_columns if style == "columns" else sent_by_rows)(read, num_shards)
                again = sent.again if config.activation_checkpointing else 0
                exchanged += times * len(model.memory_units) * (sent.forward + sent.backward + again)
    return [Traffic(exchanged, num_shards), _replica_traffic(config, num_processes, style, num_shards)]


def _replica_traffic(config: TrainConfig, num_processes: int, style: TableStyle, num_shards: int) -> Traffic:
    """A step's gradients of parts that several processes hold; units that read one table add up."""
    model: Any = config.model
    num_replicas = num_processes // num_shards
    tokens = num_shards * config.tokens_per_step // num_processes
    sizes = table_rows(model)
    reads_a_table = tokens * model.memory_num_heads * model.memory_top_k * len(model.memory_units) // len(sizes)
    sent = 0.0
    for num_rows in sizes if num_replicas > 1 else ():
        touched = expected_distinct(reads_a_table, num_rows)
        for width in _widths(model):
            by_rows = style == "rows"
            sent += sent_by_replicas(
                touched / num_shards if by_rows else touched,
                -(-num_rows // num_shards) if by_rows else num_rows,
                width if by_rows else -(-width // num_shards),
                num_replicas,
                sparse=config.optimizer.lazy_tables,
            )
    return Traffic(sent, num_replicas, num_shards)


def _widths(model: Any) -> list[int]:
    """Widths of a unit's tables: of what gates values, and of the values."""
    return [read.width for read in unit_reads(model, num_tokens=1)]


def unit_reads(model: Any, num_tokens: int) -> list[Read]:
    """What a memory unit reads in a forward pass: values, and before them what gates them."""
    placed = placement(model.memory_num_keys, expansion=model.memory_expansion, window=model.memory_window)
    separate_groups = model.memory != "ultramem_v2"
    values = Read(
        num_tokens=num_tokens,
        num_slots=model.memory_num_heads * model.memory_top_k,
        num_rows=placed.num_keys**2 // model.memory_expansion,
        width=model.memory_value_size,
        num_cores=model.memory_num_cores if model.memory in ("ultramem", "ultramem_v2") else 1,
        num_pooled=model.memory_expansion if separate_groups else 1,
        index_bytes=4 if placed.num_keys**2 < 2**31 else 8,
    )
    gates = {"ultramem_v2": model.memory_pre_value_size, "peer": model.memory_value_size}
    if model.memory not in gates:
        return [values]
    return [replace(values, width=gates[model.memory], num_pooled=None), values]
