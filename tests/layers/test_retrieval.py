import copy
import gc

import pytest
import torch

from ultramem.layers.retrieval import ProductKeyRetrieval, TuckerRetrieval


def tucker(rank=2, num_keys=12, heads=2, cores=2, top_k=4, width=6, margin=0.15, penalty=0.001):
    retrieval = TuckerRetrieval(
        num_heads=heads,
        num_keys=num_keys,
        num_ranks=rank,
        rank_width=width,
        num_cores=cores,
        top_k=top_k,
        penalty=penalty,
        margin=margin,
    )
    retrieval.reset_parameters()
    return retrieval


def leading_pair(retrieval):
    return retrieval.left_vectors[..., 0], retrieval.right_vectors[..., 0]


def assert_fresh(retrieval):
    """The buffers decompose the cores of this moment, sign of the leading pair apart."""
    core = retrieval.cores.detach().sum(dim=1)
    left, values, _ = torch.linalg.svd(core)
    u, t = leading_pair(retrieval)
    torch.testing.assert_close(torch.einsum("ha,hab,hb->h", u, core, t), values[:, 0])
    torch.testing.assert_close((u * left[..., 0]).sum(-1).abs(), torch.ones(len(u)))


# Table 2.2 of the method: recall of the filter over the whole grid within the positive quadrant.
@pytest.mark.parametrize(("ratio", "recall"), [(0.0, 0.9999), (0.1, 0.999), (0.25, 0.997), (0.5, 0.97)])
def test_filter_finds_the_best_slots_of_the_positive_quadrant(ratio, recall):
    torch.manual_seed(0)
    num_keys, top_k, rank, width = 1138, 32, 2, 16
    retrieval = tucker(rank, num_keys, heads=1, cores=1, top_k=top_k, width=width)
    left, right = (torch.linalg.qr(torch.randn(rank, rank)).Q for _ in range(2))
    with torch.no_grad():
        retrieval.cores.copy_((left @ torch.diag(torch.tensor([1.0, ratio])) @ right.T).view(1, 1, rank, rank))
    query = torch.randn(16, 1, 2, rank, width)
    slots = retrieval(query).slots[:, 0]

    keys = retrieval.keys()[0]
    row, column = (torch.einsum("nrd,krd->nkr", query[:, 0, side], keys[side]) for side in (0, 1))
    grid = torch.einsum("nia,ab,njb->nij", row, retrieval.cores[0, 0], column)
    u, t = (vectors[0] for vectors in leading_pair(retrieval))
    positive = (row @ u > 0)[:, :, None] & (column @ t > 0)[:, None]
    best = grid.masked_fill(~positive, -torch.inf).flatten(1).topk(top_k).indices
    found = (slots[:, :, None] == best[:, None]).any(dim=1).float().mean()
    assert found >= recall


def test_slots_are_sorted_and_values_are_the_cores_scores():
    torch.manual_seed(0)
    retrieval = tucker(rank=3, cores=2)
    query = torch.randn(5, 1, 2, 3, 6)
    values, slots = retrieval(query)
    row, column = (torch.einsum("nrd,hkrd->nhkr", query[:, 0, s], retrieval.keys()[:, s]) for s in (0, 1))
    grid = torch.einsum("nhia,hcab,nhjb->nhcij", row, retrieval.cores, column).flatten(3)
    torch.testing.assert_close(values, grid.gather(3, slots[:, :, None].expand(-1, -1, 2, -1)))
    totals = values.sum(dim=2)
    assert (totals[..., :-1] >= totals[..., 1:]).all()
    assert slots.sort(dim=-1).values.diff(dim=-1).min() > 0, "a slot was chosen twice"


def test_product_keys_find_the_exact_best_sums():
    torch.manual_seed(0)
    retrieval = ProductKeyRetrieval(num_heads=2, num_keys=40, key_size=8, top_k=7, norm=False)
    retrieval.reset_parameters()
    query = torch.randn(6, 2, 2, 1, 8)
    values, slots = retrieval(query)
    row, column = (torch.einsum("nhd,hkd->nhk", query[:, :, s, 0], retrieval.keys()[:, s, :, 0]) for s in (0, 1))
    best = (row[..., :, None] + column[..., None, :]).flatten(2).topk(7)
    assert torch.equal(slots, best.indices)
    torch.testing.assert_close(values[:, :, 0], best.values)


