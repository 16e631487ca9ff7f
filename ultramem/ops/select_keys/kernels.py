"""The filter of a product-key memory on the GPU.

One matrix product gives ONE filter score a key, and the best score of every group of 8 keys. The k best groups hold
the k best keys, so the selection reads the groups' maxima and k groups, not all n scores. The scores in every rank
are computed for the k chosen keys only.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ultramem.ops.top_k_kernels import LOWEST, find_threshold, number_chosen, ordered, pack, sort_through_memory, unpack

# A group's scores are one 32-byte sector of memory; about sqrt(n / k) keys a group make the least to look at.
GROUP: tl.constexpr = tl.constexpr(8)
# Filter scores are kept for as many tokens at a time as fit in it. A few thousand tokens fill a large GPU; ever more
# memory gains a few percent, and scores that would fit in the L2 cache lose half the speed to launches and tails.
WORKSPACE_BYTES = 2**29


@triton.jit
def _nth_rank(filter_ptr, step, RANKS: tl.constexpr):
    """The rank that comes at this step when ranks go from the smallest filter weight to the largest (in magnitude)."""
    place = 0
    rank = 0
    for candidate in tl.static_range(RANKS):
        weight = tl.abs(tl.load(filter_ptr + candidate))
        place = 0
        for other in tl.static_range(RANKS):
            rival = tl.abs(tl.load(filter_ptr + other))
            place += ((rival < weight) | ((rival == weight) & (other < candidate))).to(tl.int32)
        rank = tl.where(place == step, candidate, rank)
    return rank


@triton.jit
def _filter_kernel(
    query_ptr,  # (N, Q, 2, r, d); d = 8 width_8, so that the compiler knows how rows are aligned
    keys_ptr,  # (H, 2, n, r, d)
    filter_ptr,  # (H, 2, r) float32
    filter_scores_ptr,  # (N, H, 2, padded n) float32
    maxima_ptr,  # (N, H, 2, groups) float32
    num_tokens,
    num_query_sets,
    num_keys,
    num_groups,
    width_8,
    SIDES_OF_HEADS: tl.constexpr,
    RANKS: tl.constexpr,
    TOKENS: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One tile of filter scores: TOKENS x KEYS of one side of one head."""
    width = width_8 * 8
    key_tiles = tl.cdiv(num_keys, KEYS)
    token_tiles = tl.cdiv(num_tokens, TOKENS)
    program = tl.program_id(0)
    key_tile = program % key_tiles
    token_tile = program // key_tiles % token_tiles
    side_of_head = program // (key_tiles * token_tiles)
    query_set = tl.where(num_query_sets > 1, side_of_head // 2, 0)
    filter_ptr += side_of_head * RANKS

    tokens = token_tile * TOKENS + tl.arange(0, TOKENS)
    keys = key_tile * KEYS + tl.arange(0, KEYS)
    offsets = tl.arange(0, WIDTH)
    # Rows past the end read the last one: no mask in the loop, and their scores are not stored.
    query_rows = tl.minimum(tokens, num_tokens - 1).to(tl.int64) * num_query_sets + query_set
    key_rows = side_of_head.to(tl.int64) * num_keys + tl.minimum(keys, num_keys - 1)
    query_rows = query_ptr + (query_rows * 2 + side_of_head % 2)[:, None] * (RANKS * width) + offsets[None, :]
    key_rows = keys_ptr + key_rows[None, :] * (RANKS * width) + offsets[:, None]

    # sum of f_i s_i = ((s_0 f_0 / f_1 + s_1) f_1 / f_2 + s_2) f_2: one accumulator, no rounding of scaled operands.
    # From the smallest weight to the largest, the ratios are at most one.
    scores = tl.zeros((TOKENS, KEYS), dtype=tl.float32)
    weight = 0.0
    for step in tl.static_range(RANKS):
        rank = _nth_rank(filter_ptr, step, RANKS)
        next_weight = tl.load(filter_ptr + rank)
        if step > 0:
            scores *= tl.where(next_weight == 0, 0.0, weight / next_weight)
        weight = next_weight
        for start in range(0, width, WIDTH):
            inside = offsets < width - start
            query = tl.load(query_rows + rank * width + start, mask=inside[None, :], other=0.0)
            key = tl.load(key_rows + rank * width + start, mask=inside[:, None], other=0.0)
            scores = tl.dot(query, key, scores, input_precision="ieee")
    scores = tl.where(keys[None, :] < num_keys, scores * weight, float("-inf"))

    rows = tokens.to(tl.int64) * SIDES_OF_HEADS + side_of_head
    padded_keys = num_groups * GROUP
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
def _select_kernel(
    filter_scores_ptr,  # (N, H, 2, padded n) float32
    maxima_ptr,  # (N, H, 2, groups) float32
    query_ptr,  # (N, Q, 2, r, d)
    keys_ptr,  # (H, 2, n, r, d)
    filter_ptr,  # (H, 2, r) float32
    scores_ptr,  # (N, H, 2, r, k) float32
    indices_ptr,  # (N, H, 2, k) int64
    num_query_sets,
    num_keys,
    num_groups,
    width_8,
    k,
    SIDES_OF_HEADS: tl.constexpr,
    RANKS: tl.constexpr,
    GROUPS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    K_BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The k best keys of one token on one side of one head."""
    width = width_8 * 8
    row = tl.program_id(0).to(tl.int64)
    side_of_head = row % SIDES_OF_HEADS
    indices_row = indices_ptr + row * k

    # The k best groups, in the order of their keys.
    groups = tl.arange(0, GROUPS)
    real = groups < num_groups
    maxima = ordered(tl.load(maxima_ptr + row * num_groups + groups, mask=real, other=0.0))
    lowest = tl.min(tl.where(real, maxima, 0x7FFFFFFF))
    maxima = tl.where(real, maxima, LOWEST)
    above = tl.max(maxima).to(tl.int64) + 1
    chosen_groups = tl.minimum(k, num_groups)
    threshold = find_threshold(maxima, chosen_groups, lowest.to(tl.int64), above)
    chosen, place = number_chosen(maxima, threshold, chosen_groups)
    tl.store(indices_row + place, groups.to(tl.int64), mask=chosen)
    tl.debug_barrier()

    # The k best of their keys.
    candidates = tl.arange(0, CANDIDATES)
    group = tl.load(indices_row + candidates // GROUP, mask=candidates < chosen_groups * GROUP, other=num_groups)
    candidate_keys = (group * GROUP + candidates % GROUP).to(tl.int32)
    tl.debug_barrier()
    real = candidate_keys < num_keys
    padded_keys = num_groups * GROUP
    candidate_scores = tl.load(filter_scores_ptr + row * padded_keys + candidate_keys, mask=real, other=0.0)
    integers = ordered(candidate_scores)
    # k groups with such a maximum are k keys with such a score.
    lowest = tl.where(chosen_groups == k, threshold, tl.min(tl.where(real, integers, 0x7FFFFFFF)))
    integers = tl.where(real, integers, LOWEST)
    threshold = find_threshold(integers, k, lowest.to(tl.int64), above)
    chosen, place = number_chosen(integers, threshold, k)
    packed = sort_through_memory(indices_row, pack(integers, candidate_keys), place, chosen, k, K_BLOCK)
    remaining, best = unpack(packed)
    slots = tl.arange(0, K_BLOCK)
    tl.store(indices_row + slots, best.to(tl.int64), mask=slots < k)

    # Scores of the chosen keys in every rank; that of the largest filter weight is what the others leave of the sum.
    best = tl.where(slots < k, best, 0)
    offsets = tl.arange(0, WIDTH)
    query_set = tl.where(num_query_sets > 1, side_of_head // 2, 0)
    query_row = (
        query_ptr + ((row // SIDES_OF_HEADS * num_query_sets + query_set) * 2 + side_of_head % 2) * RANKS * width
    )
    key_rows = keys_ptr + (side_of_head * num_keys + best) * (RANKS * width)
    scores_row = scores_ptr + row * RANKS * k
    filter_ptr += side_of_head * RANKS
    last_rank = _nth_rank(filter_ptr, RANKS - 1, RANKS)
    last_weight = tl.load(filter_ptr + last_rank)
    for step in range(0, tl.where(last_weight == 0, RANKS, RANKS - 1)):
        rank = _nth_rank(filter_ptr, step, RANKS)
        products = tl.zeros((K_BLOCK, WIDTH), dtype=tl.float32)
        for start in range(0, width, WIDTH):
            inside = (offsets < width - start)[None, :]
            query = tl.load(query_row + rank * width + start + offsets[None, :], mask=inside, other=0.0)
            key = tl.load(key_rows[:, None] + rank * width + start + offsets[None, :], mask=inside, other=0.0)
            products += query.to(tl.float32) * key.to(tl.float32)
        scores = tl.sum(products, axis=1)
        remaining -= tl.load(filter_ptr + rank) * scores
        tl.store(scores_row + rank * k + slots, scores, mask=slots < k)
    if last_weight != 0:
        tl.store(scores_row + last_rank * k + slots, remaining / last_weight, mask=slots < k)


def select_keys(query: Tensor, keys: Tensor, filter_vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `ultramem.ops.select_keys`."""
    num_tokens = query.shape[0]
    heads, _, num_keys, ranks, _ = keys.shape
    query, keys, filter_vectors = aligned(query), aligned(keys), filter_vectors.float().contiguous()
    scores = torch.empty(num_tokens, heads, 2, ranks, k, dtype=torch.float32, device=query.device)
    indices = torch.empty(num_tokens, heads, 2, k, dtype=torch.int64, device=query.device)
    padded_keys = triton.cdiv(num_keys, GROUP.value) * GROUP.value
    at_most = max(1, WORKSPACE_BYTES // (heads * 2 * padded_keys * 4))
    chunk = triton.cdiv(num_tokens, triton.cdiv(num_tokens, at_most)) if num_tokens else 1  # all alike
    for start in range(0, num_tokens, chunk):
        part = slice(start, start + chunk)
        filter_scores, maxima = _filter(query[part], keys, filter_vectors)
        _select(filter_scores, maxima, query[part], keys, filter_vectors, scores[part], indices[part])
    return scores, indices


def aligned(rows: Tensor) -> Tensor:
    """Rows of a multiple of 8 numbers, as wide loads need them; the zeros behind add nothing to a product."""
    rows = rows.contiguous()
    return F.pad(rows, (0, -rows.shape[-1] % 8)) if rows.shape[-1] % 8 else rows


def _filter(query: Tensor, keys: Tensor, filter_vectors: Tensor) -> tuple[Tensor, Tensor]:
    num_tokens, num_query_sets = query.shape[:2]
    heads, _, num_keys, ranks, width = keys.shape
    num_groups = triton.cdiv(num_keys, GROUP.value)
    filter_scores = query.new_empty(num_tokens, heads, 2, num_groups * GROUP.value, dtype=torch.float32)
    maxima = query.new_empty(num_tokens, heads, 2, num_groups, dtype=torch.float32)
    tile = _filter_tile(num_tokens, query.dtype)
    grid = (triton.cdiv(num_tokens, tile["TOKENS"]) * triton.cdiv(num_keys, tile["KEYS"]) * heads * 2,)
    _filter_kernel[grid](
        query,
        keys,
        filter_vectors,
        filter_scores,
        maxima,
        num_tokens,
        num_query_sets,
        num_keys,
        num_groups,
        width // 8,
        SIDES_OF_HEADS=heads * 2,
        RANKS=ranks,
        **tile,
    )
    return filter_scores, maxima


def _filter_tile(num_tokens: int, dtype: torch.dtype) -> dict[str, int]:
    if dtype == torch.float32:
        return dict(TOKENS=64, KEYS=64, WIDTH=32, num_warps=4, num_stages=3)
    if num_tokens <= 16:
        return dict(TOKENS=16, KEYS=64, WIDTH=128, num_warps=4, num_stages=4)
    if num_tokens <= 256:
        return dict(TOKENS=64, KEYS=64, WIDTH=64, num_warps=4, num_stages=4)
    return dict(TOKENS=128, KEYS=256, WIDTH=64, num_warps=8, num_stages=4)


def _select(
    filter_scores: Tensor,
    maxima: Tensor,
    query: Tensor,
    keys: Tensor,
    filter_vectors: Tensor,
    scores: Tensor,
    indices: Tensor,
) -> None:
    num_tokens, num_query_sets = query.shape[:2]
    heads, _, num_keys, ranks, width = keys.shape
    num_groups, k = maxima.shape[-1], indices.shape[-1]
    _select_kernel[(num_tokens * heads * 2,)](
        filter_scores,
        maxima,
        query,
        keys,
        filter_vectors,
        scores,
        indices,
        num_query_sets,
        num_keys,
        num_groups,
        width // 8,
        k,
        SIDES_OF_HEADS=heads * 2,
        RANKS=ranks,
        **_select_blocks(num_tokens, num_groups, k, width),
    )


def _select_blocks(num_tokens: int, num_groups: int, k: int, width: int) -> dict[str, int]:
    groups = triton.next_power_of_2(num_groups)
    candidates = triton.next_power_of_2(min(k, num_groups) * GROUP.value)
    k_block = triton.next_power_of_2(k)
    # A warp alone needs no barriers; small batches have too few rows to hide a warp's latency.
    num_warps = min(8, max(1 if num_tokens > 256 else 4, max(groups, candidates) // 512, k_block // 64))
    return dict(
        GROUPS=groups,
        CANDIDATES=candidates,
        K_BLOCK=k_block,
        WIDTH=min(32 * num_warps, 128, triton.next_power_of_2(width)),
        num_warps=num_warps,
    )
