import json
from math import log2

import pytest
import torch

from benchmarks.study import knowledge
from benchmarks.study.biographies import ATTRIBUTES, BITS_A_PERSON, biographies, people, write_corpus
from benchmarks.study.recall import quiz
from benchmarks.study.results import Results
from ultramem.accounting import count_flops, count_parameters
from ultramem.data.prepare import prepare
from ultramem.models.modeling_ultramem import UltraMemForCausalLM
from ultramem.recipes.registry import with_model


def test_people_are_drawn_alike_every_time_and_more_of_them_keep_the_first():
    assert people(20) == people(20)
    assert [person.name for person in people(50)[:20]] == [person.name for person in people(20)]
    assert people(20, seed=1) != people(20)
    assert len({person.name for person in people(5000)}) == 5000


def test_a_fact_costs_what_its_values_say():
    assert ATTRIBUTES["birth date"].bits == pytest.approx(log2(12 * 28 * 200))
    assert pytest.approx(log2(12 * 28 * 200 * 200 * 300 * 100 * 263)) == BITS_A_PERSON
    for attribute in ATTRIBUTES.values():
        assert len(set(attribute.values)) == len(attribute.values)


def test_every_biography_tells_all_facts_with_the_whole_name():
    persons = people(3)
    told = list(biographies(persons, exposures=2))
    assert len(told) == 6
    assert told[0] != told[3]
    for person, text in zip(persons * 2, told, strict=True):
        assert text.count(person.name) == len(ATTRIBUTES)
        assert all(value in text for value in person.facts.values())
    assert told == list(biographies(persons, exposures=2))


def test_too_many_people_are_refused():
    with pytest.raises(ValueError, match="400000 names"):
        people(400_001)


def test_the_rivals_spend_equal_compute():
    rivals = [knowledge.rival(name, 1000) for name in knowledge.RIVALS]
    flops = [count_flops(rival.model, knowledge.SEQUENCE_LENGTH).per_token for rival in rivals]
    assert max(flops) / min(flops) < 1.05
    sparse = [count_parameters(rival.model).without_embeddings for rival in rivals[1:]]
    assert max(sparse) / min(sparse) < 1.2


@pytest.mark.parametrize("num_people", [1000, 4000, 16000])
def test_everybody_is_told_of_a_hundred_times_whatever_their_number(num_people):
    config = knowledge.rival("dense", num_people)
    told = config.steps * config.tokens_per_step / (num_people * knowledge.TOKENS_A_BIOGRAPHY)
    assert told == pytest.approx(knowledge.EXPOSURES, rel=0.05)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twelve people, and their prepared biographies."""
    folder = tmp_path_factory.mktemp("people")
    write_corpus(folder / "people.jsonl", people(12), exposures=10)
    prepare(folder / "people.jsonl", folder / "prepared", vocab_size=400, validation_fraction=0.05)
    return folder / "prepared"


class Oracle(torch.nn.Module):
    """Knows the sentences of some people by heart, and nothing of the others."""

    def __init__(self, sentences, vocab_size):
        super().__init__()
        self.sentences, self.vocab_size = sentences, vocab_size
        self.device = torch.device("cpu")

    def forward(self, input_ids, use_cache):
        logits = torch.zeros(*input_ids.shape, self.vocab_size)
        for row, tokens in enumerate(input_ids.tolist()):
            for sentence in self.sentences:
                if tokens[1 : 1 + len(sentence)] == sentence:
                    for position, token in enumerate(sentence):
                        logits[row, position, token] = 100.0
        return type("Output", (), {"logits": logits})


@pytest.mark.parametrize("known", [0, 3, 12])
def test_the_quiz_counts_what_is_known(corpus, known):
    from tokenizers import Tokenizer

    persons = people(12)
    tokenizer = Tokenizer.from_file(str(corpus / "tokenizer.json"))
    sentences = [
        tokenizer.encode(attribute.wordings[0].format(name=person.name, value=person.facts[name])).ids
        for person in persons[:known]
        for name, attribute in ATTRIBUTES.items()
    ]
    result = quiz(Oracle(sentences, tokenizer.get_vocab_size()), persons, corpus)
    assert result["exact_recall"] == pytest.approx(known / 12)
    if known == 12:
        assert result["bits_a_person"] == pytest.approx(BITS_A_PERSON)
        assert result["stored_bits"] == pytest.approx(12 * BITS_A_PERSON)
    if known == 0:
        assert result["stored_bits"] == 0


def test_an_untrained_model_knows_nothing(corpus):
    model = UltraMemForCausalLM(with_model(knowledge.rival("ultramem", 12), vocab_size=400).model)
    result = quiz(model, people(12), corpus)
    assert result["exact_recall"] == 0
    assert result["stored_bits"] == 0
    assert model.training


@pytest.mark.usefixtures("nothing_kept")
def test_the_experiment_runs_from_end_to_end(tmp_path, monkeypatch, in_this_process):
    for name, value in {"EXPOSURES": 8, "VOCABULARY": 300, "STEPS": 4, "LEARNING_RATES": (8e-3, 16e-3)}.items():
        monkeypatch.setattr(knowledge, name, value)
    arguments = ["--data", str(tmp_path / "people"), "--out", str(tmp_path / "out"), "--people", "6", "8"]
    knowledge.main(arguments)
    rows = Results(knowledge.EXPERIMENT, tmp_path / "out", tmp_path / "none").rows()
    assert all(row["afterwards"]["persons"] == int(row["name"].split("-")[-2]) for row in rows)
    assert json.loads(json.dumps(rows)) == rows
    for name in knowledge.RIVALS:
        fewest = {_rate(row): row["validation_loss"] for row in rows if row["name"] == f"{name}-6-people"}
        assert set(fewest) == {8e-3, 16e-3}
        (more,) = (row for row in rows if row["name"] == f"{name}-8-people")
        assert _rate(more) == min(fewest, key=fewest.get), "the best rate is what more people are told of with"
    monkeypatch.setattr(knowledge, "make", lambda wanted, **_: pytest.fail("it trains again") if wanted() else None)
    knowledge.main(arguments)


def _rate(row):
    return row["settings"]["optimizer"]["learning_rate"]
