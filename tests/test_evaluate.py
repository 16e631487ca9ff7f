import json
import math
import sys

import pytest

from tests.conftest import NOUNS
from ultramem.data.prepare import prepare
from ultramem.evaluate import evaluate_tasks, evaluate_text
from ultramem.loading import load

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def model_and_tokenizer(trained):
    return load(trained)


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    questions = [
        {"question": f"The {noun}", "choices": ["reads the row.", "qqq zzz xxx"], "label": 0} for noun in NOUNS[:10]
    ]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in questions))
    file = tmp_path / "nouns.yaml"
    file.write_text(TASK.format(name="nouns", file=data))
    return file


def test_text_is_measured_as_in_training(model_and_tokenizer, prepared, trained, monkeypatch):
    monkeypatch.setattr(model_and_tokenizer[0].config, "max_position_embeddings", 32)
    measured = evaluate_text(*model_and_tokenizer, prepared, batch_size=4)

    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "validation_loss" in line][-1]
    assert measured["validation_loss"] == pytest.approx(last["validation_loss"], rel=1e-5)
    assert measured["bits_per_byte"] == pytest.approx(last["bits_per_byte"], rel=1e-5)
    assert measured["perplexity"] == pytest.approx(math.exp(measured["validation_loss"]))


def test_the_batch_does_not_matter(model_and_tokenizer, prepared):
    losses = [evaluate_text(*model_and_tokenizer, prepared, batch_size=size)["validation_loss"] for size in (3, 16)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_data_of_another_tokenizer_is_refused(model_and_tokenizer, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"A text number {n}, and another. " * 20}) + "\n" for n in range(40)))
    prepare([str(text)], tmp_path / "data", vocab_size=300, validation_fraction=0.2)
    with pytest.raises(ValueError, match="made with another tokenizer"):
        evaluate_text(*model_and_tokenizer, tmp_path / "data")


def test_a_local_task_works_without_a_network(model_and_tokenizer, task):
    results = evaluate_tasks(*model_and_tokenizer, [str(task)])
    assert results["nouns"]["acc,none"] == 1.0  # bytes that the text never had are less likely than its words


def test_a_task_is_found_by_name_in_a_folder(model_and_tokenizer, task):
    results = evaluate_tasks(*model_and_tokenizer, ["nouns"], include_path=task.parent, limit=3)
    assert results["nouns"]["sample_len"] == 3


def test_an_unknown_task_is_refused(model_and_tokenizer):
    with pytest.raises(ValueError, match=r"'helaswag' is not known to lm-eval.*hellaswag"):
        evaluate_tasks(*model_and_tokenizer, ["helaswag"])


def test_a_missing_task_file_is_refused(model_and_tokenizer, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        evaluate_tasks(*model_and_tokenizer, [str(tmp_path / "none.yaml")])


def test_without_lm_eval_the_extra_is_named(model_and_tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"pip install 'ultramem-pytorch\[eval\]'"):
        evaluate_tasks(*model_and_tokenizer, ["nouns"])
