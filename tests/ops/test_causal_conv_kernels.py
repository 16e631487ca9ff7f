"""The Triton kernels of the causal convolution: on a GPU where there is one, else their logic in the interpreter."""

import pytest
import torch

from ultramem import ops
from ultramem.ops.causal_conv import reference

kernels = pytest.importorskip("ultramem.ops.causal_conv.kernels")

# sequences, tokens, channels, taps, inputs kept before them
SIZES = [
    (3, 7, 5, 4, 3),
    (2, 1, 130, 4, 3),
    (2, 2, 5, 4, 3),
    (2, 9, 3, 4, 1),
    (1, 1, 1, 1, 0),
    (2, 5, 4, 3, 0),
    (0, 4, 3, 2, 1),
    (2, 0, 3, 2, 1),
    (2, 37, 257, 4, 2),
    (1, 270, 3, 7, 6),
]


def operands(size, device, dtype=torch.float32):
    batch, length, width, taps, kept = size
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(device, dtype)

    # The context lies as caches keep it, channels first.
    return normal(batch, length, width), normal(width, taps), normal(batch, width, kept).transpose(1, 2)


def all_results(implementation, hidden_states, weight, context, direction):
    """Output, the same of a step and what it keeps, and every gradient."""
    kept = context.clone(memory_format=torch.preserve_format)
    results = [
        implementation.causal_conv(hidden_states, weight, context),
        implementation.causal_conv_step(hidden_states, weight, kept),
        kept,
    ]
    return [*results, *implementation.causal_conv_backward(direction, hidden_states, weight, context)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.usefixtures("poisoned_memory")
def test_forward_step_and_every_gradient(size, dtype, kernel_device):
    """Nearer to float64 than twice what the reference loses at the same precision."""
    given = operands(size, kernel_device, dtype)
    given = (*given, operands(size, kernel_device, dtype)[0].flip(-1))
    exact = all_results(reference, *(tensor.double() for tensor in given))
    for e, p, o in zip(exact, all_results(reference, *given), all_results(kernels, *given), strict=True):
        assert (o.dtype, o.shape) == (p.dtype, p.shape)
        if o.numel():
            floor = torch.finfo(o.dtype).eps * e.abs().max()
            assert (o - e).abs().max() <= 2 * (p - e).abs().max() + floor


@pytest.mark.usefixtures("poisoned_memory")
def test_two_runs_give_the_same_bits(kernel_device):
    given = (*operands(SIZES[-2], kernel_device), operands(SIZES[-2], kernel_device)[0])
    for first, second in zip(all_results(kernels, *given), all_results(kernels, *given), strict=True):
        assert torch.equal(first, second)


def test_filters_that_reach_further_than_a_program(kernel_device, monkeypatch):
    """Only the program that changes the context may read it."""
    monkeypatch.setattr(kernels, "TOKENS", 2)
    given = operands((2, 9, 3, 4, 3), kernel_device)
    contexts = [given[2].clone(memory_format=torch.preserve_format) for _ in range(2)]
    ours, theirs = (
        implementation.causal_conv_step(*given[:2], context)
        for implementation, context in zip((kernels, reference), contexts, strict=True)
    )
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(*contexts)


@pytest.mark.usefixtures("poisoned_memory")
def test_a_weight_whose_gradient_has_more_parts_than_are_summed_at_once(kernel_device, monkeypatch):
    monkeypatch.setattr(kernels, "PARTS_A_SUM", 4)
    monkeypatch.setattr(kernels, "PLACES_A_GRADIENT", 8)
    hidden_states, weight, context = operands((2, 43, 5, 4, 3), kernel_device)
    ours = kernels.causal_conv_backward(hidden_states, hidden_states, weight, context)
    theirs = reference.causal_conv_backward(hidden_states, hidden_states, weight, context)
    for gradient, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, other)


def test_a_weight_of_other_precision(kernel_device):
    hidden_states, weight, context = operands(SIZES[0], kernel_device, torch.bfloat16)
    ours = kernels.causal_conv_backward(hidden_states, hidden_states, weight.float(), context)
    theirs = reference.causal_conv_backward(hidden_states, hidden_states, weight.float(), context)
    for gradient, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the dispatcher chooses a kernel for CUDA tensors only")
def test_the_operation_uses_them_and_can_be_told_not_to():
    hidden_states, weight, context = operands((3, 50, 96, 4, 3), "cuda")
    results = []
    for dtype in (torch.float32, torch.float64):  # float64 is left to the reference
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (hidden_states, weight, context)]
        convolved = ops.causal_conv(*leaves)
        results.append((convolved, *torch.autograd.grad(convolved.square().sum(), leaves)))
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, check_dtype=False, rtol=1e-4, atol=1e-4)
    with ops.use_reference():
        assert torch.equal(
            ops.causal_conv(hidden_states, weight, context), reference.causal_conv(hidden_states, weight, context)
        )
