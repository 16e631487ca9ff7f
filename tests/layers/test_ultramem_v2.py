import pytest
import torch

from ultramem.layers import GatedTable, SwiGLU, UltraMemV2Layer
from ultramem.layers.scores import score_variance
from ultramem.layers.ultramem_v2 import value_std
from ultramem.minimal import among_best, causal_conv, leading_vectors, permutation, rms_norm

HIDDEN, KEYS, PRE, VALUE = 20, 6, 7, 12
ALPHA, TAU, BETA = 0.01, 0.01, 0.1


def make(heads=1, rank=2, cores=2, expansion=4, top_k=5, conv=0, tables=1, keys=KEYS, **settings):
    torch.manual_seed(0)
    layer = UltraMemV2Layer(
        HIDDEN,
        num_keys=keys,
        key_size=8,
        pre_value_size=PRE,
        value_size=VALUE,
        top_k=top_k,
        num_heads=heads,
        tucker_rank=rank,
        num_cores=cores,
        expansion=expansion,
        query_conv_size=conv,
        tucker_penalty=ALPHA,
        tucker_margin=TAU,
        balance_coef=BETA,
        seed=7,
        **settings,
    )
    # Norm weights away from constants, so that a transposed one would be seen.
    for weight in (layer.query.norm_weight, layer.retrieval.keys.norm_weight):
        weight.data.mul_(torch.rand_like(weight) + 0.5)
    table = GatedTable(tables * keys**2, pre_width=PRE, width=VALUE, pre_std=1.0, std=1.0)
    layer.double(), table.double()
    layer.retrieval.refresh()
    return layer, table


