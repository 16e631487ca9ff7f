"""Decoding with the caches of transformers: keys, values and the state of the memory layers' convolutions."""

from inspect import signature

import pytest
import torch
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig, LlamaForCausalLM, StaticCache

from ultramem.models.cache_keyword import CACHE_KEYWORD, cache_keyword

WITH_CONVOLUTION = ("ultramem", "pkm-ladder", "ultramem-v2-ring", "peer-block")


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[4, *[1] * 7], [1] * 11, [2, 5, 1, 3]])
def test_cached_logits_equal_uncached_ones(build, tokens, member, pieces):
    model = build(member)
    cache, logits = None, []
    for piece in tokens.split(pieces, dim=1):
        output = model(piece, past_key_values=cache)
        cache = output[CACHE_KEYWORD]
        logits.append(output.logits)
    assert_same(torch.cat(logits, dim=1), model(tokens, use_cache=False).logits)


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_CONVOLUTION)
def test_a_static_cache_does_the_same(build, tokens, name):
    model = build(name)
    cache, logits = StaticCache(config=model.config, max_cache_len=16), []
    for piece in tokens.split([5, 1, 1, 3, 1], dim=1):
        logits.append(model(piece, past_key_values=cache).logits)
    assert_same(torch.cat(logits, dim=1), model(tokens, use_cache=False).logits)


@torch.no_grad()
@pytest.mark.parametrize("name", ["dense", *WITH_CONVOLUTION])
@pytest.mark.parametrize("pieces", [[11], [6, 1, 1, 3], [2, 9]])
def test_left_padding_changes_no_logits(build, tokens, name, pieces):
    model = build(name)
    padded, mask = tokens.clone(), torch.ones_like(tokens)
    lengths = [11, 8, 6]
    for row, length in enumerate(lengths):
        padded[row, : 11 - length] = 0
        mask[row, : 11 - length] = 0
    cache, logits, end = DynamicCache(config=model.config), [], 0
    for piece in padded.split(pieces, dim=1):
        end += piece.shape[1]
        logits.append(model(piece, attention_mask=mask[:, :end], past_key_values=cache).logits)
    together = torch.cat(logits, dim=1)
    for row, length in enumerate(lengths):
        alone = model(tokens[row : row + 1, 11 - length :], use_cache=False).logits
        assert_same(together[row, 11 - length :], alone[0])


@pytest.mark.parametrize("name", ["dense", "moe", *WITH_CONVOLUTION])
def test_greedy_generation_repeats_the_full_forward(build, tokens, name):
    model = build(name)
    generated = model.generate(tokens, max_new_tokens=6, do_sample=False)
    expected = tokens
    for _ in range(6):
        expected = torch.cat([expected, model(expected, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert generated.tolist() == expected.tolist()
    static = model.generate(tokens, max_new_tokens=6, do_sample=False, cache_implementation="static")
    assert static.tolist() == expected.tolist()


@pytest.mark.parametrize("name", WITH_CONVOLUTION)
def test_generation_from_a_padded_batch_equals_each_prompt_alone(build, tokens, name):
    model = build(name)
    padded, mask = tokens.clone(), torch.ones_like(tokens)
    padded[1, :5] = mask[1, :5] = 0
    together = model.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False)
    alone = model.generate(tokens[1:2, 5:], max_new_tokens=6, do_sample=False)
    assert together[1, 11:].tolist() == alone[0, 6:].tolist()


@pytest.mark.parametrize("name", ["dense", *WITH_CONVOLUTION])
def test_beam_search_reorders_the_cache(build, tokens, name):
    model = build(name)
    settings = {"num_beams": 4, "max_new_tokens": 8, "do_sample": False, "num_return_sequences": 4}
    cached = model.generate(tokens, **settings, use_cache=True)
    uncached = model.generate(tokens, **settings, use_cache=False)
    assert cached.tolist() == uncached.tolist()


@pytest.mark.parametrize("name", WITH_CONVOLUTION)
def test_speculation_rolls_the_cache_back(build, tokens, name):
    model = build(name)
    plain = model.generate(tokens[:1], max_new_tokens=8, do_sample=False)
    guessed = model.generate(tokens[:1], max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3)
    assert guessed.tolist() == plain.tolist()


@torch.no_grad()
def test_a_cache_has_the_name_that_transformers_gives_it(build, tokens):
    assert CACHE_KEYWORD in signature(LlamaForCausalLM.forward).parameters
    model = build("ultramem")
    expected = model(tokens, use_cache=False).logits[:, 6:]
    for takes_it in (model, model.model):
        cache = DynamicCache(config=model.config)
        assert takes_it(tokens[:, :6], **cache_keyword(cache))[CACHE_KEYWORD] is cache
        assert_same(model(tokens[:, 6:], **cache_keyword(cache)).logits, expected)
    cache = DynamicCache(config=model.config)
    settings = {"max_new_tokens": 3, "do_sample": False}
    generated = model.generate(tokens, **settings, **cache_keyword(cache), return_dict_in_generate=True)
    assert generated[CACHE_KEYWORD] is cache
    assert generated.sequences.equal(model.generate(tokens, **settings))


@pytest.mark.parametrize("name", ["dense", "ultramem-v2", "memory-plus"])
@pytest.mark.parametrize("number", [1, 3])
def test_continuous_batching_answers_each_prompt_as_if_alone(build, tokens, name, number):
    model = build(name)
    prompts = [tokens[row, : 5 + row].tolist() for row in range(number)]
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 60, "pad_token_id": 0}
    answers = model.generate_batch(
        prompts,
        generation_config=GenerationConfig(**settings),
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=32),
    )
    for prompt, answer in zip(prompts, answers.values(), strict=True):
        alone = model.generate(torch.tensor([prompt]), **settings)[0]
        assert prompt + answer.generated_tokens == alone.tolist()
