import pytest

from ultramem.generate import Sampling, generate
from ultramem.loading import load

GREEDY = Sampling(temperature=0, max_new_tokens=6)


@pytest.fixture(scope="module")
def model_and_tokenizer(trained):
    return load(trained)


def test_greedy_is_what_transformers_generates(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    inputs = tokenizer("The memory", return_tensors="pt", return_token_type_ids=False)
    expected = model.generate(**inputs, do_sample=False, max_new_tokens=6)
    assert generate(model, tokenizer, "The memory", GREEDY) == tokenizer.decode(expected[0], skip_special_tokens=True)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=1, max_new_tokens=6), Sampling(num_beams=3, seed=1)])
def test_the_pieces_are_the_text(model_and_tokenizer, sampling):
    pieces = []
    text = generate(*model_and_tokenizer, "The memory reads", sampling, write=pieces.append)
    assert "".join(pieces) == text
    assert text.startswith("The memory reads")


def test_text_is_streamed_in_pieces(model_and_tokenizer):
    pieces = []
    generate(*model_and_tokenizer, "The memory", Sampling(seed=0, max_new_tokens=30), write=pieces.append)
    assert len(pieces) > 5


def test_a_seed_repeats_the_text(model_and_tokenizer):
    texts = [generate(*model_and_tokenizer, "The", Sampling(seed=seed, temperature=2.0)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_an_empty_prompt_begins_a_document(model_and_tokenizer):
    assert generate(*model_and_tokenizer, "", GREEDY)


def test_generation_ends_with_the_context(model_and_tokenizer, monkeypatch):
    model, tokenizer = model_and_tokenizer
    context, generate_tokens = model.config.max_position_embeddings, model.generate

    def measured(tokens, **options):
        assert tokens.shape[1] + options["max_new_tokens"] == context
        return generate_tokens(tokens, **options)

    monkeypatch.setattr(model, "generate", measured)
    generate(model, tokenizer, "The row keeps", Sampling(max_new_tokens=10_000))


def test_a_prompt_without_room_is_refused(model_and_tokenizer):
    with pytest.raises(ValueError, match=r"tokens long and the model's context 48.*shorten"):
        generate(*model_and_tokenizer, "The memory reads the table. " * 30)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -1.0),
        ("top_k", -1),
        ("top_p", 0.0),
        ("num_beams", 0),
        ("repetition_penalty", 0.0),
    ],
)
def test_impossible_options_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        Sampling(**{field: value})
