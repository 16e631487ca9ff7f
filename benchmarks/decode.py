"""One decoding step at the paper's 1.6B scale: dense, mixture of experts, UltraMem; ``python -m benchmarks.decode``.

UltraMem (arXiv 2411.12364), figures 1b and 6c: the time of a step against the batch, and against the size of the table.
All models have one trunk (2 key and value heads), random weights in bfloat16 and a full cache of 2048 tokens, and run
as `ultramem.models.decoding.DecodeGraph`, from a token's number to the next token's. The trunk is plain, or its blocks
are compiled, with PyTorch's fused attention or with products and a softmax that a compiler may fuse. The floor is the
bytes of the weights and of the cache that a step reads, at the speed of a device copy. Before anything is timed, the
graph must choose the same tokens as the model that it captures, whose first blocks must give what plain ones do.
"""

import argparse
import gc
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MixtralConfig, StaticCache
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from benchmarks.ops.timing import copy_speed
from benchmarks.record import show, write
from ultramem import recipes
from ultramem.accounting import count_active_parameters, count_parameters
from ultramem.models import UltraMemConfig, UltraMemForCausalLM
from ultramem.models.decoding import DecodeGraph

CONTEXT = 2048
STEPS = 24
COMPARED_BLOCKS = 7  # UltraMem's first memory has added its output by then
TRUNKS = {"compiled": "sdpa", "compiled-eager": "eager", "plain": "sdpa"}  # and their attention
EXPERTS = ("grouped_mm", "batched_mm")
MODELS = {"dense": "dense-1.6b", "moe": "moe-1.6b-2in34", "ultramem": "ultramem-1.6b-x12"}
# Selecting every token's experts copies their matrices: 76 MB a token here.
BATCHED_MM_TOKENS = 64


