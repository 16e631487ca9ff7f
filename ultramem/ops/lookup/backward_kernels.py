"""Backward of lookup in Triton: reads sorted by table row, so that a row is summed where it lies, without atomics.

The sorted reads fall into tiles of fixed length. A program walks the reads of its tile, several loads ahead: it gives
every read the gradient of its weight, adds up the row's gradient, and stores it where the row's reads end. Rows whose
reads cross a tile's border leave partial sums, which a second kernel adds in the order of the tiles: the same bits on
every run, and as fast for a row that every token reads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultramem.ops.lookup.kernels import physical_slot, seed_argument

READS_A_TILE = 128
READS_A_STEP = 8
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
def _store_row(
    owners, grad_rows, targets, position, row, total, column, inside, WIDTH: tl.constexpr, COMPACT: tl.constexpr
):
    """A row's whole gradient, and that the row has one."""
    if COMPACT:
        target = tl.load(targets + position).to(tl.int64)
        tl.store(owners + target, row.to(tl.int64))
    else:
        target = row.to(tl.int64)
        tl.store(owners + target, True)
    tl.store(grad_rows + target * WIDTH + column, total, mask=inside)


@triton.jit
def _walk_kernel(
    grad_pooled,
    table,
    weights,
    physical,
    order,
    targets,
    owners,
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
    CORES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    CHUNK: tl.constexpr = WIDTH // NUM_CORES
    core = tl.arange(0, CORES)
    in_chunk = tl.arange(0, COLUMNS)
    column = core[:, None] * CHUNK + in_chunk[None, :]
    inside = (core < NUM_CORES)[:, None] & (in_chunk < CHUNK)[None, :]

    tile = tl.program_id(0).to(tl.int64)
    first = tile * TILE
    row_before = _row_at(physical, first - 1, num_reads, EXPANSION)
    total = tl.zeros((CORES, COLUMNS), tl.float32)
    for start in range(0, TILE, READS):
        rows = ()
        weight_indices = ()
        read_weights = ()
        values = ()
        gradients = ()
        for i in tl.static_range(READS):
            position = first + start + i
            live = position < num_reads
            place = tl.load(physical + position, mask=live, other=-EXPANSION)
            read = tl.load(order + position, mask=live, other=0)
            token = read // NUM_SLOTS
            bag = token * EXPANSION + place % EXPANSION
            row = place // EXPANSION
            rows += (row,)
            weight_index = (token * NUM_CORES + core) * NUM_SLOTS + read % NUM_SLOTS
            weight_indices += (weight_index,)
            read_weights += (tl.load(weights + weight_index, mask=(core < NUM_CORES) & live, other=0).to(tl.float32),)
            values += (tl.load(table + row.to(tl.int64) * WIDTH + column, mask=inside & live, other=0),)
            gradients += (tl.load(grad_pooled + bag * WIDTH + column, mask=inside & live, other=0),)
        rows += (_row_at(physical, first + start + READS, num_reads, EXPANSION),)

        for i in tl.static_range(READS):
            position = first + start + i
            gradient = gradients[i].to(tl.float32)
            grad_weight = tl.sum(values[i].to(tl.float32) * gradient, axis=1)
            tl.store(grad_weights + weight_indices[i], grad_weight, mask=(core < NUM_CORES) & (position < num_reads))
            total += read_weights[i][:, None] * gradient
            if rows[i] != rows[i + 1]:
                if rows[i] != row_before:
                    _store_row(owners, grad_rows, targets, position, rows[i], total, column, inside, WIDTH, COMPACT)
                else:
                    tl.store(partials + tile * 2 * WIDTH + column, total, mask=inside)
                total = tl.zeros((CORES, COLUMNS), tl.float32)

    last = tl.minimum(first + TILE, num_reads) - 1
    row = _row_at(physical, last, num_reads, EXPANSION)
    if _row_at(physical, last + 1, num_reads, EXPANSION) == row:
        begins_here = (row != row_before).to(tl.int64)
        tl.store(partials + (tile * 2 + begins_here) * WIDTH + column, total, mask=inside)


@triton.jit
def _merge_kernel(
    physical,
    targets,
    owners,
    grad_rows,
    partials,
    num_reads,
    EXPANSION: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPACT: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The sum of a row whose reads begin in this tile and end in another."""
    tile = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < WIDTH
    last = tl.minimum(tile * TILE + TILE, num_reads) - 1
    row = _row_at(physical, last, num_reads, EXPANSION)
    row_before = _row_at(physical, tile * TILE - 1, num_reads, EXPANSION)
    row_after = _row_at(physical, last + 1, num_reads, EXPANSION)
    if (row_after == row) & (row_before != row):
        total = tl.load(partials + (tile * 2 + 1) * WIDTH + column, mask=inside, other=0)
        following = tile + 1
        while _row_at(physical, following * TILE, num_reads, EXPANSION) == row:
            tiles = following + tl.arange(0, TILES)
            same = _row_at(physical, tiles * TILE, num_reads, EXPANSION) == row
            heads = partials + tiles[:, None] * 2 * WIDTH + column[None, :]
            total += tl.sum(tl.load(heads, mask=same[:, None] & inside[None, :], other=0), axis=0)
            following += TILES
        _store_row(owners, grad_rows, targets, last, row, total, column, inside, WIDTH, COMPACT)


@triton.jit
def _zero_kernel(touched, grad_table, num_rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    untouched = (row < num_rows) & (tl.load(touched + row, mask=row < num_rows, other=1) == 0)
    zeros = tl.zeros((ROWS, COLUMNS), grad_table.dtype.element_ty)
    mask = untouched[:, None] & (column < WIDTH)[None, :]
    tl.store(grad_table + row[:, None] * WIDTH + column[None, :], zeros, mask=mask)


def _row_sums(
    grad_pooled: Tensor,
    table: Tensor,
    weights: Tensor,
    physical: Tensor,
    order: Tensor,
    expansion: int,
    grad_rows: Tensor,
    owners: Tensor,
    targets: Tensor | None = None,
) -> Tensor:
    """Fills `grad_rows` and returns the gradient of the weights.

    A row's gradient goes to the row's own place, and ``owners`` (bool) says that it has one; or to the `targets` of its
    reads, and ``owners`` (int64) says whose it is.
    """
    _, num_cores, num_slots = weights.shape
    width = table.shape[1]
    num_reads = physical.numel()
    num_tiles = triton.cdiv(num_reads, READS_A_TILE)
    cores, columns = triton.next_power_of_2(num_cores), triton.next_power_of_2(width // num_cores)
    settings = {
        "EXPANSION": expansion,
        "WIDTH": width,
        "COMPACT": targets is not None,
        "TILE": READS_A_TILE,
        "num_warps": min(16, max(1, cores * columns // 256)),
    }
    grad_weights = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
    partials = torch.empty(num_tiles, 2, width, dtype=torch.float32, device=table.device)
    _walk_kernel[(num_tiles,)](
        grad_pooled.contiguous(),
        table.contiguous(),
        weights.contiguous(),
        physical,
        order,
        targets,
        owners,
        grad_rows,
        grad_weights,
        partials,
        num_reads,
        NUM_SLOTS=num_slots,
        NUM_CORES=num_cores,
        READS=READS_A_STEP,
        CORES=cores,
        COLUMNS=columns,
        **settings,
    )
    _merge_kernel[(num_tiles,)](
        physical,
        targets,
        owners,
        grad_rows,
        partials,
        num_reads,
        TILES=TILES_A_LOAD,
        COLUMNS=triton.next_power_of_2(width),
        **settings,
    )
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
    grad_weights = _row_sums(grad_pooled, table, weights, physical, order, expansion, grad_table, touched)
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
    row_of_read = physical // expansion
    begins = row_of_read != row_of_read.roll(1)
    begins[0] = False
    targets = begins.cumsum(0, dtype=torch.int32)
    rows = slots.new_empty(int(targets[-1]) + 1)
    grad_rows = table.new_empty(rows.numel(), table.shape[1])
    grad_weights = _row_sums(grad_pooled, table, weights, physical, order, expansion, grad_rows, rows, targets)
    return rows, grad_rows, grad_weights