def test_first_vectors_have_positive_sums_and_keep_their_sign():
    torch.manual_seed(0)
    retrieval = tucker(rank=3)
    assert all((vector.sum(-1) > 0).all() for vector in leading_pair(retrieval))
    before = [vector.clone() for vector in leading_pair(retrieval)]
    # Negating the core negates one vector of the pair, whichever; small steps never turn both around.
    for _ in range(50):
        with torch.no_grad():
            retrieval.cores.add_(torch.randn_like(retrieval.cores) * 0.02)
        retrieval.refresh()
        after = [vector.clone() for vector in leading_pair(retrieval)]
        assert all(((old * new).sum(-1) > 0).all() for old, new in zip(before, after, strict=True))
        before = after


def change_by_optimizer(retrieval):
    optimizer = torch.optim.SGD(retrieval.parameters(), lr=0.5)
    retrieval(torch.randn(4, 1, 2, 2, 6)).values.square().sum().backward()
    optimizer.step()
    return retrieval


def change_by_hand(retrieval):
    with torch.no_grad():
        retrieval.cores.add_(torch.rand_like(retrieval.cores))
    retrieval(torch.randn(4, 1, 2, 2, 6))
    return retrieval


def change_by_load(retrieval):
    other = tucker().state_dict()
    retrieval.load_state_dict({"cores": other["cores"]}, strict=False)
    retrieval(torch.randn(4, 1, 2, 2, 6))
    return retrieval


def change_a_copy(retrieval):
    return change_by_hand(copy.deepcopy(retrieval))


def step_a_copy_that_only_runs_compiled(retrieval):
    """Without an eager forward pass the optimizer's hook is all there is."""
    copied = copy.deepcopy(retrieval)
    copied.cores.grad = torch.randn_like(copied.cores)
    torch.optim.SGD(copied.parameters(), lr=0.5).step()
    return copied


@pytest.mark.parametrize(
    "change", [change_by_optimizer, change_by_hand, change_by_load, change_a_copy, step_a_copy_that_only_runs_compiled]
)
def test_vectors_are_never_stale(change):
    torch.manual_seed(0)
    retrieval = tucker()
    stale = [vector.clone() for vector in leading_pair(retrieval)]
    changed = change(retrieval)
    assert not torch.equal(stale[0], changed.left_vectors[..., 0])
    assert_fresh(changed)


def test_a_step_decomposes_all_its_layers_at_once_however_many_came_and_went(monkeypatch):
    for _ in range(3):
        tucker()
    gc.collect()
    retrievals, decompose, decomposed = [tucker(), tucker()], torch.linalg.svd, []
    monkeypatch.setattr(torch.linalg, "svd", lambda cores: decomposed.append(cores) or decompose(cores))
    cores = [retrieval.cores for retrieval in retrievals]
    for core in cores:
        core.grad = torch.randn_like(core)
    torch.optim.SGD(cores[::-1], lr=0.1).step()
    torch.testing.assert_close(decomposed, [torch.cat([core.detach().sum(dim=1) for core in cores[::-1]])])
    together = [retrieval.left_vectors.clone() for retrieval in retrievals]
    for retrieval, vectors in zip(retrievals, together, strict=True):
        retrieval.refresh()
        torch.testing.assert_close(retrieval.left_vectors, vectors)


def test_auxiliary_loss_and_its_gradient_are_those_of_the_singular_values():
    torch.manual_seed(0)
    retrieval = tucker(rank=4, margin=0.05, penalty=0.01).double()
    retrieval.refresh()
    values = torch.linalg.svdvals(retrieval.cores.sum(dim=1))
    expected = 0.01 / 3 * (values[:, 1:] - 0.05).clamp(min=0).square().sum()
    loss = retrieval.auxiliary_loss()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    ours, theirs = (torch.autograd.grad(value, retrieval.cores)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-9)


def test_autocast_does_not_round_the_auxiliary_loss():
    torch.manual_seed(0)
    retrieval = tucker(rank=4, margin=0.05, penalty=0.01)
    retrieval.refresh()
    with torch.autocast("cpu", torch.bfloat16):
        loss = retrieval.auxiliary_loss()
    assert loss.dtype == torch.float32
    assert loss.equal(retrieval.auxiliary_loss())


def test_rank_one_has_no_penalty():
    assert tucker(rank=1).auxiliary_loss().item() == 0
