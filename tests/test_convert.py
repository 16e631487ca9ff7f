from math import isqrt

import pytest
import torch
from safetensors.torch import save_file

from ultramem.convert import from_released, read_released

HIDDEN, WIDTH, VALUE, HEADS, RANKS, CORES = 24, 6, 8, 2, 2, 2


def released(num_physical_keys=5, expansion=4, seed=0, sign=1.0):
    """Parameters as the authors' layer holds them, drawn at random."""
    draw = torch.Generator().manual_seed(seed)
    num_keys = isqrt(expansion) * num_physical_keys
    state = {
        "query_proj.weight": torch.randn(2 * WIDTH, HIDDEN, generator=draw) * 0.1,
        "keys": torch.randn(HEADS, 2, num_keys, WIDTH, RANKS, generator=draw) * WIDTH**-0.5,
        "values_for_look_up": torch.randn(num_physical_keys**2, VALUE, generator=draw),
        "values_proj.weight": torch.randn(HIDDEN, expansion * VALUE, generator=draw),
        "query_norm.weight": torch.rand(WIDTH, generator=draw) + 0.5,
        "keys_norm.weight": torch.rand(WIDTH, generator=draw) + 0.5,
        "shuffle_index": torch.randperm(num_keys**2, generator=draw),
        **{f"tucker_core.{i}": torch.rand(HEADS, RANKS, RANKS, generator=draw) for i in range(CORES)},
    }
    left, _, right = torch.linalg.svd(sum(state[f"tucker_core.{i}"] for i in range(CORES)))
    turn = sign * left[..., 0].sum(dim=-1, keepdim=True).sign()
    state["tucker_core_u"] = (turn * left[..., 0])[None, :, None]
    state["tucker_core_v"] = (turn * right[:, 0])[None, :, None]
    return state


def outputs(state, hidden, top_k):
    """The authors' layer, written anew from its description: one token after another, no kernels."""

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    keys = norm(state["keys"].transpose(-1, -2), state["keys_norm.weight"])  # H 2 n r d
    cores = torch.stack([state[f"tucker_core.{i}"] for i in range(CORES)])
    rows, num_keys = len(state["values_for_look_up"]), keys.shape[2]
    expansion = num_keys**2 // rows
    results = []
    for token in hidden.flatten(0, -2):
        query = norm((state["query_proj.weight"] @ token).view(2, WIDTH), state["query_norm.weight"])
        pooled = torch.zeros(expansion, VALUE, dtype=hidden.dtype)
        for head in range(HEADS):
            row_scores, column_scores = (torch.einsum("nrd,d->nr", keys[head, side], query[side]) for side in range(2))
            i = (row_scores @ state["tucker_core_u"][0, head, 0]).topk(top_k).indices
            j = (column_scores @ state["tucker_core_v"][0, head, 0]).topk(top_k).indices
            grids = torch.einsum("ia,cab,jb->cij", row_scores[i], cores[:, head], column_scores[j])
            chosen = grids.sum(0).flatten().topk(top_k).indices
            for place in chosen.tolist():
                slot = i[place // top_k] * num_keys + j[place % top_k]
                group, row = divmod(state["shuffle_index"][slot].item(), rows)
                weights = grids[:, place // top_k, place % top_k]
                value = state["values_for_look_up"][row].view(CORES, -1)
                pooled[group] += (weights[:, None] * value).flatten()
        results.append(state["values_proj.weight"] @ pooled.flatten())
    return torch.stack(results).view(*hidden.shape[:-1], -1)


def double(state):
    return {name: value.double() if value.is_floating_point() else value for name, value in state.items()}


@pytest.mark.parametrize("expansion", [1, 4, 9])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("top_k", [1, 3, 7])
def test_outputs_are_the_released_layers(expansion, sign, top_k):
    state = double(released(num_physical_keys=8, expansion=expansion, sign=sign))
    hidden = torch.randn(2, 5, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layer, table = from_released(state, top_k=top_k, unfold=expansion > 1)
    ours = layer.double()(hidden, table.double()).hidden_states
    torch.testing.assert_close(ours, outputs(state, hidden, top_k), rtol=1e-5, atol=1e-5)


def test_the_norms_epsilon_counts():
    state = double(released(expansion=1))
    state["keys"] *= 1e-2  # so small that the epsilon weighs
    hidden = torch.randn(1, 4, HIDDEN, dtype=torch.float64)
    theirs = outputs(state, hidden, 3)
    right, wrong = (
        layer.double()(hidden, table.double()).hidden_states
        for layer, table in (from_released(state, top_k=3, norm_epsilon=epsilon) for epsilon in (1e-5, 1e-6))
    )
    torch.testing.assert_close(right, theirs, rtol=1e-5, atol=1e-5)
    assert (wrong - theirs).abs().max() > 1e-3


def test_expansion_with_a_stored_permutation_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"expansion 4.*stored random permutation.*unfold=True.*16 times"):
        from_released(released(expansion=4), top_k=3)


def test_a_layer_that_never_took_a_step_gets_our_sign():
    state = released(expansion=1)
    state["tucker_core_u"].zero_()
    state["tucker_core_v"].zero_()
    layer, _ = from_released(state, top_k=3)
    assert (layer.retrieval.left_vectors[..., 0].sum(-1) > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("keys"), "lacks keys"),
        (lambda state: state.update(pre_values_proj=torch.ones(1)), "pre_values_proj is nothing"),
        (lambda state: state.update(keys=torch.ones(2, 2, 5)), "keys .* should be"),
        (lambda state: state.update({"query_norm.weight": torch.ones(3)}), r"query_norm.weight is \(3,\)"),
        (lambda state: state.update(shuffle_index=torch.zeros(25, dtype=torch.int64)), "no permutation"),
        (lambda state: state.update({"tucker_core.1": torch.ones(2, 3, 3)}), r"tucker_core.1 is \(2, 3, 3\)"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    state = released(expansion=1)
    change(state)
    with pytest.raises(ValueError, match=message):
        from_released(state, top_k=3)


def test_more_slots_than_our_candidates_are_refused():
    with pytest.raises(ValueError, match="128 candidates"):
        from_released(released(expansion=1), top_k=160)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_files_are_read_by_their_prefix(tmp_path, suffix):
    state = {f"transformer.mem_blocks.1.{name}": value for name, value in released().items()} | {"x": torch.ones(1)}
    path = tmp_path / f"model.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    read = read_released(path, "transformer.mem_blocks.1.")
    assert read.keys() == released().keys()
    assert all(torch.equal(read[name], value) for name, value in released().items())
    with pytest.raises(ValueError, match="no names that begin with 'other'"):
        read_released(path, "other")


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


def test_no_code_in_a_file_is_executed(tmp_path, capsys):
    torch.save({"keys": Malicious()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        read_released(tmp_path / "model.pt")
    assert "executed" not in capsys.readouterr().out


def test_no_file_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"none\.pt cannot be read"):
        read_released(tmp_path / "none.pt")
