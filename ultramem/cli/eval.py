"""`ultramem eval`."""

import json
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from ultramem.evaluate import evaluate_tasks, evaluate_text
from ultramem.loading import load
from ultramem.train.atomic import write_text


def command(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    data: Path | None = None,
    tasks: tuple[str, ...] = (),
    include_path: Path | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    device: str | None = None,
    out: Path | None = None,
) -> None:
    """Measure a trained model: loss, perplexity and bits per byte on held-out text, and question sets of lm-eval.

    ultramem eval runs/a --data data/corpus --tasks my_questions.yaml --out results.json

    Args:
        run: Folder of a run or an exported model.
        data: Folder made by `ultramem prepare`, whose validation split is read whole.
        tasks: Tasks of lm-eval: names it knows (their data comes from the network) or YAML files over data of yours.
        include_path: Folder with more task files, to be called by their names.
        limit: Questions of each task; none for all.
        batch_size: Windows of text, or questions, at a time.
        device: Where to compute, such as cpu or cuda:1; a GPU where there is one if not given.
        out: JSON file for the results.
    """
    if data is None and not tasks:
        raise ValueError("nothing to measure: give --data, --tasks or both")
    if out is not None and out.exists():
        raise ValueError(f"--out {out} exists already: choose another file or remove it; nothing was measured")
    model, tokenizer = load(run, device=device)
    results: dict[str, Any] = {"run": str(run)}
    if data is not None:
        results["text"] = {"data": str(data), **evaluate_text(model, tokenizer, data, batch_size=batch_size)}
    if tasks:
        results["tasks"] = evaluate_tasks(
            model, tokenizer, tasks, include_path=include_path, limit=limit, batch_size=batch_size
        )
    Console().print(_table(results))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, json.dumps(results, indent=1, default=str) + "\n")


def _table(results: dict[str, Any]) -> Table:
    table = Table("measured on", "metric", "value", title=results["run"], title_justify="left")
    for name, metrics in {"text": results.get("text", {}), **results.get("tasks", {})}.items():
        for metric, value in metrics.items():
            if isinstance(value, float):
                table.add_row(name, metric, f"{value:.4f}")
    return table
