"""Backward of lookup in Triton: reads sorted by table row, so that a row is summed where it lies, without atomics.

The sorted reads fall into tiles of fixed length. A program walks the reads of its tile, several loads ahead: it gives
every read the gradient of its weight, adds up the row's gradient, and stores it where the row's reads end. Rows whose
reads cross a tile's border leave partial sums, which a second kernel adds in the order of the tiles: the same bits on
every run, and as fast for a row that every token reads.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultramem.ops.lookup.kernels import physical_rows, seed_argument
from ultramem.ops.lookup.permutation import Placement

READS_A_TILE = 128
READS_A_STEP = 8
TILES_A_LOAD = 16


@triton.jit
def _place_kernel(
    slots,
    physical,
    seed,
    first_row,
    num_rows,
    num_reads,
    NUM_KEYS: tl.constexpr,
    EXPANSION: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    read = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(slots + read, mask=read < num_reads, other=0)
    row, group = physical_rows(slot, seed, first_row, num_rows, NUM_KEYS, EXPANSION)
    tl.store(physical + read, row * GROUPS + group % GROUPS, mask=read < num_reads)


@triton.jit
def _locate_kernel(
    physical,
    order,
    reads,
    num_reads,
    padded_reads,
    NUM_SLOTS: tl.constexpr,
    NUM_CORES: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = position < num_reads
    place = tl.load(physical + position, mask=real, other=-GROUPS)
    read = tl.load(order + position, mask=real, other=0)
    token = read // NUM_SLOTS
    inside = position < padded_reads
    tl.store(reads + position, tl.where(real, place // GROUPS, -1), mask=inside)
    tl.store(reads + padded_reads + position, tl.where(real, token * GROUPS + place % GROUPS, 0), mask=inside)
    weight = token * NUM_CORES * NUM_SLOTS + read % NUM_SLOTS
    tl.store(reads + 2 * padded_reads + position, weight, mask=inside)


def sort_reads(slots: Tensor, weights: Tensor, num_rows: int, placement: Placement, num_groups: int) -> Tensor:
    """All reads, sorted by table row: ``(3, reads padded to whole tiles)`` integers.

    Of every read its table row (-1: padding), its bag (``token * groups + group``, the row of the pooled gradient) and
    the place of its first core's weight: what the walk needs of it, so that it divides nothing.
    """
    num_reads = slots.numel()
    dtype = torch.int32 if num_rows * num_groups < 2**31 else torch.int64
    physical = torch.empty(num_reads, dtype=dtype, device=slots.device)
    _place_kernel[(triton.cdiv(num_reads, 1024),)](
        slots.contiguous(),
        physical,
        seed_argument(placement.seed),
        placement.first_row,
        num_rows,
        num_reads,
        NUM_KEYS=placement.num_keys,
        EXPANSION=placement.expansion,
        GROUPS=num_groups,
        BLOCK=1024,
    )
    physical, order = physical.sort(stable=True)

    num_tokens, num_cores, num_slots = weights.shape
    padded_reads = triton.cdiv(num_reads, READS_A_TILE) * READS_A_TILE
    largest = max(num_rows, num_tokens * num_groups, weights.numel())
    dtype = torch.int32 if largest < 2**31 else torch.int64
    reads = torch.empty(3, padded_reads, dtype=dtype, device=slots.device)
    _locate_kernel[(triton.cdiv(padded_reads, 1024),)](
        physical,
        order,
        reads,
        num_reads,
        padded_reads,
        NUM_SLOTS=num_slots,
        NUM_CORES=num_cores,
        GROUPS=num_groups,
        BLOCK=1024,
    )
    return reads


@triton.jit
def _row_at(rows, position, num_reads):
    """The table row of sorted reads; -1 where there is none."""
    return tl.load(rows + position, mask=(position >= 0) & (position < num_reads), other=-1)


@triton.jit
def _load(pointers, inside):
    if inside is None:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=inside, other=0)


@triton.jit
def _into_place(sink, position, row, total, column, inside, WIDTH: tl.constexpr, SETTINGS: tl.constexpr):
    """A row's gradient goes to the row's own place."""
    touched, grad_table = sink
    tl.store(touched + row, True)
    tl.store(grad_table + row.to(tl.int64) * WIDTH + column, total, mask=inside)


@triton.jit
def _into_list(sink, position, row, total, column, inside, WIDTH: tl.constexpr, SETTINGS: tl.constexpr):
    """A row's gradient goes to the place in the list that its reads know."""
    targets, rows, grad_rows = sink
    target = tl.load(targets + position).to(tl.int64)
    tl.store(rows + target, row.to(tl.int64))
    tl.store(grad_rows + target * WIDTH + column, total, mask=inside)


@triton.jit
def _store_partial(partial, total, column, inside, WIDTH: tl.constexpr):
    """A float32 sum as its upper and its lower 16 bits.

    A store of float32 spreads columns over threads otherwise than the loads of 16-bit rows do, and the compiler would
    rearrange the sum between threads at every read, for the few that are stored.
    """
    bits = total.to(tl.uint32, bitcast=True)
    tl.store(partial + column, (bits >> 16).to(tl.uint16), mask=inside)
    tl.store(partial + WIDTH + column, (bits & 0xFFFF).to(tl.uint16), mask=inside)


