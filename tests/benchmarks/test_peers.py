"""How peers' kernels are found and called: made-up checkouts compute what the real ones do, in plain PyTorch."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils import cpp_extension

pytest.importorskip("triton")

from benchmarks.ops import lookup, peers, retrieval
from ultramem import ops

EXPANSION, CORES, NUM_KEYS, WIDTH = 4, 2, 8, 16


def operands():
    torch.manual_seed(0)
    table = torch.randn(NUM_KEYS**2 // EXPANSION, WIDTH).bfloat16()
    return table, torch.randint(NUM_KEYS**2, (5, 7)), torch.randn(5, CORES, 7), NUM_KEYS


@pytest.fixture
def memory_plus(tmp_path):
    """A checkout whose bag is PyTorch's."""
    file = tmp_path / "lingua/product_key/xformer_embeddingbag.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import torch\n"
        "def xformers_embedding_bag(indices, weight, per_sample_weights):\n"
        "    return torch.einsum('nkd,nk->nd', weight[indices].float(), per_sample_weights.float()).to(weight.dtype)\n"
    )
    return tmp_path


def pooled_by_places(places, table, scores, groups):
    rows, group = places.long() % len(table), places.long() // len(table)
    in_group = torch.nn.functional.one_hot(group, groups).float()
    values = table.float()[rows].unflatten(-1, (len(scores), -1))
    return torch.einsum("nke,hnk,nkhv->nehv", in_group, scores.float(), values).flatten(1)


def authors_forward(places, table, scores, rows, layer_rows, shift, groups, padding, has_padding):
    assert (rows, layer_rows, shift, has_padding) == (len(table), len(table), 0, False)
    assert (places.dtype, scores.dtype) == (torch.int32, torch.bfloat16)
    return pooled_by_places(places, table, scores, groups).to(table.dtype)


def authors_backward(places, table, scores, gradient, total, rows, layer_rows, shift, groups, padding, has_padding):
    with torch.enable_grad():
        leaves = [tensor.detach().float().requires_grad_() for tensor in (table, scores)]
        pooled = pooled_by_places(places, *leaves, groups)
        grad_table, grad_scores = torch.autograd.grad(pooled, leaves, gradient.float())
    total += grad_table
    return grad_scores.to(scores.dtype)


def authors_step1(scores, filters, k):
    filtered = torch.einsum("snhjr,shr->snhj", scores.float(), filters)
    keys = filtered.topk(k).indices
    return scores.gather(3, keys[..., None].expand(-1, -1, -1, -1, 2)), keys.int()


def authors_step2(candidates, cores, k):
    row, column = candidates.float()
    grids = torch.einsum("nhia,cab,nhjb->cnhij", row, cores[:, 0], column).flatten(-2)
    best, positions = grids.sum(dim=0).topk(k)
    return best, grids.gather(-1, positions[None].expand(len(cores), -1, -1, -1)), positions.int()


@pytest.fixture
def authors(tmp_path, monkeypatch):
    """A checkout, a machine that can build it, and what comes out."""
    built = {
        "authors_fused_lookup": SimpleNamespace(forward=authors_forward, backward=authors_backward),
        "authors_fused_topk": SimpleNamespace(
            fused_einsum_topk_step1=authors_step1, fused_einsum_topk_step2=authors_step2
        ),
    }

    def load(name, sources, **flags):
        assert all(Path(source).is_file() for source in sources)
        return built[name]

    for name in ("fused_lookup", "fused_topk"):
        for kind in ("cpp", "cu"):
            file = tmp_path / f"fuse_ops/{name}.{kind}"
            file.parent.mkdir(exist_ok=True)
            file.touch()
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", "/usr/local/cuda")
    monkeypatch.setattr(cpp_extension, "is_ninja_available", lambda: True)
    monkeypatch.setattr(cpp_extension, "load", load)
    return tmp_path


@pytest.mark.parametrize("kind", [peers.AuthorsLookup, peers.MemoryPlusBag])
def test_a_lookup_gets_the_same_reads_as_ours(kind, request, monkeypatch):
    peer = kind(request.getfixturevalue("authors" if kind is peers.AuthorsLookup else "memory_plus"), EXPANSION)
    assert peer.can_take(WIDTH, CORES)
    given = operands()
    peers.check_agreement("forward", peer.forward(*peer.inputs(*given)), peer.ours(*given))
    monkeypatch.setattr(lookup, "microseconds", lambda run: run() and 5.0)
    gradient = torch.randn(5, EXPANSION, WIDTH).bfloat16()
    assert lookup.measure_backward(peer, gradient, *given) == 5.0


