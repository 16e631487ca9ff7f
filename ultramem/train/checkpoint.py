"""What a checkpoint holds: model and optimizers. All else follows from the step, which is the checkpoint's name.

The position in the data, the learning rates and the random numbers are functions of the seed and the step.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from ultramem.distributed.agreement import gather, is_first_rank
from ultramem.models.modeling_ultramem import UltraMemForCausalLM
from ultramem.train.checkpoint_files import CheckpointError, Checkpoints
from ultramem.train.config_json import load_model_config
from ultramem.train.display import show_note

__all__ = ["CheckpointError", "Checkpoints", "load_model", "load_state", "resume", "save_state"]


def save_state(
    checkpoints: Checkpoints, step: int, model: nn.Module, optimizers: Sequence[Optimizer], *, background: bool = False
) -> None:
    """Write all that the next step depends on beside its number.

    Args:
        checkpoints: of the run.
        step: steps taken.
        model: its parameters and buffers, the retrieval's singular vectors among them.
        optimizers: their moments, by the parameters' names.
        background: see `Checkpoints.save`.

    Raises:
        CheckpointError: it cannot be written.
    """
    checkpoints.save(step, _state(model, optimizers), background=background)


def load_state(checkpoints: Checkpoints, step: int, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Bring model and optimizers to where `save_state` saw them.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    state = _state(model, optimizers)
    checkpoints.load(step, state)
    set_state_dict(model, list(optimizers), model_state_dict=state["model"], optim_state_dict=state["optimizers"])


def resume(
    checkpoints: Checkpoints, model: nn.Module, optimizers: Sequence[Optimizer], *, skip_damaged: bool = False
) -> int:
    """Bring model and optimizers to where the last checkpoint saw them, on any number of processes.

    Args:
        checkpoints: of the run; what a kill left half written is removed.
        model: of the run, untouched where there is no checkpoint.
        optimizers: of the run.
        skip_damaged: where the last checkpoint is damaged, set it aside and take the one before.

    Returns:
        The step; 0 where there is no checkpoint.

    Raises:
        CheckpointError: the last checkpoint is damaged; with `skip_damaged`, all are.
    """
    checkpoints.clean()
    if skip_damaged:
        for path in checkpoints.set_aside_damaged():
            if is_first_rank():
                show_note(f"a damaged checkpoint was set aside: {path}")
    step = gather(checkpoints.newest_step)[0] or 0
    if step:
        load_state(checkpoints, step, model, optimizers)
    return step


def _state(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    model_state, optimizer_state = get_state_dict(model, list(optimizers))
    return {"model": model_state, "optimizers": optimizer_state}


def load_model(path: Path) -> tuple[UltraMemForCausalLM, Path]:
    """Load a trained model from a run's folder (its newest checkpoint) or from an exported Hugging Face folder.

    Args:
        path: the folder.

    Returns:
        The model in evaluation mode, on the CPU, in the dtype that it was saved in, and its tokenizer's file.

    Raises:
        ValueError: the folder is neither, or the run has no checkpoint yet.
        CheckpointError: the newest checkpoint is damaged.

    Example:
        >>> model, tokenizer_path = load_model(Path("runs/a"))
        >>> model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5).shape
        torch.Size([1, 8])
    """
    config, tokenizer = load_model_config(path), path / "tokenizer.json"
    if not is_run(path):
        try:
            return UltraMemForCausalLM.from_pretrained(path).eval(), tokenizer
        except SafetensorError as error:
            raise ValueError(f"the weights in {path} are damaged ({error}): export again") from error
    model = UltraMemForCausalLM(config)
    state = model.state_dict()
    load_weights(path, state)
    model.load_state_dict(state)
    return model.eval(), tokenizer


def load_weights(run: Path, weights: dict[str, Tensor]) -> None:
    """Fill a model's weights, by their names, from a run's newest checkpoint.

    Args:
        run: folder of a run.
        weights: written into, in their own dtypes; a stored tensor is read in pieces.

    Raises:
        ValueError: the run has no checkpoint yet.
        CheckpointError: the newest checkpoint is damaged.
    """
    checkpoints = Checkpoints(run / "checkpoints")
    step = checkpoints.newest_step
    if step is None:
        raise ValueError(f"{run} has no checkpoint yet: let it train on")
    checkpoints.load(step, {"model": weights})


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, and no exported model."""
    return (path / "run.json").exists() or (path / "checkpoints").exists()
