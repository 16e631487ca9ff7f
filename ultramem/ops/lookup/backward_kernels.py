"""Backward of lookup in Triton: reads sorted by table row, so that a row is summed where it lies, without atomics.

The sorted reads fall into tiles of fixed length. A program walks the segments (the reads of one row) of its tile: it
loads the row once, adds up the row's gradient and gives every read the gradient of its weight. Segments that cross a
tile's border leave partial sums, which a second kernel adds in the order of the tiles: the same bits on every run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultramem.ops.lookup.kernels import physical_slot, seed_argument

READS_A_TILE = 128
READS_A_LOAD = 4
TILES_A_LOAD = 16


@triton.jit
def _place_kernel(
    slots, physical, seed, num_reads, NUM_KEYS: tl.constexpr, EXPANSION: tl.constexpr, BLOCK: tl.constexpr
):
    read = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(slots + read, mask=read < num_reads, other=0)
    tl.store(physical + read, physical_slot(slot, seed, NUM_KEYS, EXPANSION), mask=read < num_reads)


def sort_reads(slots: Tensor, num_keys: int, expansion: int, seed: int) -> tuple[Tensor, Tensor]:
    """``row * E + group`` of all reads, ascending, and which read each of them is; both ``(N * K,)``."""
    dtype = torch.int32 if num_keys**2 < 2**31 else torch.int64
    physical = torch.empty(slots.numel(), dtype=dtype, device=slots.device)
    grid = (triton.cdiv(slots.numel(), 1024),)
    _place_kernel[grid](
        slots.contiguous(),
        physical,
        seed_argument(seed),
        slots.numel(),
        NUM_KEYS=num_keys,
        EXPANSION=expansion,
        BLOCK=1024,
    )
    return physical.sort(stable=True)


@triton.jit
def _row_at(physical, position, num_reads, EXPANSION: tl.constexpr):
    """The table row of sorted reads; -1 where there is none."""
    inside = (position >= 0) & (position < num_reads)
    return tl.load(physical + position, mask=inside, other=-EXPANSION) // EXPANSION


@triton.jit
def _segments_kernel(
    grad_pooled,
    table,
    weights,
    physical,
    order,
    targets,
    touched,
    grad_rows,
    grad_weights,
    partials,
    num_reads,
    NUM_SLOTS: tl.constexpr,
    NUM_CORES: tl.constexpr,
    EXPANSION: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPACT: tl.constexpr,
    TILE: tl.constexpr,
    READS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    CHUNK: tl.constexpr = WIDTH // NUM_CORES
    # All tiles of one core, then all of the next: a core's part of grad_pooled is what stays in the L2 cache.
    num_tiles = tl.cdiv(num_reads, TILE)
    tile = (tl.program_id(0) % num_tiles).to(tl.int64)
    core = tl.program_id(0) // num_tiles
    in_chunk = tl.arange(0, COLUMNS) < CHUNK
    column = core * CHUNK + tl.arange(0, COLUMNS)

    first = tile * TILE
    length = tl.minimum(num_reads - first, TILE).to(tl.int32)
    position = tl.arange(0, TILE)
    rows = _row_at(physical, first + position, num_reads, EXPANSION)
    row_before = _row_at(physical, first - 1, num_reads, EXPANSION)
    row_after = _row_at(physical, first + length, num_reads, EXPANSION)

    start = tl.full((), 0, tl.int32)
    while start < length:
        row = _row_at(physical, first + start, num_reads, EXPANSION)
        end = tl.min(tl.where((position > start) & (rows != row), position, length))
        values = tl.load(table + row.to(tl.int64) * WIDTH + column, mask=in_chunk, other=0).to(tl.float32)
        total = tl.zeros((COLUMNS,), tl.float32)
        for some in range(start, end, READS):
            live = some + tl.arange(0, READS) < end
            sorted_read = first + some + tl.arange(0, READS)
            read = tl.load(order + sorted_read, mask=live, other=0)
            group = tl.load(physical + sorted_read, mask=live, other=0) % EXPANSION
            token = read // NUM_SLOTS
            weight_index = (token * NUM_CORES + core) * NUM_SLOTS + read % NUM_SLOTS
            weight = tl.load(weights + weight_index, mask=live, other=0).to(tl.float32)
            gradients = tl.load(
                grad_pooled + (token * EXPANSION + group)[:, None] * WIDTH + column[None, :],
                mask=live[:, None] & in_chunk[None, :],
                other=0,
            ).to(tl.float32)
            total += tl.sum(weight[:, None] * gradients, axis=0)
            tl.store(grad_weights + weight_index, tl.sum(values[None, :] * gradients, axis=1), mask=live)

        begins_here = (start > 0) | (row_before != row)
        ends_here = (end < length) | (row_after != row)
        if COMPACT:
            target = tl.load(targets + first + start)
        else:
            target = row.to(tl.int64)
            tl.store(touched + row, True)
        if begins_here & ends_here:
            tl.store(grad_rows + target * WIDTH + column, total, mask=in_chunk)
        else:
            side = tile * 2 + begins_here.to(tl.int64)
            tl.store(partials + side * WIDTH + column, total, mask=in_chunk)
        start = end


@triton.jit
def _merge_kernel(
    physical,
    targets,
    grad_rows,
    partials,
    num_reads,
    NUM_CORES: tl.constexpr,
    EXPANSION: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPACT: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    CHUNK: tl.constexpr = WIDTH // NUM_CORES
    tile = (tl.program_id(0) // NUM_CORES).to(tl.int64)
    in_chunk = tl.arange(0, COLUMNS) < CHUNK
    column = tl.program_id(0) % NUM_CORES * CHUNK + tl.arange(0, COLUMNS)

    first = tile * TILE
    last = tl.minimum(first + TILE, num_reads) - 1
    row = _row_at(physical, last, num_reads, EXPANSION)
    head_row = _row_at(physical, first, num_reads, EXPANSION)
    row_before = _row_at(physical, first - 1, num_reads, EXPANSION)
    row_after = _row_at(physical, last + 1, num_reads, EXPANSION)
    if (row_after == row) & ((head_row != row) | (row_before != row)):
        total = tl.load(partials + (tile * 2 + 1) * WIDTH + column, mask=in_chunk, other=0)
        following = tile + 1
        while _row_at(physical, following * TILE, num_reads, EXPANSION) == row:
            tiles = following + tl.arange(0, TILES)
            same = _row_at(physical, tiles * TILE, num_reads, EXPANSION) == row
            heads = partials + tiles[:, None] * 2 * WIDTH + column[None, :]
            total += tl.sum(tl.load(heads, mask=same[:, None] & in_chunk[None, :], other=0), axis=0)
            following += TILES
        target = tl.load(targets + last) if COMPACT else row.to(tl.int64)
        tl.store(grad_rows + target * WIDTH + column, total, mask=in_chunk)


@triton.jit
def _zero_kernel(touched, grad_table, num_rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    untouched = (row < num_rows) & (tl.load(touched + row, mask=row < num_rows, other=1) == 0)
    zeros = tl.zeros((ROWS, COLUMNS), grad_table.dtype.element_ty)
    mask = untouched[:, None] & (column < WIDTH)[None, :]
    tl.store(grad_table + row[:, None] * WIDTH + column[None, :], zeros, mask=mask)


def _segment_sums(
    grad_pooled: Tensor,
    table: Tensor,
    weights: Tensor,
    physical: Tensor,
    order: Tensor,
    expansion: int,
    grad_rows: Tensor,
    *,
    targets: Tensor | None = None,
    touched: Tensor | None = None,
) -> Tensor:
    """Fills `grad_rows` and returns the gradient of the weights.

    A row's gradient goes to `targets` of its reads; without them to the row's own place, and `touched` is told.
    """
    _, num_cores, num_slots = weights.shape
    width = table.shape[1]
    num_reads = physical.numel()
    num_tiles = triton.cdiv(num_reads, READS_A_TILE)
    columns = triton.next_power_of_2(width // num_cores)
    settings = {
        "NUM_CORES": num_cores,
        "EXPANSION": expansion,
        "WIDTH": width,
        "COMPACT": targets is not None,
        "TILE": READS_A_TILE,
        "COLUMNS": columns,
        "num_warps": min(16, max(1, columns // 256)),
    }
    grad_weights = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
    partials = torch.empty(num_tiles, 2, width, dtype=torch.float32, device=table.device)
    grid = (num_tiles * num_cores,)
    _segments_kernel[grid](
        grad_pooled.contiguous(),
        table.contiguous(),
        weights.contiguous(),
        physical,
        order,
        targets,
        touched,
        grad_rows,
        grad_weights,
        partials,
        num_reads,
        NUM_SLOTS=num_slots,
        READS=READS_A_LOAD,
        **settings,
    )
    _merge_kernel[grid](physical, targets, grad_rows, partials, num_reads, TILES=TILES_A_LOAD, **settings)
    return grad_weights


def lookup_backward(
    grad_pooled: Tensor, table: Tensor, slots: Tensor, weights: Tensor, num_keys: int, expansion: int, seed: int
) -> tuple[Tensor, Tensor]:
    """The dense gradient of the table ``(R, D_v)`` and that of the weights ``(N, h, K)``."""
    num_rows, width = table.shape
    if slots.numel() == 0:
        return torch.zeros_like(table), torch.zeros_like(weights)
    physical, order = sort_reads(slots, num_keys, expansion, seed)
    touched = torch.zeros(num_rows, dtype=torch.bool, device=table.device)
    grad_table = torch.empty(table.shape, dtype=table.dtype, device=table.device)
    grad_weights = _segment_sums(grad_pooled, table, weights, physical, order, expansion, grad_table, touched=touched)
    columns = triton.next_power_of_2(width)
    rows = max(1, 4096 // columns)
    _zero_kernel[(triton.cdiv(num_rows, rows),)](touched, grad_table, num_rows, WIDTH=width, ROWS=rows, COLUMNS=columns)
    return grad_table, grad_weights


def lookup_backward_rows(
    grad_pooled: Tensor, table: Tensor, slots: Tensor, weights: Tensor, num_keys: int, expansion: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The touched rows ``(U,)`` ascending, their gradients ``(U, D_v)``, and the gradient of the weights.

    U is counted on the device: the host waits for it once.
    """
    if slots.numel() == 0:
        return slots.new_empty(0), table.new_empty(0, table.shape[1]), torch.zeros_like(weights)
    physical, order = sort_reads(slots, num_keys, expansion, seed)
    rows, targets = torch.unique_consecutive(physical.long() // expansion, return_inverse=True)
    grad_rows = table.new_empty(rows.numel(), table.shape[1])
    grad_weights = _segment_sums(grad_pooled, table, weights, physical, order, expansion, grad_rows, targets=targets)
    return rows, grad_rows, grad_weights
