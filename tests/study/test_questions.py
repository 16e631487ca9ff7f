import json

import pytest

from benchmarks.study import plan
from benchmarks.study.questions import ask
from tests.conftest import NOUNS
from ultramem.loading import load


def test_sets_are_asked_with_their_error_and_their_chance(trained, prepared, tmp_path):
    for name, label, count in (("likely", 0, 10), ("unlikely", 1, 13)):
        questions = [
            {"question": f"The {noun}", "choices": ["reads the row.", "qqq zzz xxx"], "label": label}
            for noun in NOUNS[:count]
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    model, _ = load(trained)
    answers = ask(model.train(), prepared, tmp_path, limit=12)
    assert answers["likely"] == {"accuracy": 1.0, "error": 0.0, "questions": 10, "chance": 0.5}
    assert answers["unlikely"] == {"accuracy": 0.0, "error": 0.0, "questions": 12, "chance": 0.5}
    assert model.training
    assert json.loads(json.dumps(answers)) == answers


def test_what_cannot_be_asked_is_said_before_any_training(tmp_path, monkeypatch, capsys):
    arguments = ["--data", "none", "--people", "none", "--questions", str(tmp_path)]
    with pytest.raises(SystemExit):
        plan.main(arguments)
    assert "holds no .jsonl" in capsys.readouterr().err
    (tmp_path / "some.jsonl").write_text("")
    monkeypatch.setattr("benchmarks.study.command.find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        plan.main(arguments)
    assert "pip install 'ultramem-pytorch[eval]'" in capsys.readouterr().err
