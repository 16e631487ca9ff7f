"""Gradients of the filter on the GPU, from the chosen keys only.

Both are weighted sums of gathered rows: a query's over the keys that it chose, a key's over the queries that chose it.
The second needs the choices sorted by key; every sum has one owner and a fixed order, so two runs give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ultramem.ops.select_keys.kernels import aligned

# Rows in flight a program, and its warps: at 16 bytes a load one warp takes 256 numbers, mostly a whole row, at once.
TILE = dict(CHOICES=4, num_warps=1)


@triton.jit
def _grad_query_kernel(
    grad_scores_ptr,  # (N, H, 2, r, k) float32
    indices_ptr,  # (N, H, 2, k) int64
    keys_ptr,  # (H, 2, n, r, padded d)
    grad_query_ptr,  # (N, Q, 2, r, d)
    num_query_sets,
    heads_of_a_set,
    num_keys,
    width,
    padded_width_8,
    k,
    HEADS: tl.constexpr,
    RANKS: tl.constexpr,
    CHOICES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The gradient of one query slice: one token, query set, side and rank."""
    padded_width = padded_width_8 * 8
    program = tl.program_id(0).to(tl.int64)
    rank = program % RANKS
    side = program // RANKS % 2
    query_set = program // (RANKS * 2) % num_query_sets
    token = program // (RANKS * 2 * num_query_sets)
    offsets = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    readable = offsets < padded_width

    total = tl.zeros((CHOICES, WIDTH), dtype=tl.float32)
    for head in range(query_set * heads_of_a_set, (query_set + 1) * heads_of_a_set):
        row = (token * HEADS + head) * 2 + side
        for start in range(0, k, CHOICES):
            choices = start + tl.arange(0, CHOICES)
            grad = tl.load(grad_scores_ptr + (row * RANKS + rank) * k + choices, mask=choices < k, other=0.0)
            chosen = tl.load(indices_ptr + row * k + choices, mask=choices < k, other=0)
            key_rows = keys_ptr + (((head * 2 + side) * num_keys + chosen) * RANKS + rank) * padded_width
            key = tl.load(key_rows[:, None] + offsets[None, :], mask=readable[None, :], other=0.0)
            total += grad[:, None] * key.to(tl.float32)
    tl.store(grad_query_ptr + program * width + offsets, tl.sum(total, axis=0), mask=offsets < width)


@triton.jit
def _grad_keys_kernel(
    grad_scores_ptr,  # (N, H, 2, r, k) float32
    order_ptr,  # (N * H * 2 * k) int64: numbers of the choices, sorted by key
    starts_ptr,  # (H * 2 * n + 1) int64: where every key's choices begin
    query_ptr,  # (N, Q, 2, r, padded d)
    grad_keys_ptr,  # (H, 2, n, r, d)
    num_query_sets,
    num_keys,
    width,
    padded_width_8,
    K: tl.constexpr,
    SIDES_OF_HEADS: tl.constexpr,
    RANKS: tl.constexpr,
    CHOICES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The gradient of one key in one rank."""
    padded_width = padded_width_8 * 8
    program = tl.program_id(0).to(tl.int64)
    rank = program % RANKS
    key = program // RANKS
    side_of_head = key // num_keys
    query_set = tl.where(num_query_sets > 1, side_of_head // 2, 0)
    offsets = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    readable = offsets < padded_width

    total = tl.zeros((CHOICES, WIDTH), dtype=tl.float32)
    end = tl.load(starts_ptr + key + 1)
    for start in range(tl.load(starts_ptr + key), end, CHOICES):
        numbers = start + tl.arange(0, CHOICES)
        choice = tl.load(order_ptr + numbers, mask=numbers < end, other=0)
        row = choice // K
        grad = tl.load(grad_scores_ptr + (row * RANKS + rank) * K + choice % K, mask=numbers < end, other=0.0)
        query_rows = (row // SIDES_OF_HEADS * num_query_sets + query_set) * 2 + side_of_head % 2
        query_rows = query_ptr + (query_rows * RANKS + rank) * padded_width
        query = tl.load(query_rows[:, None] + offsets[None, :], mask=readable[None, :], other=0.0)
        total += grad[:, None] * query.to(tl.float32)
    tl.store(grad_keys_ptr + program * width + offsets, tl.sum(total, axis=0), mask=offsets < width)


def select_keys_backward(grad_scores: Tensor, indices: Tensor, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of query and keys from the scores of the chosen keys."""
    grad_scores, indices = grad_scores.contiguous(), indices.contiguous()
    return (
        _grad_query(grad_scores, indices, query, keys),
        _grad_keys(grad_scores, indices, query, keys),
    )


def _grad_query(grad_scores: Tensor, indices: Tensor, query: Tensor, keys: Tensor) -> Tensor:
    num_tokens, num_query_sets, _, ranks, width = query.shape
    heads, _, num_keys, _, _ = keys.shape
    grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    if num_tokens == 0:
        return grad_query
    padded_keys = aligned(keys)
    block = min(256, triton.next_power_of_2(width))
    _grad_query_kernel[(num_tokens * num_query_sets * 2 * ranks, triton.cdiv(width, block))](
        grad_scores,
        indices,
        padded_keys,
        grad_query,
        num_query_sets,
        heads // num_query_sets,
        num_keys,
        width,
        padded_keys.shape[-1] // 8,
        indices.shape[-1],
        HEADS=heads,
        RANKS=ranks,
        WIDTH=block,
        **TILE,
    )
    return grad_query


def _grad_keys(grad_scores: Tensor, indices: Tensor, query: Tensor, keys: Tensor) -> Tensor:
    heads, _, num_keys, ranks, width = keys.shape
    sides = heads * 2
    key_numbers = indices + torch.arange(sides, device=indices.device).view(heads, 2, 1) * num_keys
    # A radix sort's passes grow with the bytes of its keys.
    key_dtype = torch.int16 if sides * num_keys < 2**15 else torch.int32
    key_numbers, order = key_numbers.flatten().to(key_dtype).sort(stable=True)
    numbers = torch.arange(sides * num_keys + 1, device=indices.device, dtype=torch.int32)
    starts = torch.searchsorted(key_numbers.int(), numbers)
    padded_query = aligned(query)
    grad_keys = torch.empty_like(keys, memory_format=torch.contiguous_format)
    block = min(256, triton.next_power_of_2(width))
    _grad_keys_kernel[(sides * num_keys * ranks, triton.cdiv(width, block))](
        grad_scores,
        order,
        starts,
        padded_query,
        grad_keys,
        query.shape[1],
        num_keys,
        width,
        padded_query.shape[-1] // 8,
        K=indices.shape[-1],
        SIDES_OF_HEADS=sides,
        RANKS=ranks,
        WIDTH=block,
        **TILE,
    )
    return grad_keys
