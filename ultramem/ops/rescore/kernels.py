"""Rescoring the candidates' grid on the GPU: the grid of one token and head lives in the registers of one program."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultramem.ops.top_k_kernels import LOWEST, find_threshold, number_chosen, ordered, pack, sort_through_memory, unpack


@triton.jit
def _summed_core(cores_ptr, num_cores, a, b, RANKS: tl.constexpr):
    weight = tl.load(cores_ptr + a * RANKS + b).to(tl.float32)
    for core in range(1, num_cores):
        weight += tl.load(cores_ptr + (core * RANKS + a) * RANKS + b).to(tl.float32)
    return weight


@triton.jit
def _square_grid(
    row_scores,
    column_scores,
    cores_ptr,
    num_cores,
    k,
    RANKS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    SIDE: tl.constexpr,
    CELLS: tl.constexpr,
):
    """The grid with both sides padded to a power of two: ordered values, positions, and one that k cells reach."""
    candidates = tl.arange(0, SIDE)
    real = candidates < CANDIDATES
    grid = tl.zeros((SIDE, SIDE), dtype=tl.float32)
    for b in tl.static_range(RANKS):
        left = tl.zeros((SIDE,), dtype=tl.float32)
        for a in tl.static_range(RANKS):
            weight = _summed_core(cores_ptr, num_cores, a, b, RANKS)
            left += weight * tl.load(row_scores + a * CANDIDATES + candidates, mask=real, other=0.0)
        right = tl.load(column_scores + b * CANDIDATES + candidates, mask=real, other=0.0)
        grid += left[:, None] * right[None, :]

    on_grid = real[:, None] & real[None, :]
    integers = ordered(grid)
    highest = tl.max(tl.where(on_grid, integers, LOWEST), axis=1)
    # The rows' best are c elements, so that k <= c elements reach the least of them.
    lowest_of_rows = tl.min(tl.where(real, highest, 0x7FFFFFFF))
    lowest = tl.where(k <= CANDIDATES, lowest_of_rows, tl.min(tl.where(on_grid, integers, 0x7FFFFFFF)))
    cells = tl.arange(0, CELLS)
    positions = cells // SIDE * CANDIDATES + cells % SIDE
    return tl.reshape(tl.where(on_grid, integers, LOWEST), (CELLS,)), positions, lowest


@triton.jit
def _packed_grid(
    row_scores,
    column_scores,
    cores_ptr,
    num_cores,
    k,
    RANKS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    SIDE: tl.constexpr,
    CELLS: tl.constexpr,
):
    """The same, cell after cell without padding between the rows: every cell loads its own scores."""
    positions = tl.arange(0, CELLS)
    real = positions < CANDIDATES * CANDIDATES
    row = positions // CANDIDATES
    column = positions % CANDIDATES
    grid = tl.zeros((CELLS,), dtype=tl.float32)
    for b in tl.static_range(RANKS):
        left = tl.zeros((CELLS,), dtype=tl.float32)
        for a in tl.static_range(RANKS):
            weight = _summed_core(cores_ptr, num_cores, a, b, RANKS)
            left += weight * tl.load(row_scores + a * CANDIDATES + row, mask=real, other=0.0)
        grid += left * tl.load(column_scores + b * CANDIDATES + column, mask=real, other=0.0)
    integers = ordered(grid)
    # The cells of the best column are c elements, so that k <= c elements reach the least of them.
    bound = real & ((column == 0) | (k > CANDIDATES))
    return tl.where(real, integers, LOWEST), positions, tl.min(tl.where(bound, integers, 0x7FFFFFFF))


@triton.jit
def _rescore_kernel(
    scores_ptr,  # (N, H, 2, r, c) float32
    indices_ptr,  # (N, H, 2, c) int64
    cores_ptr,  # (H, h, r, r)
    values_ptr,  # (N, h, H, k) float32
    slots_ptr,  # (N, H, k) int64
    positions_ptr,  # (N, H, k) int64
    num_keys,
    num_cores,
    k,
    GRID: tl.constexpr,
    HEADS: tl.constexpr,
    RANKS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    SIDE: tl.constexpr,
    CELLS: tl.constexpr,
    K_BLOCK: tl.constexpr,
):
    """The k best slots of one token and head."""
    program = tl.program_id(0).to(tl.int64)
    row_scores = scores_ptr + program * 2 * RANKS * CANDIDATES
    column_scores = row_scores + RANKS * CANDIDATES
    cores_ptr += program % HEADS * num_cores * RANKS * RANKS
    values_row = values_ptr + (program // HEADS * num_cores * HEADS + program % HEADS) * k
    integers, positions, lowest = GRID(
        row_scores, column_scores, cores_ptr, num_cores, k, RANKS, CANDIDATES, SIDE, CELLS
    )
    above = tl.max(integers).to(tl.int64) + 1
    threshold = find_threshold(integers, k, lowest.to(tl.int64), above)
    chosen, place = number_chosen(integers, threshold, k)

    positions_row = positions_ptr + program * k
    packed = sort_through_memory(positions_row, pack(integers, positions), place, chosen, k, K_BLOCK)
    _, positions = unpack(packed)
    places = tl.arange(0, K_BLOCK)
    wanted = places < k
    tl.store(positions_row + places, positions.to(tl.int64), mask=wanted)

    row = positions // CANDIDATES
    column = positions % CANDIDATES
    indices_row = indices_ptr + program * 2 * CANDIDATES
    row_key = tl.load(indices_row + row, mask=wanted, other=0)
    column_key = tl.load(indices_row + CANDIDATES + column, mask=wanted, other=0)
    tl.store(slots_ptr + program * k + places, row_key * num_keys + column_key, mask=wanted)
    for core in range(0, num_cores):
        values = tl.zeros((K_BLOCK,), dtype=tl.float32)
        for b in tl.static_range(RANKS):
            chosen_left = tl.zeros((K_BLOCK,), dtype=tl.float32)
            for a in tl.static_range(RANKS):
                weight = tl.load(cores_ptr + (core * RANKS + a) * RANKS + b).to(tl.float32)
                chosen_left += weight * tl.load(row_scores + a * CANDIDATES + row, mask=wanted, other=0.0)
            values += chosen_left * tl.load(column_scores + b * CANDIDATES + column, mask=wanted, other=0.0)
        tl.store(values_row + core * HEADS * k + places, values, mask=wanted)


@triton.jit
def _rescore_backward_kernel(
    grad_values_ptr,  # (N, h, H, k) float32
    positions_ptr,  # (N, H, k) int64
    scores_ptr,  # (N, H, 2, r, c) float32
    cores_ptr,  # (H, h, r, r)
    grad_scores_ptr,  # (N, H, 2, r, c) float32
    grad_cores_ptr,  # (N, H, h, r, r) float32: the token's part
    num_candidates,
    num_cores,
    k,
    HEADS: tl.constexpr,
    RANKS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    K_BLOCK: tl.constexpr,
):
    """All gradients of one token and head."""
    program = tl.program_id(0).to(tl.int64)
    row_scores = scores_ptr + program * 2 * RANKS * num_candidates
    column_scores = row_scores + RANKS * num_candidates
    grad_row_scores = grad_scores_ptr + program * 2 * RANKS * num_candidates
    grad_column_scores = grad_row_scores + RANKS * num_candidates
    cores_ptr += program % HEADS * num_cores * RANKS * RANKS
    grad_cores_ptr += program * num_cores * RANKS * RANKS
    grad_values_ptr += (program // HEADS * num_cores * HEADS + program % HEADS) * k

    places = tl.arange(0, K_BLOCK)
    wanted = places < k
    positions = tl.load(positions_ptr + program * k + places, mask=wanted, other=0).to(tl.int32)
    row = positions // num_candidates
    column = positions % num_candidates
    candidates = tl.arange(0, CANDIDATES)
    of_row = (row[:, None] == candidates[None, :]) & wanted[:, None]
    of_column = (column[:, None] == candidates[None, :]) & wanted[:, None]

    for a in tl.static_range(RANKS):
        grad_row = tl.zeros((K_BLOCK,), dtype=tl.float32)
        grad_column = tl.zeros((K_BLOCK,), dtype=tl.float32)
        for b in tl.static_range(RANKS):
            row_score = tl.load(row_scores + b * num_candidates + row, mask=wanted, other=0.0)
            column_score = tl.load(column_scores + b * num_candidates + column, mask=wanted, other=0.0)
            for core in range(0, num_cores):
                grad = tl.load(grad_values_ptr + core * HEADS * k + places, mask=wanted, other=0.0)
                grad_row += grad * tl.load(cores_ptr + (core * RANKS + a) * RANKS + b).to(tl.float32) * column_score
                grad_column += grad * tl.load(cores_ptr + (core * RANKS + b) * RANKS + a).to(tl.float32) * row_score
        grad_row = tl.sum(tl.where(of_row, grad_row[:, None], 0.0), axis=0)
        grad_column = tl.sum(tl.where(of_column, grad_column[:, None], 0.0), axis=0)
        inside = candidates < num_candidates
        tl.store(grad_row_scores + a * num_candidates + candidates, grad_row, mask=inside)
        tl.store(grad_column_scores + a * num_candidates + candidates, grad_column, mask=inside)

    for core in range(0, num_cores):
        grad = tl.load(grad_values_ptr + core * HEADS * k + places, mask=wanted, other=0.0)
        for a in tl.static_range(RANKS):
            row_score = grad * tl.load(row_scores + a * num_candidates + row, mask=wanted, other=0.0)
            for b in tl.static_range(RANKS):
                column_score = tl.load(column_scores + b * num_candidates + column, mask=wanted, other=0.0)
                tl.store(grad_cores_ptr + (core * RANKS + a) * RANKS + b, tl.sum(row_score * column_score))


def rescore(scores: Tensor, indices: Tensor, cores: Tensor, num_keys: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `ultramem.ops.rescore`; also returns the chosen positions ``(N, H, k)`` in the c x c grid."""
    num_tokens, heads, _, ranks, num_candidates = scores.shape
    num_cores = cores.shape[1]
    values = scores.new_empty(num_tokens, num_cores, heads, k).transpose(1, 2)
    slots = indices.new_empty(num_tokens, heads, k)
    positions = torch.empty_like(slots)
    if num_tokens == 0:
        return values, slots, positions
    side, cells = triton.next_power_of_2(num_candidates), triton.next_power_of_2(num_candidates**2)
    _rescore_kernel[(num_tokens * heads,)](
        scores.contiguous(),
        indices.contiguous(),
        cores.contiguous(),
        values,
        slots,
        positions,
        num_keys,
        num_cores,
        k,
        GRID=_square_grid if cells == side**2 else _packed_grid,
        HEADS=heads,
        RANKS=ranks,
        CANDIDATES=num_candidates,
        SIDE=side,
        CELLS=cells,
        K_BLOCK=triton.next_power_of_2(k),
        num_warps=_num_warps(num_tokens, cells),
    )
    return values, slots, positions


