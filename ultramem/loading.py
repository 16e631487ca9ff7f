"""A trained model and its tokenizer, from a run's folder or from an exported one."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from ultramem.models.modeling_ultramem import UltraMemForCausalLM
from ultramem.train.checkpoint import is_run, load_model
from ultramem.train.device import choose_device
from ultramem.train.records import WRITTEN_ANEW, read_record


def load(
    folder: Path, *, device: torch.device | str | None = None
) -> tuple[UltraMemForCausalLM, PreTrainedTokenizerFast]:
    """Load a model in evaluation mode with its tokenizer.

    Args:
        folder: of a run (its newest checkpoint is taken) or a Hugging Face folder that `ultramem export` wrote.
        device: where the model goes; none takes a GPU where there is one.

    Raises:
        ValueError: the folder is neither, or has no tokenizer or no checkpoint yet, or a file of it is damaged; or
            there is no such device.

    Example:
        >>> model, tokenizer = load(Path("runs/a"))
        >>> tokenizer.decode(model.generate(**tokenizer("Once", return_tensors="pt"))[0])
    """
    model, tokenizer_path = load_model(folder)
    model.to(choose_device(device))  # type: ignore[arg-type]
    return model, load_tokenizer(folder, tokenizer_path)


def load_tokenizer(folder: Path, path: Path) -> PreTrainedTokenizerFast:
    """Wrap a run's tokenizer for transformers; the separator of documents begins, ends and pads a text."""
    from_run = is_run(folder)
    remedy = WRITTEN_ANEW if from_run else "export again, or restore it"
    if not path.exists():
        raise ValueError(f"{folder} has no {path.name}, without which text cannot be read: {remedy}")
    separator = read_record(folder / "data.json", {"separator": str}, remedy)["separator"] if from_run else None
    try:
        if separator is None:
            return PreTrainedTokenizerFast.from_pretrained(folder)
        return PreTrainedTokenizerFast(
            tokenizer_file=str(path), bos_token=separator, eos_token=separator, pad_token=separator
        )
    except Exception as error:  # the library tokenizers raises bare Exceptions
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error
