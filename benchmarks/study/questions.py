"""Question sets, asked of a trained model by lm-eval: the share of right answers and its standard error."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedTokenizerFast

from ultramem.data.header import TOKENIZER_FILE, Header
from ultramem.evaluate import evaluate_tasks
from ultramem.models.modeling_ultramem import UltraMemForCausalLM

BATCH_SIZE = 128


def ask(model: UltraMemForCausalLM, data: Path, sets: Path, limit: int | None = None) -> dict[str, dict[str, float]]:
    """Ask the questions of every set.

    Args:
        model: a trained one.
        data: the prepared folder that it learnt from, for the tokenizer.
        sets: folder of JSON lines, each with "question", "choices" and "label", the right one's place.
        limit: questions of each set, the first ones; none: all.

    Returns:
        By file name "accuracy", its standard error "error", how many "questions", and what guessing gets: "chance".
    """
    separator = Header.load(data).separator
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(data / TOKENIZER_FILE), bos_token=separator, eos_token=separator, pad_token=separator
    )
    was_training = model.training
    model.eval()
    files = sorted(sets.glob("*.jsonl"))
    with TemporaryDirectory() as folder:
        tasks = [_write_task(Path(folder), file) for file in files]
        measured = evaluate_tasks(model, tokenizer, tasks, limit=limit, batch_size=BATCH_SIZE)
    model.train(was_training)
    return {
        file.stem: {
            "accuracy": measured[file.stem]["acc,none"],
            "error": measured[file.stem]["acc_stderr,none"],
            "questions": measured[file.stem]["sample_len"],
            "chance": _chance(file, limit),
        }
        for file in files
    }


def _write_task(folder: Path, questions: Path) -> str:
    """Describe a set to lm-eval: JSON is YAML."""
    path = folder / f"{questions.stem}.yaml"
    task = {
        "task": questions.stem,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(questions.resolve())}, "cache_dir": str(folder)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    path.write_text(json.dumps(task))
    return str(path)


def _chance(questions: Path, limit: int | None) -> float:
    asked = [json.loads(line) for line in questions.read_text().splitlines()][:limit]
    return sum(1 / len(question["choices"]) for question in asked) / len(asked)
