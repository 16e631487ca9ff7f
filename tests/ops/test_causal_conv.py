import pytest
import torch
from torch.nn import functional as F

from ultramem import ops
from ultramem.ops.causal_conv import _causal_conv, _causal_conv_step

# sequences, tokens, channels, taps, inputs kept before them
SIZES = [
    (3, 7, 5, 4, 3),
    (2, 2, 5, 4, 3),
    (2, 9, 3, 4, 1),
    (1, 1, 1, 1, 0),
    (2, 5, 4, 3, 0),
    (0, 4, 3, 2, 1),
    (2, 0, 3, 2, 1),
]


def operands(size, dtype=torch.float64):
    batch, length, width, taps, kept = size
    torch.manual_seed(0)
    shapes = (batch, length, width), (width, taps), (batch, kept, width)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def naive(hidden_states, weight, context):
    sequence = torch.cat([context, hidden_states], dim=1)
    padded = F.pad(sequence, (0, 0, weight.shape[1] - 1, 0))
    windows = padded.unfold(1, weight.shape[1], 1)[:, context.shape[1] :]
    return torch.einsum("btdk,dk->btd", windows, weight)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_windows_times_taps_in_output_and_every_gradient(size):
    given = operands(size)
    out, expected = ops.causal_conv(*given), naive(*given)
    torch.testing.assert_close(out, expected)
    direction = torch.randn_like(out)
    ours = torch.autograd.grad(out, given, direction)
    theirs = torch.autograd.grad(expected, given, direction)
    for gradient, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, other)


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_step_keeps_the_last_inputs(size):
    hidden_states, weight, context = operands(size)
    expected = ops.causal_conv(hidden_states, weight, context)
    inputs = torch.cat([context, hidden_states], dim=1)
    assert torch.equal(ops.causal_conv_step(hidden_states, weight, context), expected)
    assert torch.equal(context, inputs[:, inputs.shape[1] - size[4] :])


@torch.no_grad()
def test_steps_of_any_length_are_the_whole_sequence():
    hidden_states, weight, _ = operands((2, 11, 5, 4, 0))
    context = torch.zeros(2, 5, 3, dtype=torch.float64).transpose(1, 2)
    parts = [ops.causal_conv_step(part, weight, context) for part in hidden_states.split([1, 2, 1, 5, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), ops.causal_conv(hidden_states, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_summed_in_float32(dtype):
    hidden_states, weight, context = operands((2, 50, 16, 4, 3), dtype)
    out = ops.causal_conv(hidden_states, weight.float(), context)
    exact = naive(hidden_states.double(), weight.double(), context.double())
    magnitude = naive(hidden_states.double().abs(), weight.double().abs(), context.double().abs())
    assert out.dtype == dtype
    half = torch.finfo(dtype).eps / 2
    assert ((out - exact).abs() <= half * exact.abs() + 8 * torch.finfo(torch.float32).eps * magnitude).all()


def test_gradients_have_their_operands_precision():
    hidden_states, weight, context = operands(SIZES[0], torch.bfloat16)
    single = weight.detach().float().requires_grad_()
    gradients = torch.autograd.grad(ops.causal_conv(hidden_states, single, context).sum(), (hidden_states, single))
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.float32]


def test_custom_op_contract():
    given = operands(SIZES[0], torch.float32)
    torch.library.opcheck(_causal_conv, given)
    torch.library.opcheck(_causal_conv_step, [tensor.detach() for tensor in given])


def test_a_compiled_step_changes_the_context_behind_a_view():
    hidden_states, weight, _ = (tensor.detach() for tensor in operands(SIZES[0], torch.float32))
    kept = torch.randn(3, 5, 3)
    results = []
    step = torch.compile(
        lambda state: ops.causal_conv_step(hidden_states, weight, state.transpose(1, 2)),
        fullgraph=True,
        backend="aot_eager",
    )
    for function in (step, lambda state: ops.causal_conv_step(hidden_states, weight, state.transpose(1, 2))):
        state = kept.clone()
        results.append((function(state), state))
    for compiled, eager in zip(*results, strict=True):
        assert torch.equal(compiled, eager)


@pytest.mark.parametrize(
    ("hidden_states", "weight", "context", "named"),
    [
        ((2, 5, 8), (7, 4), (2, 3, 8), r"weight \(7, 4\)"),
        ((2, 5, 8), (8, 4), (1, 3, 8), r"context \(1, 3, 8\)"),
        ((2, 5, 8), (8, 4), (2, 4, 8), "context has 4 inputs: 4 taps reach 3"),
    ],
)
@pytest.mark.parametrize("operation", [ops.causal_conv, ops.causal_conv_step])
def test_shapes_that_do_not_belong_together_are_named(operation, hidden_states, weight, context, named):
    with pytest.raises(ValueError, match=named):
        operation(torch.zeros(hidden_states), torch.zeros(weight), torch.zeros(context))
