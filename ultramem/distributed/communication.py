"""Bytes that a process sends for a table, by how tables are divided, and how long they take: docs/parallelism.md.

Every function says what the collectives of `columns`, `rows`, `replica_gradients` and FSDP2 send from one process to
others, as rings send it: what a process keeps for itself is no traffic. Numbers are float32, as tables are in training.
A test counts the collectives' bytes and holds the functions to them.

Symbols: P processes of an axis, N tokens of each in one forward pass, K slots a token over all heads, h cores.
"""

from dataclasses import dataclass
from typing import NamedTuple

from ultramem.distributed.columns import slice_cores
from ultramem.distributed.replica_gradients import rows_are_cheaper
from ultramem.distributed.sharded_table import shard_sizes

NUMBER_BYTES = 4


class Passes(NamedTuple):
    """Bytes that a process sends for one read of a table."""

    forward: float
    backward: float
    again: float = 0
    """Sent once more where activations are computed again in the backward pass."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a process reads of a table in one forward pass of one layer."""

    num_tokens: int
    num_slots: int
    """K, a token reads as many rows."""
    num_rows: int
    """Rows that the slots may lie on: the layer's window of the table."""
    width: int
    """Numbers a row."""
    num_cores: int = 1
    num_pooled: int | None = 1
    """Sums of rows a token, one for each group that stays apart; None: rows are multiplied with the token's input."""
    index_bytes: int = 4

    def distinct_rows(self, num_processes: int = 1) -> float:
        """Different rows that several processes are expected to read together, were all rows as likely as others.

        Example:
            >>> round(Read(num_tokens=10, num_slots=10, num_rows=100, width=8).distinct_rows(), 1)
            63.4
        """
        return expected_distinct(num_processes * self.num_tokens * self.num_slots, self.num_rows)


def expected_distinct(num_reads: int, num_rows: int) -> float:
    """Different rows among reads of rows that are all as likely."""
    return num_rows * (1 - (1 - 1 / num_rows) ** num_reads)


def sent_by_columns(read: Read, num_shards: int, shard: int = 0) -> Passes:
    """A read of a table by columns: slots to all, weights to whom they concern, slices of sums to their tokens.

    Args:
        read: of every process alike.
        num_shards: P.
        shard: which process of the axis; the last may have fewer columns.

    Example:
        >>> sent_by_columns(Read(num_tokens=10, num_slots=8, num_rows=100, width=32), num_shards=2)
        Passes(forward=1280, backward=960, again=640)
    """
    sizes, others = shard_sizes(read.width, num_shards), num_shards - 1
    mine, theirs = sizes[shard], read.width - sizes[shard]
    slots = read.num_tokens * read.num_slots
    gathered = slots * read.index_bytes * others
    if read.num_pooled is None:
        inputs = read.num_tokens * NUMBER_BYTES
        products = slots * NUMBER_BYTES * others
        forward = gathered + inputs * theirs + products
        return Passes(forward, products + inputs * mine * others, forward)
    starts = [sum(sizes[:before]) for before in range(num_shards)]
    cores = [
        len(slice_cores(start, size, read.width, read.num_cores).cores)
        for start, size in zip(starts, sizes, strict=True)
    ]
    sums = read.num_tokens * read.num_pooled * NUMBER_BYTES
    weights = slots * NUMBER_BYTES
    asked = gathered + weights * (sum(cores) - cores[shard])
    return Passes(asked + sums * mine * others, sums * theirs + weights * cores[shard] * others, asked)


def sent_by_rows(read: Read, num_shards: int) -> Passes:
    """A read of a table by rows, in the way that sends less."""
    return (sent_by_pooled_rows if pools_at_owners(read, num_shards) else sent_by_fetched_rows)(read, num_shards)


def pools_at_owners(read: Read, num_shards: int) -> bool:
    """Whether sums of rows are expected to be fewer bytes than the rows: the rule by which `rows` chooses.

    All rows are taken to be as likely. Sums win where a token finds several rows at one process, rows where there are
    many processes or where tokens share rows.

    Example:
        >>> read = Read(num_tokens=16384, num_slots=84, num_rows=3_240_000, width=1024, num_cores=2, num_pooled=4)
        >>> [pools_at_owners(read, num_shards) for num_shards in (8, 16, 64)]
        [True, True, False]
    """
    sums, rows = sent_by_pooled_rows(read, num_shards), sent_by_fetched_rows(read, num_shards)
    return sums.forward + sums.backward < rows.forward + rows.backward


def sent_by_fetched_rows(read: Read, num_shards: int, fetched: float | None = None) -> Passes:
    """Numbers of rows to their owners, rows back, and their gradients to the owners.

    Args:
        read: of every process alike.
        num_shards: P.
        fetched: different rows that a process reads and others own; as many as are expected if not given.

    Example:
        >>> sent_by_fetched_rows(Read(num_tokens=10, num_slots=8, num_rows=100, width=32), num_shards=2, fetched=25)
        Passes(forward=3308, backward=3200, again=3308)
    """
    if fetched is None:
        fetched = read.distinct_rows() * (num_shards - 1) / num_shards
    counts = 8 * (num_shards - 1)
    rows = fetched * read.width * NUMBER_BYTES
    forward = counts + fetched * read.index_bytes + rows
    return Passes(forward, rows, forward)


