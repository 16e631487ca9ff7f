"""A trained model as a Hugging Face folder: configuration, safetensors, tokenizer.

`AutoModelForCausalLM.from_pretrained` loads it after `import ultramem.models`, or with `trust_remote_code=True`
wherever the package is installed: the folder's two small modules only point to it.
"""

import shutil
from pathlib import Path

import torch

from ultramem.loading import load

REMOTE_CODE = {
    "configuration_ultramem.py": "from ultramem import UltraMemConfig\n\n__all__ = ['UltraMemConfig']\n",
    "modeling_ultramem.py": "from ultramem import UltraMemForCausalLM\n\n__all__ = ['UltraMemForCausalLM']\n",
}
AUTO_MAP = {
    "AutoConfig": "configuration_ultramem.UltraMemConfig",
    "AutoModelForCausalLM": "modeling_ultramem.UltraMemForCausalLM",
}


def export(run: Path, out: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the newest checkpoint of `run` as a Hugging Face folder; it appears whole or not at all.

    Args:
        run: folder of a run.
        out: the new folder; it must not exist.
        dtype: of the stored weights.

    Raises:
        ValueError: `out` exists, or `run` holds no trained model.

    Example:
        >>> import ultramem.models
        >>> export(Path("runs/a"), Path("hf/a"))
        >>> model = AutoModelForCausalLM.from_pretrained("hf/a")
    """
    if out.exists():
        raise ValueError(f"{out} exists already: choose another folder or remove it; nothing was written")
    model, tokenizer = load(run)
    model.config.auto_map = AUTO_MAP
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        model.to(dtype).save_pretrained(unfinished)  # type: ignore[arg-type]
        tokenizer.save_pretrained(unfinished)
        for name, content in REMOTE_CODE.items():
            (unfinished / name).write_text(content)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
