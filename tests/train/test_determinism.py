import torch

from ultramem.train.determinism import deterministic_algorithms, seed_step


def drawn(seed, step):
    seed_step(seed, step)
    return torch.rand(4).tolist()


def test_random_numbers_are_a_function_of_seed_and_step():
    torch.manual_seed(123)
    first = drawn(0, 7)
    torch.rand(1000)
    assert drawn(0, 7) == first
    draws = [drawn(seed, step) for seed in range(3) for step in range(3)]
    assert len({tuple(draw) for draw in draws}) == 9


def test_determinism_is_switched_on_and_back():
    for before in (False, True):
        torch.use_deterministic_algorithms(before)
        try:
            with deterministic_algorithms():
                assert torch.are_deterministic_algorithms_enabled()
                assert torch.is_deterministic_algorithms_warn_only_enabled()
            assert torch.are_deterministic_algorithms_enabled() == before
        finally:
            torch.use_deterministic_algorithms(False)
