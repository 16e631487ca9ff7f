"""Candidates for the filter's product, measured against the one in use; those that lose are deleted."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ultramem.ops.select_keys.kernels import GROUP, _nth_rank


@triton.jit
def _store_tile(
    scores, tokens, keys, key_tile, side_of_head, filter_scores_ptr, filter_scores, maxima_ptr, num_tokens, num_keys,
    num_groups, SIDES_OF_HEADS: tl.constexpr, TOKENS: tl.constexpr, KEYS: tl.constexpr, BULK_STORE: tl.constexpr,
):  # fmt: skip
    scores = tl.where(keys[None, :] < num_keys, scores, float("-inf"))
    rows = tokens.to(tl.int64) * SIDES_OF_HEADS + side_of_head
    padded_keys = num_groups * GROUP
    if BULK_STORE:
        filter_scores.store([tokens.min(axis=0), side_of_head, key_tile * KEYS], tl.reshape(scores, (TOKENS, 1, KEYS)))
    else:
        tl.store(
            filter_scores_ptr + rows[:, None] * padded_keys + keys[None, :],
            scores,
            mask=(tokens < num_tokens)[:, None] & (keys < padded_keys)[None, :],
        )
    maxima = tl.max(tl.reshape(scores, (TOKENS, KEYS // GROUP, GROUP)), axis=2)
    groups = key_tile * (KEYS // GROUP) + tl.arange(0, KEYS // GROUP)
    tl.store(
        maxima_ptr + rows[:, None] * num_groups + groups[None, :],
        maxima,
        mask=(tokens < num_tokens)[:, None] & (groups < num_groups)[None, :],
    )


@triton.jit
def _descriptor_kernel(
    query,  # descriptor of (N, Q * 2 * r, d)
    keys_of_sides,  # descriptor of (H * 2 * n, r, d)
    filter_ptr,
    filter_scores_ptr,
    filter_scores,  # descriptor of (N, H * 2, padded n)
    maxima_ptr,
    num_tokens,
    num_query_sets,
    num_keys,
    num_groups,
    width,
    SIDES_OF_HEADS: tl.constexpr,
    RANKS: tl.constexpr,
    TOKENS: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    BULK_STORE: tl.constexpr,
):
    key_tiles = tl.cdiv(num_keys, KEYS)
    token_tiles = tl.cdiv(num_tokens, TOKENS)
    program = tl.program_id(0)
    key_tile = program % key_tiles
    token_tile = program // key_tiles % token_tiles
    side_of_head = program // (key_tiles * token_tiles)
    query_set = tl.where(num_query_sets > 1, side_of_head // 2, 0)
    filter_ptr += side_of_head * RANKS
    scores = tl.zeros((TOKENS, KEYS), dtype=tl.float32)
    weight = 0.0
    for step in tl.static_range(RANKS):
        rank = _nth_rank(filter_ptr, step, RANKS)
        next_weight = tl.load(filter_ptr + rank)
        if step > 0:
            scores *= tl.where(next_weight == 0, 0.0, weight / next_weight)
        weight = next_weight
        slice_of_query = (query_set * 2 + side_of_head % 2) * RANKS + rank
        for start in range(0, width, WIDTH):
            q = query.load([token_tile * TOKENS, slice_of_query, start]).reshape(TOKENS, WIDTH)
            k = keys_of_sides.load([side_of_head * num_keys + key_tile * KEYS, rank, start]).reshape(KEYS, WIDTH)
            scores = tl.dot(q, k.T, scores, input_precision="ieee")
    tokens = token_tile * TOKENS + tl.arange(0, TOKENS)
    keys = key_tile * KEYS + tl.arange(0, KEYS)
    _store_tile(
        scores * weight, tokens, keys, key_tile, side_of_head, filter_scores_ptr, filter_scores, maxima_ptr, num_tokens,
        num_keys, num_groups, SIDES_OF_HEADS, TOKENS, KEYS, BULK_STORE,
    )  # fmt: skip


@triton.jit
def _persistent_kernel(
    query,  # descriptor of (N, Q * 2 * r, d)
    keys_of_sides,  # descriptor of (H * 2 * n, r, d)
    filter_ptr,
    filter_scores_ptr,
    filter_scores,
    maxima_ptr,
    num_tokens,
    num_query_sets,
    num_keys,
    num_groups,
    width,
    SIDES_OF_HEADS: tl.constexpr,
    RANKS: tl.constexpr,
    TOKENS: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    BULK_STORE: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """The next tile's loads overlap the last one's stores; adds the ranks without weights (for speed only)."""
    key_tiles = tl.cdiv(num_keys, KEYS)
    token_tiles = tl.cdiv(num_tokens, TOKENS)
    steps = tl.cdiv(width, WIDTH)
    for tile in tl.range(tl.program_id(0), key_tiles * token_tiles * SIDES_OF_HEADS, PROGRAMS, flatten=True):
        key_tile = tile % key_tiles
        token_tile = tile // key_tiles % token_tiles
        side_of_head = tile // (key_tiles * token_tiles)
        query_set = tl.where(num_query_sets > 1, side_of_head // 2, 0)
        scores = tl.zeros((TOKENS, KEYS), dtype=tl.float32)
        for step in range(0, steps * RANKS):
            rank = step // steps
            slice_of_query = (query_set * 2 + side_of_head % 2) * RANKS + rank
            start = step % steps * WIDTH
            q = query.load([token_tile * TOKENS, slice_of_query, start]).reshape(TOKENS, WIDTH)
            k = keys_of_sides.load([side_of_head * num_keys + key_tile * KEYS, rank, start]).reshape(KEYS, WIDTH)
            scores = tl.dot(q, k.T, scores, input_precision="ieee")
        tokens = token_tile * TOKENS + tl.arange(0, TOKENS)
        keys = key_tile * KEYS + tl.arange(0, KEYS)
        _store_tile(
            scores, tokens, keys, key_tile, side_of_head, filter_scores_ptr, filter_scores, maxima_ptr, num_tokens,
            num_keys, num_groups, SIDES_OF_HEADS, TOKENS, KEYS, BULK_STORE,
        )  # fmt: skip


def descriptor_filter(
    query: Tensor, keys: Tensor, filter_vectors: Tensor, *, tile: dict, bulk_store: bool, persistent: int = 0
) -> tuple[Tensor, Tensor]:
    """As `kernels._filter`; ``persistent`` programs a multiprocessor add the ranks without weights."""
    num_tokens, num_query_sets = query.shape[:2]
    heads, _, num_keys, ranks, width = keys.shape
    num_groups = triton.cdiv(num_keys, GROUP.value)
    filter_scores = query.new_empty(num_tokens, heads, 2, num_groups * GROUP.value, dtype=torch.float32)
    maxima = query.new_empty(num_tokens, heads, 2, num_groups, dtype=torch.float32)
    block = tile["TOKENS"], tile["KEYS"], tile["WIDTH"]
    tiles = triton.cdiv(num_tokens, block[0]) * triton.cdiv(num_keys, block[1]) * heads * 2
    arguments = (
        TensorDescriptor.from_tensor(query.view(num_tokens, -1, width), [block[0], 1, block[2]]),
        TensorDescriptor.from_tensor(keys.view(-1, ranks, width), [block[1], 1, block[2]]),
        filter_vectors,
        filter_scores,
        TensorDescriptor.from_tensor(filter_scores.view(num_tokens, heads * 2, -1), [block[0], 1, block[1]]),
        maxima,
        num_tokens,
        num_query_sets,
        num_keys,
        num_groups,
        width,
    )
    constants = dict(SIDES_OF_HEADS=heads * 2, RANKS=ranks, BULK_STORE=bulk_store, **tile)
    if persistent:
        programs = persistent * torch.cuda.get_device_properties(query.device).multi_processor_count
        _persistent_kernel[(min(programs, tiles),)](*arguments, PROGRAMS=programs, **constants)
    else:
        _descriptor_kernel[(tiles,)](*arguments, **constants)
    return filter_scores, maxima
