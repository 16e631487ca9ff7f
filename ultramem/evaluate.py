"""How good a trained model is: its loss on held-out text, and the question sets of the lm-eval harness."""

from collections.abc import Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from ultramem.data.loader import validation_batches
from ultramem.data.tokens import TokenDataset
from ultramem.models.modeling_ultramem import UltraMemForCausalLM
from ultramem.train.metrics import validate


def evaluate_text(
    model: UltraMemForCausalLM, tokenizer: PreTrainedTokenizerFast, data: Path, *, batch_size: int = 16
) -> dict[str, Any]:
    """Measure a model on the whole validation split of prepared data, in windows of the model's context.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        data: folder made by `ultramem prepare` with the same tokenizer.
        batch_size: windows at a time.

    Returns:
        What `ultramem.train.metrics.validate` measures: "validation_loss" in nats a token, "perplexity",
        "bits_per_byte", and "memory", the health of each memory.

    Raises:
        ValueError: the data was made with another tokenizer.

    Example:
        >>> evaluate_text(model, tokenizer, Path("data/corpus"))["bits_per_byte"]
        1.42
    """
    dataset = TokenDataset.open(data, "validation")
    if Tokenizer.from_file(str(dataset.tokenizer_path)).get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"{data} was made with another tokenizer than the model's: prepare it with that one")
    context = min(model.config.max_position_embeddings, dataset.num_tokens - 1)
    return validate(
        model,
        validation_batches(dataset, context, batch_size, num_batches=dataset.num_tokens),
        tokens_per_byte=dataset.num_tokens / dataset.num_bytes,
        autocast=nullcontext,
    )


def evaluate_tasks(
    model: UltraMemForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    batch_size: int = 16,
) -> dict[str, dict[str, Any]]:
    """Run tasks of lm-eval on a live model.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer.
        tasks: names that lm-eval knows, or paths of task files (`.yaml`), which work without a network over local data.
        include_path: folder with further task files, which are then known by their names.
        limit: questions of each task; none: all.
        batch_size: questions at a time.

    Returns:
        For each task (and each part of a group) its metrics, such as "acc,none" and "acc_stderr,none".

    Raises:
        ValueError: lm-eval is not installed, or a task does not exist.

    Example:
        >>> evaluate_tasks(model, tokenizer, ["trivia.yaml"])["trivia"]["acc,none"]
        0.27
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError("question sets need lm-eval: pip install 'ultramem-pytorch[eval]'") from error

    manager = TaskManager(include_path=include_path, include_defaults=False)
    if not all(_is_file(task) or task in manager.all_tasks for task in tasks):
        manager = TaskManager(include_path=include_path)  # reads all of lm-eval's own tasks, which takes seconds
    for task in tasks:
        _require_task(task, manager.all_tasks)
    results = lm_eval.simple_evaluate(
        HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
            max_length=model.config.max_position_embeddings,
        ),
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
    )
    return {
        task: {name: value for name, value in metrics.items() if name != "alias"}
        for task, metrics in results["results"].items()
    }


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def _require_task(task: str, known: Sequence[str]) -> None:
    if _is_file(task):
        if not Path(task).is_file():
            raise ValueError(f"task file {task} does not exist")
    elif task not in known:
        near = get_close_matches(task, known, n=3)
        hint = f"the nearest are {', '.join(near)}" if near else "give a path ending in .yaml, or --include-path"
        raise ValueError(f"task {task!r} is not known to lm-eval: {hint}")
