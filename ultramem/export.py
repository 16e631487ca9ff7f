"""A trained model as a Hugging Face folder: configuration, safetensors, tokenizer.

`AutoModelForCausalLM.from_pretrained` loads it after `import ultramem.models`, or with `trust_remote_code=True`
wherever the package is installed: the folder's two small modules only point to it.
"""

from pathlib import Path

import torch

from ultramem.data.folder import whole_folder
from ultramem.loading import load_tokenizer
from ultramem.mapped_weights import mapped_weights
from ultramem.models.modeling_ultramem import UltraMemForCausalLM
from ultramem.train.checkpoint import is_run, load_weights
from ultramem.train.config_json import load_model_config

REMOTE_CODE = {
    "configuration_ultramem.py": "from ultramem import UltraMemConfig\n\n__all__ = ['UltraMemConfig']\n",
    "modeling_ultramem.py": "from ultramem import UltraMemForCausalLM\n\n__all__ = ['UltraMemForCausalLM']\n",
}
AUTO_MAP = {
    "AutoConfig": "configuration_ultramem.UltraMemConfig",
    "AutoModelForCausalLM": "modeling_ultramem.UltraMemForCausalLM",
}


def export(run: Path, out: Path, dtype: torch.dtype = torch.float32, *, max_file_bytes: int = 50 * 10**9) -> None:
    """Write the newest checkpoint of `run` as a Hugging Face folder; it appears whole or not at all.

    The weights go from file to file, a piece at a time: a table may be larger than memory.

    Args:
        run: folder of a run.
        out: the new folder; it must not exist.
        dtype: of the stored weights.
        max_file_bytes: weights beyond it go to several files with an index.

    Raises:
        ValueError: `out` exists or cannot be written, or `run` holds no trained model.
        CheckpointError: the newest checkpoint is damaged.

    Example:
        >>> import ultramem.models
        >>> export(Path("runs/a"), Path("hf/a"))
        >>> model = AutoModelForCausalLM.from_pretrained("hf/a")
    """
    if out.exists():
        raise ValueError(f"{out} exists already: choose another folder or remove it; nothing was written")
    config = load_model_config(run)
    if not is_run(run):
        raise ValueError(f"{run} is an exported model already: give the folder of a run")
    tokenizer = load_tokenizer(run, run / "tokenizer.json")
    with torch.device("meta"):
        model = UltraMemForCausalLM(config).to(dtype)  # type: ignore[arg-type]
    tied = UltraMemForCausalLM._tied_weights_keys if config.tie_word_embeddings else {}
    weights = {name: weight for name, weight in model.state_dict().items() if name not in tied}
    config.auto_map, config.architectures, config.dtype = AUTO_MAP, [type(model).__name__], dtype
    with whole_folder(out) as folder:
        with mapped_weights(folder, weights, max_file_bytes) as mapped:
            load_weights(run, mapped)
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for name, content in REMOTE_CODE.items():
            (folder / name).write_text(content)
