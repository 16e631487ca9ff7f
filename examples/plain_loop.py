"""An UltraMem language model in a training loop of one's own: no trainer of ours, no data of ours.

It learns to continue sequences that count upwards from a random start. Run it: python examples/plain_loop.py
"""

import torch

from ultramem import UltraMemConfig, UltraMemForCausalLM
from ultramem.optim import parameter_groups

VOCABULARY, LENGTH, STEPS = 64, 32, 60


def batch(generator: torch.Generator) -> torch.Tensor:
    """16 sequences ``(16, LENGTH)`` that count upwards, round the vocabulary."""
    starts = torch.randint(VOCABULARY, (16, 1), generator=generator)
    return (starts + torch.arange(LENGTH)) % VOCABULARY


def main() -> None:
    """Trains for a few seconds and lets the model count on."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = UltraMemForCausalLM(
        UltraMemConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            memory="ultramem",
            memory_units=["1:2", "3:4"],  # read at block 1, added after block 2; and so on
            memory_num_keys=32,
            memory_key_size=16,
            memory_value_size=32,
            memory_top_k=8,
        )
    )
    # The tables have a group of their own: ten times the learning rate, no weight decay.
    groups = parameter_groups(model, learning_rate=3e-3, weight_decay=0.1, table_multiplier=10.0)
    optimizer = torch.optim.AdamW(groups)
    for step in range(STEPS):
        tokens = batch(generator)
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            print(f"step {step + 1}: loss {loss.item():.3f}")
    prompt = torch.arange(5).unsqueeze(0)
    print(model.generate(prompt, max_new_tokens=8, do_sample=False)[0].tolist())


if __name__ == "__main__":
    main()
