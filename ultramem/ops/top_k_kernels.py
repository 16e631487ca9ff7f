"""Exact top-k inside a Triton program: find the k-th largest by bisection, then number the chosen elements.

Scores are compared as order-preserving integers, so that a search among them ends, and ties go to the lower index.
"""

import triton
import triton.language as tl

# Below every score, NaN included.
LOWEST: tl.constexpr = tl.constexpr(-(2**31))


@triton.jit
def ordered(scores):
    """float32 to int32 of the same order; both zeros become one."""
    bits = (scores + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def unordered(integers):
    """The float32 that `ordered` came from."""
    return (integers ^ ((integers >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def find_threshold(integers, k, low, high):
    """An integer that at least k elements reach and fewer than k exceed.

    Args:
        integers: any block of int32.
        k: at least 1.
        low: an int64 that k elements reach.
        high: an int64 that fewer than k reach.
    """
    while high - low > 1:
        middle = low + ((high - low) >> 1)
        count = tl.sum((integers >= middle.to(tl.int32)).to(tl.int32))
        low = tl.where(count >= k, middle, low)
        high = tl.where(count == k, middle + 1, tl.where(count > k, high, middle))
    return low.to(tl.int32)


@triton.jit
def number_chosen(integers, threshold, k):
    """Which elements of a vector are its top k, and their numbers 0..k-1 in the vector's order.

    All above the threshold are chosen, and as many of its equals as there is room for, the first ones first.
    """
    above = integers > threshold
    equal = integers == threshold
    room = k - tl.sum(above.to(tl.int32))
    # One scan counts both: the equals in the upper half of the word.
    counts = above.to(tl.int32) + (equal.to(tl.int32) << 16)
    before = tl.cumsum(counts, 0) - counts
    equal_before = before >> 16
    return above | (equal & (equal_before < room)), (before & 0xFFFF) + tl.minimum(equal_before, room)


@triton.jit
def pack(integers, index):
    """One int64 that sorts by score and then by the lower index."""
    return (integers.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def unpack(packed):
    """Scores (float32) and indices (int32) of `pack`."""
    return unordered((packed >> 32).to(tl.int32)), 0x7FFFFFFF - packed.to(tl.int32)


@triton.jit
def sort_through_memory(row, packed, place, chosen, k, K_BLOCK: tl.constexpr):
    """The chosen elements of a block as one sorted vector ``(K_BLOCK,)``, best first; beyond k it holds padding.

    A program cannot move elements to computed places in registers: they go through ``row``, k int64 of memory
    that only this program uses (an output row that is written later).
    """
    tl.store(row + place, packed, mask=chosen)
    tl.debug_barrier()
    offsets = tl.arange(0, K_BLOCK)
    compact = tl.load(row + offsets, mask=offsets < k, other=-(2**63))
    tl.debug_barrier()
    return tl.sort(compact, descending=True)
