"""Lookup in Triton: one program pools the rows of a token for a block of columns that lie in one core."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultramem.ops.lookup import permutation
from ultramem.ops.lookup.permutation import Placement
from ultramem.ops.mixing_kernels import as_int32, mix_bits

FEW_TOKENS = 512  # fewer are too few for one program a token and 256 bytes to fill a device
# By products: a program's columns are two powers of two, the widest first; and the steps whose rows are on their way or
# used.
PIECES = ((128, 64, 2), (64, 64, 2), (64, 32, 3), (32, 32, 2))
PRODUCT_DTYPE = torch.bfloat16  # of tables: a float16's range does not hold the small terms of a weight
_LINES = tl.constexpr(16)  # of a product, at least
_NUM_ROUNDS = tl.constexpr(permutation.NUM_ROUNDS)


def seed_argument(seed: int) -> int:
    """What the seed adds to every hash of the permutation."""
    return as_int32(seed * 0x27D4EB2F)


@triton.jit
def physical_rows(slot, seed, first_row, num_rows, NUM_KEYS: tl.constexpr, EXPANSION: tl.constexpr):
    """Rows and groups of int64 logical slots: `permutation.physical_rows`, its hashes in 32-bit arithmetic."""
    if EXPANSION > 1:
        left = (slot // NUM_KEYS).to(tl.uint32)
        right = (slot % NUM_KEYS).to(tl.uint32)
        for number in tl.static_range(1, _NUM_ROUNDS + 1):
            offset = mix_bits(right * 0x85EBCA6B + (number * 0x9E3779B1) % 2**32 + seed.to(tl.uint32)) % NUM_KEYS
            total = left + offset
            left = right
            right = tl.where(total < NUM_KEYS, total, total - NUM_KEYS)
        slot = left.to(tl.int64) * NUM_KEYS + right
    row = slot // EXPANSION + first_row
    return tl.where(row < num_rows, row, row - num_rows), slot % EXPANSION


@triton.jit
def _lookup_kernel(
    table,
    slots,
    weights,
    pooled,
    seed,
    first_row,
    num_rows,
    NUM_SLOTS: tl.constexpr,
    NUM_CORES: tl.constexpr,
    NUM_KEYS: tl.constexpr,
    EXPANSION: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    READS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    CHUNK: tl.constexpr = WIDTH // NUM_CORES
    BLOCKS: tl.constexpr = (CHUNK + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0).to(tl.int64)
    token = program // (NUM_CORES * BLOCKS)
    core = program // BLOCKS % NUM_CORES
    in_chunk = program % BLOCKS * COLUMNS + tl.arange(0, COLUMNS)
    column = core * CHUNK + in_chunk

    reads = tl.arange(0, READS)
    slots += token * NUM_SLOTS
    weights += (token * NUM_CORES + core) * NUM_SLOTS
    slot = tl.load(slots + reads, mask=reads < NUM_SLOTS, other=0)
    weight = tl.load(weights + reads, mask=reads < NUM_SLOTS, other=0)
    totals = ()
    for _ in tl.static_range(GROUPS):
        totals += (tl.zeros((COLUMNS,), tl.float32),)
    for first in range(0, NUM_SLOTS, READS):
        row, group = physical_rows(slot, seed, first_row, num_rows, NUM_KEYS, EXPANSION)
        weight = weight.to(tl.float32)
        mask = (first + reads < NUM_SLOTS)[:, None] & (in_chunk < CHUNK)[None, :]
        values = tl.load(table + row[:, None] * WIDTH + column[None, :], mask=mask, other=0).to(tl.float32)
        # The next step's slots arrive with this step's rows.
        following = first + READS + reads
        slot = tl.load(slots + following, mask=following < NUM_SLOTS, other=0)
        next_weight = tl.load(weights + following, mask=following < NUM_SLOTS, other=0)
        updated = ()
        for p in tl.static_range(GROUPS):
            weight_p = tl.where(group % GROUPS == p, weight, 0)
            updated += (totals[p] + tl.sum(weight_p[:, None] * values, axis=0),)
        totals = updated
        weight = next_weight

    for p in tl.static_range(GROUPS):
        tl.store(pooled + (token * GROUPS + p) * WIDTH + column, totals[p], mask=in_chunk < CHUNK)


@triton.jit
def _product_kernel(
    table,
    slots,
    weights,
    pooled,
    seed,
    first_row,
    num_rows,
    NUM_SLOTS: tl.constexpr,
    NUM_CORES: tl.constexpr,
    NUM_KEYS: tl.constexpr,
    EXPANSION: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP_LINES: tl.constexpr,
    WIDTH: tl.constexpr,
    READS: tl.constexpr,
    COLUMNS: tl.constexpr,
    MORE_COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """`_lookup_kernel` as a product of weights and rows.

    A weight is the sum of three numbers in the table's precision, and a line of the product is one of them for one
    group: with bfloat16 all 24 bits of the weight count. A weight that is not finite, and a row that is not, makes NaN.
    """
    CHUNK: tl.constexpr = WIDTH // NUM_CORES
    PROGRAMS: tl.constexpr = (CHUNK + COLUMNS + MORE_COLUMNS - 1) // (COLUMNS + MORE_COLUMNS)
    program = tl.program_id(0).to(tl.int64)
    token = program // (NUM_CORES * PROGRAMS)
    core = program // PROGRAMS % NUM_CORES
    column = program % PROGRAMS * (COLUMNS + MORE_COLUMNS) + tl.arange(0, COLUMNS)
    more_column = program % PROGRAMS * (COLUMNS + MORE_COLUMNS) + COLUMNS + tl.arange(0, MORE_COLUMNS)
    inside = (column < CHUNK)[None, :]
    more_inside = (more_column < CHUNK)[None, :]

    line = tl.arange(0, _LINES)
    term = (line // GROUP_LINES)[:, None]
    reads = tl.arange(0, READS)
    slots += token * NUM_SLOTS
    weights += (token * NUM_CORES + core) * NUM_SLOTS
    table += core * CHUNK
    totals = tl.zeros((_LINES, COLUMNS), tl.float32)
    more_totals = tl.zeros((_LINES, MORE_COLUMNS), tl.float32)
    for first in tl.range(0, NUM_SLOTS, READS, num_stages=STAGES):
        read = first + reads < NUM_SLOTS
        slot = tl.load(slots + first + reads, mask=read, other=0)
        weight = tl.load(weights + first + reads, mask=read, other=0).to(tl.float32)
        row, group = physical_rows(slot, seed, first_row, num_rows, NUM_KEYS, EXPANSION)
        high = weight.to(table.dtype.element_ty)
        rest = weight - high.to(tl.float32)
        middle = rest.to(table.dtype.element_ty)
        low = (rest - middle.to(tl.float32)).to(table.dtype.element_ty)
        terms = tl.where(term == 0, high[None, :], tl.where(term == 1, middle[None, :], low[None, :]))
        counts = (term < 3) & ((group % GROUPS)[None, :] == (line % GROUP_LINES)[:, None])
        factors = tl.where(counts, terms, 0).to(table.dtype.element_ty)
        rows = table + row[:, None] * WIDTH
        values = tl.load(rows + column[None, :], mask=read[:, None] & inside, other=0)
        totals = tl.dot(factors, values, totals)
        more_values = tl.load(rows + more_column[None, :], mask=read[:, None] & more_inside, other=0)
        more_totals = tl.dot(factors, more_values, more_totals)

    group_line = tl.arange(0, GROUP_LINES)[:, None]
    target = pooled + (token * GROUPS + group_line) * WIDTH + core * CHUNK
    sums = tl.sum(totals.reshape(_LINES // GROUP_LINES, GROUP_LINES, COLUMNS), axis=0)
    tl.store(target + column[None, :], sums, mask=(group_line < GROUPS) & inside)
    more_sums = tl.sum(more_totals.reshape(_LINES // GROUP_LINES, GROUP_LINES, MORE_COLUMNS), axis=0)
    tl.store(target + more_column[None, :], more_sums, mask=(group_line < GROUPS) & more_inside)


def _piece(chunk: int) -> tuple[int, int, int]:
    """Columns of a program's two products, with the fewest idle ones, the wider at a tie; and stages."""

    def computed(piece: tuple[int, int, int]) -> int:
        columns = piece[0] + piece[1]
        return triton.cdiv(chunk, columns) * columns

    return min(PIECES, key=computed)


