import copy

import torch

from ultramem.layers.kept import Kept
from ultramem.layers.query import Keys


def make_keys() -> Keys:
    torch.manual_seed(0)
    keys = Keys(num_heads=1, num_keys=5, num_ranks=2, rank_width=4, norm=True)
    keys.reset_parameters()
    return keys


@torch.no_grad()
def test_normalised_keys_are_computed_once_in_inference():
    keys = make_keys()
    first = keys()
    assert keys() is first
    assert keys(torch.bfloat16).dtype == torch.bfloat16
    torch.testing.assert_close(keys(), first)


def test_with_gradients_nothing_is_kept():
    keys = make_keys()
    with torch.no_grad():
        kept = keys()
    assert keys().grad_fn is not None
    assert keys._normalised.value is None
    with torch.no_grad():
        assert keys() is not kept


def changes():
    def load(keys):
        keys.load_state_dict({name: value + 1 for name, value in keys.state_dict().items()})

    def step(keys):
        for fused in (False, True):
            for parameter in keys.parameters():
                parameter.grad = torch.ones_like(parameter)
            torch.optim.AdamW(keys.parameters(), lr=0.1, fused=fused).step()

    def replace(keys):
        keys.norm_weight = torch.nn.Parameter(keys.norm_weight + 1)

    def widen(keys):
        keys.double()

    return [load, step, replace, widen]


@torch.no_grad()
def test_a_change_of_the_weights_is_seen():
    for change in changes():
        keys = make_keys()
        before = keys()
        change(keys)
        torch.testing.assert_close(keys(), keys._normalise(keys.weight.dtype, [keys.norm_weight]), rtol=0, atol=0)
        assert not torch.equal(keys(), before) or keys().dtype != before.dtype, change.__name__


@torch.no_grad()
def test_the_weight_of_the_queries_norm_is_among_them():
    keys, weight = make_keys(), torch.nn.Parameter(torch.rand(2, 4))
    kept = keys(query_weight=weight)
    assert keys(query_weight=weight) is kept
    torch.testing.assert_close(kept, keys() * weight)
    kept = keys(query_weight=weight)
    weight.mul_(2)
    torch.testing.assert_close(keys(query_weight=weight), 2 * kept)


@torch.no_grad()
def test_a_copy_goes_its_own_way():
    keys = make_keys()
    keys()
    twin = copy.deepcopy(keys)
    twin.weight.mul_(torch.arange(1.0, 5.0))
    assert not torch.equal(twin(), keys())


def test_parameters_without_a_version_are_not_trusted():
    with torch.inference_mode():
        weight, double = torch.ones(2), Kept()
        assert double(lambda: weight * 2, weight).tolist() == [2, 2]
        weight.add_(1)
        assert double(lambda: weight * 2, weight).tolist() == [4, 4]
