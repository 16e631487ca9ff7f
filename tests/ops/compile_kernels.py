"""Compile every kernel for an H100, on any machine: Triton's interpreter forgives what its compiler refuses."""

from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from ultramem.ops.causal_conv import kernels as causal_conv
from ultramem.ops.gather_dot import kernels as gather_dot
from ultramem.ops.lookup import backward_kernels as lookup_backward
from ultramem.ops.lookup import kernels as lookup
from ultramem.ops.lookup.permutation import Placement
from ultramem.ops.lookup_step import kernels as lookup_step
from ultramem.ops.rescore import kernels as rescore
from ultramem.ops.row_adam import kernels as row_adam
from ultramem.ops.select_keys import backward_kernels as select_keys_backward
from ultramem.ops.select_keys import kernels as select_keys

H100 = GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.uint16: "*u16",
    torch.bool: "*i1",
}
ADAM = (0.1, 0.9, 0.95, 1e-8, 0.1)
compiled = set()


def kind(argument: Any) -> Any:
    """What the compiler is told of an argument."""
    if isinstance(argument, tuple):
        return tuple(map(kind, argument))
    if isinstance(argument, torch.Tensor):
        return POINTERS[argument.dtype]
    return "fp32" if isinstance(argument, float) else "i32"


def compile_instead(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
    """In the place of a launch."""
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | named
    options = {name: given.pop(name) for name in ("num_warps", "num_stages") if name in given}
    signature, constants = {}, {}
    for place, parameter in enumerate(kernel.params):
        argument = given[parameter.name]
        if parameter.is_constexpr or argument is None or (type(argument) is int and argument == 1):
            signature[parameter.name], constants[(place,)] = "constexpr", argument
        else:
            signature[parameter.name] = kind(argument)
    triton.compile(ASTSource(kernel, signature, constants), target=H100, options=options)
    compiled.add(kernel.__name__)


def convolve(length: int) -> None:
    hidden_states, weight = torch.zeros(2, length, 48), torch.zeros(48, 4)
    context = torch.zeros(2, 48, 3).transpose(1, 2)
    causal_conv.causal_conv_step(hidden_states, weight, context)
    causal_conv.causal_conv_backward(hidden_states, hidden_states, weight, context)


def rescore_candidates(candidates: int) -> None:
    scores, indices = torch.zeros(300, 2, 2, 2, candidates), torch.zeros(300, 2, 2, candidates, dtype=torch.int64)
    cores = torch.zeros(2, 2, 2, 2)
    values, _, positions = rescore.rescore(scores, indices, cores, 100, k=candidates)
    rescore.rescore_backward(values, positions, scores, cores)


def choose_keys() -> None:
    query, keys = torch.zeros(300, 1, 2, 2, 32), torch.zeros(2, 2, 100, 2, 32)
    scores, indices = select_keys.select_keys(query, keys, torch.zeros(2, 2, 2), 16)
    select_keys_backward.select_keys_backward(scores, indices.zero_(), query, keys)


def read_rows() -> None:
    placement, table = Placement(num_keys=20, expansion=4, seed=3), torch.zeros(100, 64)
    slots, weights, pooled = torch.zeros(600, 40, dtype=torch.int64), torch.zeros(600, 2, 40), torch.zeros(600, 4, 64)
    for dtype in (torch.float32, torch.bfloat16):
        lookup.lookup(table.to(dtype), slots, weights, placement, 4)
    lookup_backward.lookup_backward(pooled, table, slots, weights, placement, 4)
    lookup_backward.lookup_backward_rows(pooled, table, slots, weights, placement, 4)
    gather_dot.gather_dot(table, slots, torch.zeros(600, 64), placement)
    step = torch.ones(())
    lookup_step.lookup_step(
        pooled, table, torch.zeros(100, 64), torch.zeros(100, 1), slots, weights, step, placement, *ADAM, False, 7
    )  # fmt: skip
    for rows, factor in ((None, None), (None, step), (torch.arange(100), step)):
        state = table, torch.zeros(100, 64), torch.zeros(100, 64)
        row_adam.row_adam(*state, rows, torch.zeros(100, 64), step, *ADAM, 7, factor)


if __name__ == "__main__":
    with patch.object(JITFunction, "run", compile_instead):
        for length in (1, 3, 40):  # in decode, in a piece of a prompt, over several blocks
            convolve(length)
        for candidates in (32, 42):  # both grids
            rescore_candidates(candidates)
        choose_keys()
        read_rows()
    print(*sorted(compiled))