def sent_by_pooled_rows(read: Read, num_shards: int, reads: float | None = None, bags: float | None = None) -> Passes:
    """Numbers of rows and scores to the owners, sums back; the sums' gradients to the owners, the scores' back.

    Args:
        read: of every process alike. Where rows are multiplied with the token's input, that goes to the owners, and
            products come back.
        num_shards: P.
        reads: of a process, of rows that others own; as many as are expected if not given.
        bags: how many sums these make, one a token, group and owner; as many as are expected if not given.

    Example:
        >>> read = Read(num_tokens=10, num_slots=8, num_rows=100, width=32)
        >>> sent_by_pooled_rows(read, num_shards=2, reads=40, bags=10)
        Passes(forward=1656, backward=1440, again=376)
    """
    of_others = (num_shards - 1) / num_shards
    if reads is None:
        reads = read.num_tokens * read.num_slots * of_others
    if bags is None:
        bags = read.num_tokens * expected_distinct(read.num_slots, num_shards * (read.num_pooled or 1)) * of_others
    asked = 16 * (num_shards - 1) + (reads + bags) * read.index_bytes
    vectors = bags * read.width * NUMBER_BYTES  # sums, or inputs
    if read.num_pooled is None:
        products = reads * NUMBER_BYTES
        return Passes(asked + vectors + products, products + vectors, asked + vectors + products)
    scores = reads * read.num_cores * NUMBER_BYTES
    return Passes(asked + scores + vectors, vectors + scores, asked + scores)


def sent_by_replicas(touched: float, num_rows: int, width: int, num_replicas: int, *, sparse: bool) -> float:
    """A step's gradient of a table, or of the part of it that several processes hold.

    Args:
        touched: rows of it that the process touched in the step: of all replicas the most.
        num_rows: of the part.
        width: of the part.
        num_replicas: how many processes hold it.
        sparse: the optimizer wants touched rows only (``lazy_tables``).

    Example:
        >>> sent_by_replicas(touched=10, num_rows=1000, width=64, num_replicas=8, sparse=False)
        18494.0
    """
    others, row_bytes = num_replicas - 1, width * NUMBER_BYTES
    how_many = ring_all_reduce(8, num_replicas)
    if rows_are_cheaper(round(touched), num_rows, row_bytes, num_replicas):
        return how_many + others * touched * (row_bytes + 8)
    mask = ring_all_reduce(num_rows, num_replicas) if sparse else 0
    return how_many + ring_all_reduce(num_rows * row_bytes, num_replicas) + mask


def ring_all_reduce(num_bytes: float, num_processes: int) -> float:
    """What a process sends to sum a tensor over all: a share of it to gather sums, and one to give them out."""
    return 2 * num_bytes * (num_processes - 1) / num_processes


def sent_by_trunk(blocks: int, rest: int, num_shards: int) -> Passes:
    """A forward and a backward pass of an FSDP2 trunk: parameters gathered, gradients summed to their owners.

    Args:
        blocks: parameters that are gathered for each of both passes: those of blocks and memory layers.
        rest: parameters that stay gathered in between.
        num_shards: processes among which they are divided.

    Example:
        >>> sent_by_trunk(blocks=100, rest=20, num_shards=4)
        Passes(forward=360.0, backward=660.0, again=0)
    """
    share = NUMBER_BYTES * (num_shards - 1) / num_shards
    return Passes(share * (blocks + rest), share * (2 * blocks + rest))


class Traffic(NamedTuple):
    """Bytes that a process sends to the others of an axis, as many to each."""

    num_bytes: float
    size: int
    """Processes of the axis."""
    stride: int = 1
    """Distance of neighbours in the count of all processes: 1 on a shard axis, its size on the replicate axis."""


@dataclass(frozen=True, kw_only=True)
class Links:
    """How fast a GPU sends, in bytes a second; the defaults are an H100's: NVLink 4 and 400 Gb/s of network a GPU."""

    gpus_per_node: int = 8
    node_bandwidth: float = 450e9
    """To the other GPUs of its node, together."""
    network_bandwidth: float = 50e9
    """To other nodes."""

    def __post_init__(self) -> None:
        for name in ("gpus_per_node", "node_bandwidth", "network_bandwidth"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")

    def seconds(self, traffic: Traffic) -> float:
        """Time of the slower link, both busy at once; latency and what others send on the same wires left out.

        Example:
            >>> Links().seconds(Traffic(450e9, size=8)), Links().seconds(Traffic(63e9, size=64))
            (1.0, 1.12)
        """
        if traffic.size == 1:
            return 0.0
        near = max(1, min(traffic.size, self.gpus_per_node // traffic.stride)) - 1
        inside = traffic.num_bytes * near / (traffic.size - 1)
        return max(inside / self.node_bandwidth, (traffic.num_bytes - inside) / self.network_bandwidth)
