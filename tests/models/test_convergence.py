"""Training by the kernels ends where training by the reference ends, within the noise of seeds."""

from contextlib import nullcontext
from statistics import fmean

import pytest
import torch

from ultramem import ops
from ultramem.models import UltraMemForCausalLM
from ultramem.optim import RowAdamW, clip_gradients, parameter_groups

SEEDS, STEPS, BATCH, LENGTH = range(4), 100, 16, 32


def chain(vocabulary: int, sequences: int, seed: int) -> torch.Tensor:
    """Sequences in which a token follows the one before by one fixed table, but for every fifth, which is random."""
    generator = torch.Generator().manual_seed(seed)
    follows = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(vocabulary, (sequences, LENGTH), generator=generator)
    surprise = torch.rand(sequences, LENGTH, generator=generator) < 0.2
    for place in range(1, LENGTH):
        tokens[:, place] = torch.where(surprise[:, place], tokens[:, place], follows[tokens[:, place - 1]])
    return tokens


def trained(config, seed: int, device: str, by=nullcontext) -> tuple[float, float]:
    """The loss on other sequences, before and after training."""
    torch.manual_seed(seed)
    model = UltraMemForCausalLM(config).to(device)
    groups = parameter_groups(model, learning_rate=5e-3, weight_decay=0.1)
    optimizers = [
        torch.optim.AdamW([group for group in groups if group["name"] != "tables"]),
        RowAdamW([group for group in groups if group["name"] == "tables"]),
    ]
    sequences = chain(config.vocab_size, STEPS * BATCH, seed + 1).to(device)
    others = chain(config.vocab_size, 64, seed=1000).to(device)

    def loss(tokens):
        return model(input_ids=tokens, labels=tokens, use_cache=False).cross_entropy.item()

    with by():
        before = loss(others)
        for tokens in sequences.split(BATCH):
            model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
            clip_gradients(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return before, loss(others)


@pytest.mark.gpu
def test_the_end_of_training_differs_by_less_than_seeds_do(build):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: on a CPU the reference is all there is")
    config = build("ultramem").config
    by_kernels = [trained(config, seed, "cuda") for seed in SEEDS]
    by_reference = [trained(config, seed, "cuda", by=ops.use_reference) for seed in SEEDS]
    assert all(after < 0.7 * before for before, after in by_kernels + by_reference), "it learns"
    kernels, reference = [after for _, after in by_kernels], [after for _, after in by_reference]
    assert abs(fmean(kernels) - fmean(reference)) <= max(reference) - min(reference)