class Experts(nn.Module):
    """A feed-forward branch of transformers' own experts behind a plain router."""

    def __init__(self, config: UltraMemConfig) -> None:
        super().__init__()
        self.num_experts_per_tok = config.num_experts_per_tok
        self.router = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = MixtralExperts(
            MixtralConfig(
                num_local_experts=config.num_experts,
                hidden_size=config.hidden_size,
                intermediate_size=config.moe_intermediate_size,
                hidden_act="silu",
            )
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Maps `(B, T, D)` to `(B, T, D)`."""
        hidden_ND = hidden_states.flatten(0, 1)
        weights, chosen = self.router(hidden_ND).float().softmax(dim=-1).topk(self.num_experts_per_tok)
        weights = (weights / weights.sum(dim=-1, keepdim=True)).to(hidden_ND.dtype)
        return self.experts(hidden_ND, chosen, weights).view_as(hidden_states)


def build(config: UltraMemConfig) -> UltraMemForCausalLM:
    """The model with random weights in bfloat16, made on the GPU."""
    release()  # compiled blocks hold themselves: two models at once are more than a GPU has
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = UltraMemForCausalLM(config)
            if config.ffn == "moe":
                for block in model.model.layers:
                    block.mlp = Experts(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model = model.to_empty(device="cuda").eval()
    model.initialize_weights()
    for module in model.modules():
        if isinstance(module, Experts):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model


def filled_cache(model: UltraMemForCausalLM, batch: int) -> tuple[StaticCache, Tensor]:
    """A cache that lacks a few of 2048 random tokens, and tokens to go on with."""
    cache = StaticCache(config=model.config, max_cache_len=CONTEXT)
    tokens = torch.randint(model.config.vocab_size, (batch, 4), device="cuda")
    # Of compiled blocks only what a step runs is compiled.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        chosen = model(tokens, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
        for layer in cache.layers:
            layer.keys.normal_()
            layer.values.normal_()
            layer.cumulative_length.fill_(CONTEXT - STEPS - 2)
    return cache, chosen


def greedy(step: Any, cache: StaticCache, tokens: Tensor, number: int) -> Tensor:
    """The next tokens."""
    chosen = [tokens]
    with torch.no_grad():
        for _ in range(number):
            chosen.append(step(input_ids=chosen[-1], past_key_values=cache).logits.argmax(-1))
    return torch.cat(chosen, dim=1)


def check_same_tokens(model: UltraMemForCausalLM, batch: int = 4, number: int = 16) -> None:
    """Refuses to go on where the graph chooses other tokens than the model that it captures."""
    chosen = []
    for step in (model, DecodeGraph(model)):
        torch.manual_seed(1)
        chosen.append(greedy(step, *filled_cache(model, batch), number))
    same = (chosen[0] == chosen[1]).sum().item()
    print(f"  {same} of {chosen[0].numel()} tokens of the graph are the model's", flush=True)
    if same != chosen[0].numel():
        raise SystemExit("the graph chooses other tokens than the model")


def check_near_plain(model: UltraMemForCausalLM, attention: str, batch: int = 4) -> None:
    """Refuses to go on where compiled blocks do not give what plain ones with fused attention do, up to rounding.

    Rounding after each branch makes a difference of some hundredths, a wrong block one of its size. What was rounded
    differently goes to other experts: of a model that has them the median token after the first blocks counts, of the
    others the logits too.
    """
    outputs = []
    for stance, kernel in (("force_eager", "sdpa"), ("default", attention)):
        torch.manual_seed(1)
        model.set_attn_implementation("sdpa")  # so that both go on with the same tokens
        cache, tokens = filled_cache(model, batch)
        model.set_attn_implementation(kernel)
        with torch.no_grad(), torch.compiler.set_stance(stance):
            outputs.append(model(input_ids=tokens, past_key_values=cache, output_hidden_states=True))
    plain, compiled = (output.hidden_states[: COMPARED_BLOCKS + 1][-1].float() for output in outputs)
    error = ((compiled - plain).norm(dim=-1) / plain.norm(dim=-1)).median().item()
    print(f"  the first blocks differ from plain ones by {error:.2g} of their output's norm", flush=True)
    if not error < 0.05:
        raise SystemExit("the compiled blocks do not give what the plain ones do")
    if model.config.ffn == "moe":
        return
    plain, compiled = (output.logits.float() for output in outputs)
    error = ((compiled - plain).norm() / plain.norm()).item()
    print(f"  logits differ from the plain model's by {error:.2g} of their norm", flush=True)
    if not error < 0.1:
        raise SystemExit("the trunk's logits are not the plain model's")


def choose_trunk(model: UltraMemForCausalLM, trunk: str) -> None:
    """Compiles the blocks where the trunk says so, and chooses its attention. A plain trunk comes first."""
    torch.compiler.reset()  # a process has room for few models' code
    if trunk != "plain":
        model.compile_regions()
        check_near_plain(model, TRUNKS[trunk])
    model.set_attn_implementation(TRUNKS[trunk])


def step_milliseconds(model: UltraMemForCausalLM, batch: int) -> float:
    """Median of whole steps, each from the tokens that the last one chose."""
    cache, tokens = filled_cache(model, batch)
    step = DecodeGraph(model)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(STEPS + 1)]
    for event in events:
        event.record()
        tokens = step(input_ids=tokens, past_key_values=cache).logits.argmax(-1)
    torch.cuda.synchronize()
    # The first interval holds the capture.
    return median(begun.elapsed_time(ended) for begun, ended in pairwise(events[1:]))


def bytes_of_a_step(config: UltraMemConfig, batch: int) -> float:
    """What a step must read in bfloat16: dense matrices once, the experts hit on average, the rows, the cache."""
    active = count_active_parameters(config)
    head = config.vocab_size * config.hidden_size
    dense = active.attention + active.memory + head
    if config.ffn == "moe":
        hit = config.num_experts * (1 - (1 - config.num_experts_per_tok / config.num_experts) ** batch)
        dense += active.ffn * hit / config.num_experts_per_tok
    else:
        dense += active.ffn
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * CONTEXT
    return 2.0 * (dense + batch * (active.tables + cache))


def release() -> None:
    """Gives back what nothing refers to."""
    gc.collect()
    torch.cuda.empty_cache()


def measure(
    name: str, config: UltraMemConfig, trunks: list[str], batches: list[int], copy: float
) -> Iterator[dict[str, Any]]:
    """Rows of one model; every row is one batch, one trunk and, for experts, one implementation of them."""
    begun = time.perf_counter()
    model = build(config)
    sparse = count_parameters(config)
    print(f"{name}: {sparse.total / 1e9:.2f}B parameters, built in {time.perf_counter() - begun:.1f} s", flush=True)
    implementations = EXPERTS if config.ffn == "moe" else ("",)
    for trunk, implementation in product(sorted(trunks, key="plain".__ne__), implementations):
        print(f"{name}, {trunk} trunk {implementation}", flush=True)
        for module in model.modules():
            if isinstance(module, MixtralExperts):
                module.config._experts_implementation = implementation
        choose_trunk(model, trunk)
        if implementation == implementations[0]:
            check_same_tokens(model)
        for batch in batches:
            if implementation == "batched_mm" and batch > BATCHED_MM_TOKENS:
                continue
            milliseconds = step_milliseconds(model, batch)
            floor = bytes_of_a_step(config, batch) / copy / 1e3
            yield {
                "model": name,
                "trunk": trunk,
                "experts": implementation,
                "batch": batch,
                "table_rows": config.memory_num_keys**2 if config.memory else 0,
                "parameters": sparse.total,
                "active_parameters": count_active_parameters(config).total,
                "floor_ms": floor,
                "step_ms": milliseconds,
                "tokens_per_second": batch / milliseconds * 1e3,
                "share_of_floor": floor / milliseconds,
            }
            release()


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every row's time in multiples of the dense model's with the same trunk, and how many times the best mixture of
    experts with that trunk is slower."""
    dense: dict[tuple[str, int], float] = {}
    moe: dict[tuple[str, int], float] = {}
    for row in rows:
        place, milliseconds = (row["trunk"], row["batch"]), row["step_ms"]
        if row["model"] == "dense":
            dense[place] = milliseconds
        elif row["model"] == "moe":
            moe[place] = min(milliseconds, moe.get(place, float("inf")))

    def ratios(row: dict[str, Any]) -> dict[str, float | None]:
        place, milliseconds = (row["trunk"], row["batch"]), row["step_ms"]
        return {
            "of_dense": milliseconds / dense[place] if place in dense else None,
            "moe_is_slower": moe[place] / milliseconds if place in moe else None,
        }

    return [row | ratios(row) for row in rows]


def keep(rows: list[dict[str, Any]], name: str) -> None:
    path = write(with_ratios(rows) if name == "decode" else rows, name)
    print(
        "  " + "  ".join(f"{key} {value:.4g}" for key, value in rows[-1].items() if isinstance(value, float)),
        flush=True,
    )
    print(f"  kept in {path}", flush=True)


def sized(config: UltraMemConfig, layers: int | None) -> UltraMemConfig:
    """The trunk that all share: 2 key and value heads; fewer blocks for a quick look."""
    config = replace(config, num_key_value_heads=2)
    if layers is None:
        return config
    units = [
        unit for unit, (_, add) in zip(config.memory_units, config.memory_unit_blocks, strict=True) if add < layers
    ]
    return replace(config, num_hidden_layers=layers, memory_units=units)


def main() -> None:
    """Measures, prints tables and keeps the rows after each of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--trunks", nargs="+", default=list(TRUNKS), choices=list(TRUNKS))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 4, 16, 64, 256])
    parser.add_argument("--tables", nargs="*", type=int, default=[1, 4, 16, 64], help="sizes in multiples of the least")
    parser.add_argument("--layers", type=int, help="blocks, for a quick look; all by default")
    arguments = parser.parse_args()
    copy = copy_speed()
    print(f"{torch.cuda.get_device_name()}: copies {copy / 1e6:.2f} TB/s read and written", flush=True)

    rows: list[dict[str, Any]] = []
    for name in arguments.models:
        config = sized(recipes.get(MODELS[name]).model, arguments.layers)
        for row in measure(name, config, arguments.trunks, arguments.batches, copy):
            rows.append(row)
            keep(rows, "decode")
    if rows:
        show(with_ratios(rows), title="decoding step")

    grown: list[dict[str, Any]] = []
    full = sized(recipes.get(MODELS["ultramem"]).model, arguments.layers)
    for times in arguments.tables:
        num_keys = round(full.memory_num_keys * (times / 64) ** 0.5)
        config = replace(full, memory_num_keys=num_keys)
        for row in measure(f"ultramem, table x{times}", config, arguments.trunks[:1], [64], copy):
            first = grown[0]["step_ms"] if grown else row["step_ms"]
            grown.append(row | {"of_the_least": row["step_ms"] / first})
            keep(grown, "decode_table")
    if grown:
        show(grown, title="the table grows")


if __name__ == "__main__":
    main()
