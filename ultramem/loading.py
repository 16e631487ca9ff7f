"""A trained model and its tokenizer, from a run's folder or from an exported one."""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from ultramem.models.modeling_ultramem import UltraMemForCausalLM
from ultramem.train.checkpoint import load_model


def load(folder: Path) -> tuple[UltraMemForCausalLM, PreTrainedTokenizerFast]:
    """Load a model in evaluation mode with its tokenizer.

    Args:
        folder: of a run (its newest checkpoint is taken) or a Hugging Face folder that `ultramem export` wrote.

    Raises:
        ValueError: the folder is neither, or has no tokenizer or no checkpoint yet.

    Example:
        >>> model, tokenizer = load(Path("runs/a"))
        >>> tokenizer.decode(model.generate(**tokenizer("Once", return_tensors="pt"))[0])
    """
    model, tokenizer_path = load_model(folder)
    return model, load_tokenizer(folder, tokenizer_path)


def load_tokenizer(folder: Path, path: Path) -> PreTrainedTokenizerFast:
    """Wrap a run's tokenizer for transformers; the separator of documents begins, ends and pads a text."""
    if not path.exists():
        raise ValueError(f"{folder} has no {path.name}: the run was made without one, so text cannot be read")
    if not (folder / "run.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    separator = json.loads((folder / "data.json").read_text())["separator"]
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path), bos_token=separator, eos_token=separator, pad_token=separator
    )