def _tile(num_tokens: int, num_groups: int, chunk: int, itemsize: int) -> tuple[int, int]:
    """Reads and columns of a step, for programs of one warp."""
    if num_tokens < FEW_TOKENS:  # narrow programs that load all their rows at once
        return 128, 64 // itemsize
    widest = (256 if num_groups <= 4 else 128) // itemsize  # as many sums a column need registers
    # The wider the pieces of a row, the nearer to the memory's speed, unless the last piece is mostly idle.
    return 32, min(widest, widest // 2, key=lambda columns: triton.cdiv(chunk, columns) * columns)


def lookup(table: Tensor, slots: Tensor, weights: Tensor, placement: Placement, num_groups: int) -> Tensor:
    """See `ultramem.ops.lookup`."""
    num_tokens, num_cores, num_slots = weights.shape
    num_rows, width = table.shape
    pooled = table.new_empty(num_tokens, num_groups, width)
    if pooled.numel() == 0:
        return pooled
    given = table.contiguous(), slots.contiguous(), weights.contiguous(), pooled
    placed = seed_argument(placement.seed), placement.first_row, num_rows
    sizes = {
        "NUM_SLOTS": num_slots,
        "NUM_CORES": num_cores,
        "NUM_KEYS": placement.num_keys,
        "EXPANSION": placement.expansion,
        "GROUPS": num_groups,
        "WIDTH": width,
    }
    # Three lines a group fit into a product's 16 up to four groups.
    if table.dtype == PRODUCT_DTYPE and num_tokens >= FEW_TOKENS and num_groups <= 4:
        columns, more_columns, stages = _piece(width // num_cores)
        _product_kernel[(num_tokens * num_cores * triton.cdiv(width // num_cores, columns + more_columns),)](
            *given,
            *placed,
            **sizes,
            GROUP_LINES=triton.next_power_of_2(num_groups),
            READS=32,
            COLUMNS=columns,
            MORE_COLUMNS=more_columns,
            STAGES=stages,
            num_warps=1,
        )
    else:
        reads, columns = _tile(num_tokens, num_groups, width // num_cores, table.element_size())
        _lookup_kernel[(num_tokens * num_cores * triton.cdiv(width // num_cores, columns),)](
            *given, *placed, **sizes, READS=reads, COLUMNS=columns, num_warps=1
        )
    return pooled