@triton.jit
def _load_partial(partial, column, inside, WIDTH: tl.constexpr):
    upper = tl.load(partial + column, mask=inside, other=0).to(tl.uint32)
    lower = tl.load(partial + WIDTH + column, mask=inside, other=0).to(tl.uint32)
    return ((upper << 16) | lower).to(tl.float32, bitcast=True)


@triton.jit
def _walk_kernel(
    grad_pooled,
    table,
    weights,
    reads,
    sink,
    grad_weights,
    partials,
    num_reads,
    NUM_SLOTS: tl.constexpr,
    NUM_CORES: tl.constexpr,
    WIDTH: tl.constexpr,
    SINK: tl.constexpr,
    SETTINGS: tl.constexpr,
    TILE: tl.constexpr,
    READS: tl.constexpr,
    CORES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    CHUNK: tl.constexpr = WIDTH // NUM_CORES
    core = tl.arange(0, CORES)
    real_core = core < NUM_CORES
    in_chunk = tl.arange(0, COLUMNS)
    column = core[:, None] * CHUNK + in_chunk[None, :]
    inside = None if CORES * COLUMNS == WIDTH else real_core[:, None] & (in_chunk < CHUNK)[None, :]

    tile = tl.program_id(0).to(tl.int64)
    first = tile * TILE
    bags = reads + num_reads
    places = bags + num_reads
    row_before = _row_at(reads, first - 1, num_reads)
    total = tl.zeros((CORES, COLUMNS), tl.float32)
    for start in range(0, TILE, READS):
        rows = ()
        weight_places = ()
        read_weights = ()
        values = ()
        gradients = ()
        for i in tl.static_range(READS):
            position = first + start + i
            row = tl.load(reads + position)
            bag = tl.load(bags + position).to(tl.int64)
            weight_place = tl.load(places + position) + core * NUM_SLOTS
            rows += (row,)
            weight_places += (weight_place,)
            read_weights += (tl.load(weights + weight_place, mask=real_core, other=0).to(tl.float32),)
            if grad_weights is not None:
                values += (_load(table + tl.maximum(row, 0).to(tl.int64) * WIDTH + column, inside),)
            gradients += (_load(grad_pooled + bag * WIDTH + column, inside),)
        rows += (_row_at(reads, first + start + READS, num_reads),)

        for i in tl.static_range(READS):
            gradient = gradients[i].to(tl.float32)
            if grad_weights is not None:
                grad_weight = tl.sum(values[i].to(tl.float32) * gradient, axis=1)
                tl.store(grad_weights + weight_places[i], grad_weight, mask=real_core & (rows[i] >= 0))
            total += read_weights[i][:, None] * gradient
            if rows[i] != rows[i + 1]:
                if rows[i] != row_before:
                    position = first + start + i
                    SINK(sink, position, rows[i], total, column, inside, WIDTH, SETTINGS)
                else:
                    _store_partial(partials + tile * 4 * WIDTH, total, column, inside, WIDTH)
                total = tl.zeros((CORES, COLUMNS), tl.float32)

    row = _row_at(reads, first + TILE - 1, num_reads)
    if _row_at(reads, first + TILE, num_reads) == row:
        begins_here = (row != row_before).to(tl.int64)
        _store_partial(partials + (tile * 2 + begins_here) * 2 * WIDTH, total, column, inside, WIDTH)


@triton.jit
def _merge_kernel(
    reads,
    sink,
    partials,
    num_reads,
    WIDTH: tl.constexpr,
    SINK: tl.constexpr,
    SETTINGS: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The sum of a row whose reads begin in this tile and end in another."""
    tile = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < WIDTH
    last = tile * TILE + TILE - 1
    row = _row_at(reads, last, num_reads)
    row_before = _row_at(reads, tile * TILE - 1, num_reads)
    row_after = _row_at(reads, last + 1, num_reads)
    if (row_after == row) & (row_before != row) & (row >= 0):
        total = _load_partial(partials + (tile * 2 + 1) * 2 * WIDTH, column, inside, WIDTH)
        following = tile + 1
        while _row_at(reads, following * TILE, num_reads) == row:
            tiles = following + tl.arange(0, TILES)
            same = _row_at(reads, tiles * TILE, num_reads) == row
            heads = partials + tiles[:, None] * 4 * WIDTH
            total += tl.sum(_load_partial(heads, column[None, :], same[:, None] & inside[None, :], WIDTH), axis=0)
            following += TILES
        SINK(sink, last, row, total, column, inside, WIDTH, SETTINGS)


@triton.jit
def _zero_kernel(touched, grad_table, num_rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    untouched = (row < num_rows) & (tl.load(touched + row, mask=row < num_rows, other=1) == 0)
    zeros = tl.zeros((ROWS, COLUMNS), grad_table.dtype.element_ty)
    mask = untouched[:, None] & (column < WIDTH)[None, :]
    tl.store(grad_table + row[:, None] * WIDTH + column[None, :], zeros, mask=mask)


def sum_rows(
    grad_pooled: Tensor,
    table: Tensor,
    weights: Tensor,
    reads: Tensor,
    sink: tuple[Any, ...],
    into: triton.JITFunction,
    settings: tuple[float | bool, ...] = (),
    grad_weights: Tensor | None = None,
) -> None:
    """Gives every touched row's gradient to a sink; fills `grad_weights` where they are wanted.

    Args:
        grad_pooled: ``(N, groups, D_v)``.
        table: ``(R, D_v)``.
        weights: ``(N, h, K)``.
        reads: of `sort_reads`.
        sink: arguments of `into`.
        into: called once a touched row, with its float32 gradient; as `_into_place`.
        settings: its constants.
        grad_weights: ``(N, h, K)``, or None.
    """
    _, num_cores, num_slots = weights.shape
    width = table.shape[1]
    num_reads = reads.shape[1]
    num_tiles = num_reads // READS_A_TILE
    cores, columns = triton.next_power_of_2(num_cores), triton.next_power_of_2(width // num_cores)
    common = {
        "WIDTH": width,
        "SINK": into,
        "SETTINGS": settings,
        "TILE": READS_A_TILE,
        "num_warps": min(16, max(1, cores * columns // 256)),
    }
    partials = torch.empty(num_tiles, 2, 2, width, dtype=torch.uint16, device=table.device)
    _walk_kernel[(num_tiles,)](
        grad_pooled.contiguous(),
        table.contiguous(),
        weights.contiguous(),
        reads,
        sink,
        grad_weights,
        partials,
        num_reads,
        NUM_SLOTS=num_slots,
        NUM_CORES=num_cores,
        READS=READS_A_STEP,
        CORES=cores,
        COLUMNS=columns,
        **common,
    )
    _merge_kernel[(num_tiles,)](
        reads,
        sink,
        partials,
        num_reads,
        TILES=TILES_A_LOAD,
        COLUMNS=triton.next_power_of_2(width),
        **common,
    )


def table_gradient(
    grad_pooled: Tensor,
    table: Tensor,
    slots: Tensor,
    weights: Tensor,
    placement: Placement,
    num_groups: int,
    grad_weights: Tensor | None = None,
) -> Tensor:
    """The dense gradient of the table ``(R, D_v)``; fills `grad_weights` ``(N, h, K)`` where it is given."""
    num_rows, width = table.shape
    if slots.numel() == 0:
        return torch.zeros_like(table)
    reads = sort_reads(slots, weights, num_rows, placement, num_groups)
    touched = torch.zeros(num_rows, dtype=torch.bool, device=table.device)
    grad_table = torch.empty(table.shape, dtype=table.dtype, device=table.device)
    sum_rows(grad_pooled, table, weights, reads, (touched, grad_table), _into_place, grad_weights=grad_weights)
    columns = triton.next_power_of_2(width)
    rows = max(1, 4096 // columns)
    _zero_kernel[(triton.cdiv(num_rows, rows),)](touched, grad_table, num_rows, WIDTH=width, ROWS=rows, COLUMNS=columns)
    return grad_table


def row_gradients(
    grad_pooled: Tensor,
    table: Tensor,
    slots: Tensor,
    weights: Tensor,
    placement: Placement,
    num_groups: int,
    grad_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The touched rows ``(U,)`` ascending and their gradients ``(U, D_v)``; fills `grad_weights` where it is given.

    U is counted on the device: the host waits for it once.
    """
    if slots.numel() == 0:
        return slots.new_empty(0), table.new_empty(0, table.shape[1])
    reads = sort_reads(slots, weights, table.shape[0], placement, num_groups)
    row_of_read = reads[0, : slots.numel()]
    begins = row_of_read != row_of_read.roll(1)
    begins[0] = False
    targets = begins.cumsum(0, dtype=torch.int32)
    rows = slots.new_empty(int(targets[-1]) + 1)
    grad_rows = table.new_empty(rows.numel(), table.shape[1])
    sum_rows(grad_pooled, table, weights, reads, (targets, rows, grad_rows), _into_list, grad_weights=grad_weights)
    return rows, grad_rows


def lookup_backward(
    grad_pooled: Tensor, table: Tensor, slots: Tensor, weights: Tensor, placement: Placement, num_groups: int
) -> tuple[Tensor, Tensor]:
    """The dense gradient of the table ``(R, D_v)`` and that of the weights ``(N, h, K)``."""
    grad_weights = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
    return table_gradient(grad_pooled, table, slots, weights, placement, num_groups, grad_weights), grad_weights


def lookup_backward_rows(
    grad_pooled: Tensor, table: Tensor, slots: Tensor, weights: Tensor, placement: Placement, num_groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The touched rows ``(U,)`` ascending, their gradients ``(U, D_v)``, and the gradient of the weights."""
    grad_weights = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
    return *row_gradients(grad_pooled, table, slots, weights, placement, num_groups, grad_weights), grad_weights
