"""`ultramem.ops.mixing` in Triton."""

import triton
import triton.language as tl


def as_int32(value: int) -> int:
    """The low 32 bits as a signed integer, which is an int32 argument of a kernel whatever its value."""
    value &= 0xFFFFFFFF
    return value - (value >> 31 << 32)


@triton.jit
def mix_bits(values):
    """As `ultramem.ops.mixing.mix_bits`; uint32 out."""
    mixed = values.to(tl.uint32)
    mixed = (mixed ^ (mixed >> 15)) * 0x2C1B3C6D
    mixed = (mixed ^ (mixed >> 12)) * 0x297A2D39
    return mixed ^ (mixed >> 15)