def oracle(parameters, hidden, top_m, expansion, first_row):
    """The layer in plain einsum: scores of all keys, rows of all tokens, every gradient left to autograd."""
    keys, cores = parameters["retrieval.keys.weight"], parameters["retrieval.cores"]
    pre_values, values = parameters["pre_values.weight"], parameters["values.weight"]
    (B, T, _), (H, _, n, r, d), h = hidden.shape, keys.shape, cores.shape[1]
    convolved = (
        causal_conv(hidden, parameters["query.conv.weight"][:, 0]) if "query.conv.weight" in parameters else hidden
    )
    query = (convolved @ parameters["query.proj.weight"].T).view(B, T, 2, r, d)
    S = torch.einsum(
        "btsrd,hsnrd->bthsrn",
        rms_norm(query, parameters["query.norm_weight"]),
        rms_norm(keys, parameters["retrieval.keys.norm_weight"]),
    )
    x = hidden @ parameters["pre_proj.weight"].T
    pooled, slots, penalty, balance = hidden.new_zeros(B, T, values.shape[1]), [], 0.0, 0.0
    for head in range(H):
        C = cores[head].sum(dim=0)
        filtered = [
            torch.einsum("a,btan->btn", vector, S[:, :, head, side]) for side, vector in enumerate(leading_vectors(C))
        ]
        inside_rows, inside_columns = (among_best(scores, min(top_m, 128)) for scores in filtered)
        rows, columns = S[:, :, head].unbind(dim=2)
        grid = torch.einsum("btai,ac,btcj->btij", rows, C, columns)
        grid = grid.masked_fill(~(inside_rows[..., :, None] & inside_columns[..., None, :]), -torch.inf)
        slot = grid.flatten(2).topk(top_m).indices
        slots.append(slot)
        at_row = rows.gather(3, (slot // n)[:, :, None].expand(-1, -1, r, -1))
        at_column = columns.gather(3, (slot % n)[:, :, None].expand(-1, -1, r, -1))
        weights = torch.einsum("btam,iac,btcm->btmi", at_row, cores[head], at_column)
        shuffled = permutation(n, 7)[slot] if expansion > 1 else slot
        row = (first_row + shuffled // expansion) % len(values)
        gate = torch.einsum("btmp,btp->btm", pre_values[row], x)
        chunks = values[row].view(B, T, top_m, h, -1) * (weights * gate[..., None])[..., None]
        pooled = pooled + chunks.flatten(3).sum(dim=2)
        penalty = penalty + ALPHA / max(1, r - 1) * (torch.linalg.svdvals(C)[1:] - TAU).clamp(min=0).square().sum()
        for scores, key in zip(filtered, (slot // n, slot % n), strict=True):
            share = torch.nn.functional.one_hot(key, n).double().mean(dim=(0, 1, 2))
            balance = balance + n * (share * scores.softmax(dim=-1).mean(dim=(0, 1))).sum() / (2 * H)
    return pooled @ parameters["out_proj.weight"].T, penalty + BETA * balance, torch.stack(slots, dim=2)


CASES = [
    dict(),
    dict(heads=3, rank=3, cores=4, expansion=9, top_k=7),
    dict(rank=1, cores=1, expansion=1),
    dict(conv=3, rank=4, cores=3),
    dict(tables=3, window=2, first_row=2 * KEYS**2, expansion=1, cores=1),
    dict(tables=5, window=4, first_row=3 * KEYS**2, top_k=9),
    dict(keys=140, expansion=1, top_k=300),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_plain_einsum_in_output_and_every_gradient(case):
    layer, table = make(**case)
    hidden = torch.randn(2, 5, HIDDEN, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters()) | dict(table.named_parameters())
    ours = layer(hidden, table)
    theirs, auxiliary_loss, slots = oracle(
        parameters, hidden, layer.retrieval.top_k, layer.placement.expansion, layer.placement.first_row
    )
    assert torch.equal(ours.slots, slots)
    torch.testing.assert_close(ours.hidden_states, theirs)
    torch.testing.assert_close(ours.auxiliary_loss.double(), auxiliary_loss, rtol=1e-5, atol=1e-12)
    direction = torch.randn_like(theirs)
    parameters["hidden"] = hidden
    our_gradients = torch.autograd.grad(
        (ours.hidden_states * direction).sum() + ours.auxiliary_loss, parameters.values(), materialize_grads=True
    )
    their_gradients = torch.autograd.grad((theirs * direction).sum() + auxiliary_loss, parameters.values())
    for name, our, their in zip(parameters, our_gradients, their_gradients, strict=True):
        assert their.any(), f"{name}: the oracle's gradient is zero"
        torch.testing.assert_close(our, their, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


def test_every_rank_reads_a_query_of_its_own():
    layer, table = make(rank=2)
    layer(torch.randn(3, 4, HIDDEN, dtype=torch.float64), table).hidden_states.square().sum().backward()
    gradient = layer.query.proj.weight.grad.view(2, 2, 8, HIDDEN)  # sides, ranks, width
    assert (gradient.abs().amax(dim=-1) > 0).all(), "a part of the query's projection has no gradient"


def test_more_slots_are_chosen_than_there_are_candidates():
    layer, table = make(keys=140, expansion=1, top_k=300)
    output = layer(torch.randn(1, 3, HIDDEN, dtype=torch.float64), table)
    assert output.slots.shape == (1, 3, 1, 300)
    for slots in output.slots.flatten(0, 2):
        assert slots.unique().numel() == 300
        assert max((slots // 140).unique().numel(), (slots % 140).unique().numel()) <= 128


def test_losses_are_off_by_default():
    layer = UltraMemV2Layer(HIDDEN, num_keys=6, key_size=8, pre_value_size=PRE, value_size=VALUE, top_k=4)
    table = GatedTable(36, pre_width=PRE, width=VALUE, pre_std=1.0, std=1.0)
    assert layer(torch.randn(1, 3, HIDDEN), table).auxiliary_loss == 0


SIZES = [
    dict(num_keys=100, top_k=16, num_heads=1, tucker_rank=2, num_cores=2),
    dict(num_keys=64, top_k=32, num_heads=1, tucker_rank=2, num_cores=1),
    dict(num_keys=72, top_k=200, num_heads=1, tucker_rank=3, num_cores=1),
    dict(num_keys=50, top_k=12, num_heads=2, tucker_rank=2, num_cores=2),
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("pre_value_size", [64, 192])
def test_initial_scores_average_one_and_outputs_spread_as_the_feed_forward_branch(sizes, pre_value_size):
    """Equation 26 in our trunk: the branch's spread without its activation, which the equation leaves out too."""
    torch.manual_seed(0)
    hidden_size, num_layers, expansion = 192, 12, 4
    layer = UltraMemV2Layer(
        hidden_size, key_size=96, pre_value_size=pre_value_size, value_size=96, expansion=expansion, **sizes
    )
    logical = sizes | {"num_keys": layer.placement.num_keys}
    std = value_std(
        hidden_size=hidden_size,
        pre_value_size=pre_value_size,
        value_size=96,
        top_k=sizes["top_k"],
        num_heads=sizes["num_heads"],
        score_variance=score_variance(**logical),
        output_variance=1 / (2 * num_layers),
    )
    table = GatedTable(sizes["num_keys"] ** 2, pre_width=pre_value_size, width=96, pre_std=std, std=std)
    hidden = torch.randn(2, 128, hidden_size)
    values, _ = layer.retrieval(layer.query(hidden), layer.query.norm_weight)
    assert values.mean().item() == pytest.approx(1, rel=0.10)

    ffn = SwiGLU(hidden_size, 4 * hidden_size)
    ffn.reset_parameters(output_gain=(2 * num_layers) ** -0.5)
    branch = ffn.down_proj(ffn.gate_proj(hidden) * ffn.up_proj(hidden))
    assert layer(hidden, table).hidden_states.std().item() == pytest.approx(branch.std().item(), rel=0.15)


def test_equation_26_in_the_papers_own_trunk():
    """Linears of standard deviation sqrt(2 / (5 D)), the branch's last one over sqrt(2 L): both outputs measured."""
    torch.manual_seed(0)
    hidden_size, num_layers, width, sizes = 768, 20, 192, dict(top_k=32, num_heads=1)
    layer = UltraMemV2Layer(hidden_size, num_keys=100, key_size=96, pre_value_size=width, value_size=width, **sizes)
    sigma = score_variance(num_keys=200, **sizes, tucker_rank=2, num_cores=2)
    inner = round(3.25 * hidden_size)
    std = (0.2 * 3.25 * hidden_size / (32 * (1 + sigma) * width * width * num_layers)) ** 0.25
    assert value_std(
        hidden_size=hidden_size,
        pre_value_size=width,
        value_size=width,
        **sizes,
        score_variance=sigma,
        output_variance=0.4**3 * 3.25 / (2 * num_layers),
    ) == pytest.approx(std)
    table = GatedTable(100**2, pre_width=width, width=width, pre_std=std, std=std)
    hidden = torch.randn(1, 200, hidden_size)
    gate, up, down = (torch.randn(inner, hidden_size) * (2 / (5 * hidden_size)) ** 0.5 for _ in range(3))
    branch = ((hidden @ gate.T) * (hidden @ up.T)) @ down / (2 * num_layers) ** 0.5
    assert layer(hidden, table).hidden_states.std().item() == pytest.approx(branch.std().item(), rel=0.15)


def test_the_projections_have_the_equations_spread():
    layer = UltraMemV2Layer(400, num_keys=8, key_size=8, pre_value_size=200, value_size=200, top_k=4)
    for projection in (layer.pre_proj, layer.out_proj):
        assert projection.weight.std().item() == pytest.approx((2 / (5 * 400)) ** 0.5, rel=0.02)


def test_convolution_state_continues_a_sequence():
    layer, table = make(conv=4)
    hidden = torch.randn(2, 9, HIDDEN, dtype=torch.float64)
    whole = layer(hidden, table).hidden_states
    pieces = [
        layer(hidden[:, start:stop], table, context=hidden[:, max(0, start - 3) : start]).hidden_states
        for start, stop in [(0, 1), (1, 2), (2, 6), (6, 9)]
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


def test_sparse_tables_give_the_same_gradients():
    gradients = []
    for sparse in (False, True):
        layer, table = make()
        table.pre_values.sparse = table.values.sparse = sparse
        hidden = torch.randn(1, 2, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        layer(hidden, table).hidden_states.square().sum().backward()
        gradients.append([part.weight.grad for part in (table.pre_values, table.values)])
    for dense, sparse in zip(*gradients, strict=True):
        assert sparse.is_sparse
        assert sparse._nnz() <= 2 * 5
        torch.testing.assert_close(sparse.to_dense(), dense)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(expansion=8), "expansion is 8"),
        (dict(cores=5), "value_size 12"),
        (dict(top_k=145), "top_k is 145"),
    ],
)
def test_impossible_sizes_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        make(**change)


def test_a_table_too_small_for_the_window_is_named():
    layer, table = make(tables=1, window=4)
    with pytest.raises(ValueError, match="table has 36 rows"):
        layer(torch.randn(1, 2, HIDDEN, dtype=torch.float64), table)