def test_widths_without_a_kernel_are_left_out(authors, memory_plus):
    assert not peers.AuthorsLookup(authors, EXPANSION).can_take(24, 2)
    assert not peers.MemoryPlusBag(memory_plus, EXPANSION).can_take(192, 2)
    given = operands()
    assert lookup.measure_backward(peers.MemoryPlusBag(memory_plus, 4), given[0], given[0][:, :12], *given[1:]) is None


def test_a_broken_peer_is_left_out_and_another_result_stops_the_run(capsys):
    with peers.left_out_if_broken("authors"):
        raise RuntimeError("no such kernel")
    assert "authors is left out: RuntimeError: no such kernel" in capsys.readouterr().err
    with pytest.raises(peers.Disagreement), peers.left_out_if_broken("authors"):
        raise peers.Disagreement("it is off ours")


def test_another_result_is_not_timed(memory_plus):
    peer = peers.MemoryPlusBag(memory_plus, EXPANSION)
    table, slots, weights, num_keys = operands()
    wrong = peer.forward(*peer.inputs(table, slots.roll(1), weights, num_keys))
    with pytest.raises(peers.Disagreement, match=r"memory_plus, here is off ours by .* rounding explains"):
        peers.check_agreement("memory_plus, here", wrong, peer.ours(table, slots, weights, num_keys))
    with pytest.raises(peers.Disagreement, match="nan"):
        peers.check_agreement("memory_plus", torch.full_like(wrong, torch.nan), wrong)


def test_the_authors_retrieval_finds_the_same_slots(authors, monkeypatch):
    peer = peers.AuthorsRetrieval(authors)
    monkeypatch.setattr(peer, "LAUNCH", 4)
    torch.manual_seed(0)
    heads, num_keys, k = 2, 20, 4
    query, keys = torch.randn(3, 1, 2, 2, 8), torch.randn(heads, 2, num_keys, 2, 8)
    filters, cores = torch.rand(heads, 2, 2), torch.rand(heads, 2, 2, 2)
    scores = peer.scores(query, keys)
    product = peer.product(query, keys)().view(2, 2, 3, heads, num_keys)
    torch.testing.assert_close(product.permute(0, 2, 3, 4, 1), scores)
    candidates, chosen = peer.select(scores, filters, k)
    parts = peer.parts(candidates)
    assert [part.shape[1] for part in parts] == [4, 2]  # three tokens of two heads
    positions = peer.rescore(parts, cores, k)
    ours, indices = ops.select_keys(query, keys, filters, k)
    _, slots = ops.rescore(ours, indices, cores, num_keys, k)
    assert peer.recall(chosen, positions, slots, num_keys) == 1
    assert peer.recall(chosen, positions, slots + 1, num_keys) < 1


def test_a_machine_that_cannot_build_says_what_it_needs(authors, monkeypatch):
    monkeypatch.setattr(cpp_extension, "is_ninja_available", lambda: False)
    with pytest.raises(peers.MissingPeer, match=r"which needs ninja"):
        peers.AuthorsLookup(authors, EXPANSION)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    with pytest.raises(peers.MissingPeer, match="which needs nvcc"):
        peers.AuthorsLookup(authors, EXPANSION)


@pytest.mark.parametrize(
    ("module", "flag", "named"),
    [
        (lookup, "--authors", "fused_lookup.cpp"),
        (lookup, "--memory-plus", "xformer_embeddingbag.py"),
        (retrieval, "--authors", "fused_topk.cpp"),
    ],
)
def test_a_folder_that_is_no_checkout_is_one_line(module, flag, named, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module.__name__, flag, str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2
    out, line = capsys.readouterr()
    assert out == ""
    assert line.count("\n") == 1
    assert line.startswith(f"{flag} {tmp_path}: there is no ")
    assert named in line


def test_a_broken_peer_costs_its_own_numbers_alone(capsys):
    with peers.left_out_if_broken("authors"):
        raise RuntimeError("no kernel image is available")
    assert capsys.readouterr().err == "authors is left out: RuntimeError: no kernel image is available\n"
    with pytest.raises(peers.MissingPeer), peers.left_out_if_broken("authors"):
        raise peers.MissingPeer("give a checkout")
