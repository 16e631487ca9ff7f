"""Decoding with static shapes: on a CPU all but the capture, on a GPU the graph itself."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from packaging.version import Version
from torch.utils._pytree import tree_unflatten
from transformers import StaticCache
from transformers.generation import CompileConfig

from ultramem.models.cache_keyword import cache_keyword
from ultramem.models.decoding import DecodeGraph, unchanged


def prefilled(model, tokens) -> tuple[StaticCache, torch.Tensor]:
    cache = StaticCache(config=model.config, max_cache_len=32)
    with torch.no_grad():
        return cache, model(tokens, past_key_values=cache).logits[:, -1:].argmax(-1)


def greedy(step, cache, tokens, number=8) -> list[list[int]]:
    chosen = [tokens]
    with torch.no_grad():
        for _ in range(number):
            chosen.append(step(input_ids=chosen[-1], past_key_values=cache).logits.argmax(-1))
    return torch.cat(chosen, dim=1).tolist()


def test_a_step_that_is_taken_back_leaves_no_trace(build, tokens, member):
    model = build(member)
    expected = greedy(model, *prefilled(model, tokens))
    cache, first = prefilled(model, tokens)
    with unchanged(cache), torch.no_grad():
        model(torch.full_like(first, 7), past_key_values=cache)
    assert cache.get_seq_length() == tokens.shape[1]
    assert greedy(model, cache, first) == expected


def test_generate_uses_a_graph_unless_told_to_compile(build, monkeypatch):
    model = build("ultramem")
    assert isinstance(model.get_compiled_call(None), DecodeGraph)
    monkeypatch.setattr(torch, "compile", lambda function, **options: options)
    assert model.get_compiled_call(CompileConfig())["mode"] == "reduce-overhead"


def test_a_graph_takes_the_cache_by_the_name_that_transformers_gives_it(build, tokens, monkeypatch):
    def run_instead(step, cache, leaves, structure):
        step._leaves, step._graph = leaves, SimpleNamespace(replay=lambda: None)
        step._output = step.model(past_key_values=cache, **tree_unflatten(leaves, structure))

    monkeypatch.setattr(DecodeGraph, "_capture", run_instead)
    model = build("ultramem")
    cache, first = prefilled(model, tokens)
    logits = DecodeGraph(model)(input_ids=first, **cache_keyword(cache)).logits
    cache, first = prefilled(model, tokens)
    assert logits.equal(model(first, past_key_values=cache).logits)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["dense", "moe", "ultramem"])
def test_compiled_blocks_share_one_code_and_choose_the_same_tokens(build, tokens, graphs, name, attention):
    """In the prompt's pass, in a step's, and no more in the steps after, with another cache too."""
    model = build(name, attn_implementation=attention)
    expected = greedy(model, *prefilled(model, tokens))
    model.compile_regions()
    regions = 3 if name == "ultramem" else 2  # before a block's cache, after it, and a memory's queries
    cache, first = prefilled(model, tokens)
    assert graphs.frame_count == regions
    assert greedy(model, cache, first) == expected
    assert graphs.frame_count == 2 * regions
    assert greedy(model, *prefilled(model, tokens)) == expected
    assert graphs.frame_count == 2 * regions


@pytest.mark.slow
def test_a_compiled_step_is_one_graph_and_chooses_the_same_tokens(build, tokens):
    model = build("ultramem")
    settings = {"max_new_tokens": 4, "do_sample": False}
    compiling = CompileConfig(mode=None, fullgraph=True, backend="aot_eager")
    compiling._compile_all_devices = True  # else a CPU is left out
    compiled = model.generate(tokens, **settings, cache_implementation="static", compile_config=compiling)
    assert compiled.equal(model.generate(tokens, **settings))


@pytest.fixture
def on_gpu(build):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    return lambda name, dtype=torch.float32: build(name, **sizes).to("cuda", dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_chooses_the_same_tokens(on_gpu, tokens, member, dtype):
    if member in ("moe", "ultramem-moe") and dtype == torch.float32:
        pytest.skip("without grouped_mm the experts' loop asks the host")
    model, tokens = on_gpu(member, dtype), tokens.cuda()
    expected = greedy(model, *prefilled(model, tokens))
    cache, first = prefilled(model, tokens)
    step = DecodeGraph(model)
    assert greedy(step, cache, first) == expected
    assert greedy(step, *prefilled(model, tokens)) == expected, "captured anew for another cache"


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["dense", "ultramem"])
def test_a_graph_of_compiled_blocks_chooses_the_same_tokens(on_gpu, tokens, name, attention):
    if attention == "eager" and Version(transformers.__version__) < Version("5.21"):
        pytest.skip("before transformers 5.21 an eager mask copies a number from the host, which no graph may")
    model, tokens = on_gpu(name), tokens.cuda()
    expected = greedy(model, *prefilled(model, tokens))
    model.set_attn_implementation(attention)
    model.compile_regions()
    assert greedy(DecodeGraph(model), *prefilled(model, tokens)) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["dense", "ultramem"])
def test_generation_of_a_padded_batch_is_the_same_with_graphs(on_gpu, tokens, name):
    model, tokens = on_gpu(name), tokens.cuda()
    mask = torch.ones_like(tokens)
    tokens[1, :5] = mask[1, :5] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False}
    expected = model.generate(tokens, **settings)
    assert model.generate(tokens, **settings, cache_implementation="static").equal(expected)


@pytest.mark.gpu
def test_torch_compile_captures_graphs_too(on_gpu, tokens):
    model, tokens = on_gpu("ultramem"), tokens.cuda()
    expected = model.generate(tokens, max_new_tokens=6, do_sample=False)
    compiled = model.generate(
        tokens,
        max_new_tokens=6,
        do_sample=False,
        cache_implementation="static",
        compile_config=CompileConfig(mode="reduce-overhead", fullgraph=True),
    )
    assert compiled.equal(expected)


@pytest.mark.gpu
def test_a_unit_beside_the_blocks_gives_what_it_gives_between_them(on_gpu, tokens):
    model, tokens = on_gpu("ultramem"), tokens.cuda()
    plain = model(tokens, use_cache=False).logits  # with gradients: in order
    with torch.no_grad():
        beside = [model(tokens, use_cache=False).logits for _ in range(20)]
    for logits in beside:
        torch.testing.assert_close(logits, plain, rtol=0, atol=1e-5)
