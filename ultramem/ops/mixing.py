"""A 32-bit mixing hash: pseudo-random bits that are the same on every device, in PyTorch and in Triton."""

from torch import Tensor

MASK = 0xFFFFFFFF


def mix_bits(values: Tensor) -> Tensor:
    """Scrambles the low 32 bits: int64 in, int64 in ``[0, 2**32)`` out, any shape. Multiply and shift, twice."""
    mixed = values & MASK
    mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & MASK
    mixed = ((mixed ^ (mixed >> 12)) * 0x297A2D39) & MASK
    return mixed ^ (mixed >> 15)