def _num_warps(num_tokens: int, elements: int) -> int:
    # A warp alone needs no barriers; small batches have too few tokens to hide a warp's latency.
    return min(8, max(1 if num_tokens > 256 else 4, elements // 1024))


def rescore_backward(grad_values: Tensor, positions: Tensor, scores: Tensor, cores: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the candidates' rank scores and of the cores; every token's part of the latter is summed after."""
    num_tokens, heads, _, ranks, num_candidates = scores.shape
    num_cores, k = cores.shape[1], positions.shape[-1]
    grad_scores = torch.empty_like(scores, memory_format=torch.contiguous_format)
    grad_cores = scores.new_empty(num_tokens, *cores.shape)
    if num_tokens > 0:
        candidates, k_block = triton.next_power_of_2(num_candidates), triton.next_power_of_2(k)
        _rescore_backward_kernel[(num_tokens * heads,)](
            grad_values.transpose(1, 2).contiguous(),
            positions.contiguous(),
            scores.contiguous(),
            cores.contiguous(),
            grad_scores,
            grad_cores,
            num_candidates,
            num_cores,
            k,
            HEADS=heads,
            RANKS=ranks,
            CANDIDATES=candidates,
            K_BLOCK=k_block,
            num_warps=_num_warps(num_tokens, candidates * k_block),
        )
    return grad_scores, grad_cores.sum(dim=0).to(cores.dtype)
