"""Safetensors files that are made first and filled afterwards, through a memory map: they may be larger than memory."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@contextmanager
def mapped_weights(folder: Path, weights: Mapping[str, Tensor], max_file_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Make the weight files of a Hugging Face folder, to be filled inside the context.

    What is written into the tensors goes to the files; the system keeps in memory what there is room for. The space is
    taken on the disk at once, so that a full disk is an error here and nowhere later.

    Args:
        folder: exists; gets ``model.safetensors``, or several files and their index.
        weights: name to dtype and shape; meta tensors do.
        max_file_bytes: of one file, unless it holds one tensor only.

    Yields:
        The tensors, zero.

    Raises:
        OSError: there is no room.

    Example:
        >>> with mapped_weights(Path("hf/a"), {"table": torch.empty(9, 8, device="meta")}, 10**9) as weights:
        ...     weights["table"].fill_(1.0)
    """
    split = split_torch_state_dict_into_shards(dict(weights), max_shard_size=max_file_bytes)
    with ExitStack() as files:
        mapped: dict[str, Tensor] = {}
        for file, names in split.filename_to_tensors.items():
            mapped |= files.enter_context(_mapped_file(folder / file, {name: weights[name] for name in names}))
        yield mapped
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


@contextmanager
def _mapped_file(path: Path, weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    # Wider types first, as safetensors itself does, so that every tensor begins at a multiple of its type's size.
    names = sorted(weights, key=lambda name: (-weights[name].dtype.itemsize, name))
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + weights[name].numel() * weights[name].dtype.itemsize
        dtype, shape = _DTYPES[weights[name].dtype], list(weights[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        _reserve(file.fileno(), start + end)
    content = torch.from_file(str(path), shared=True, size=start + end, dtype=torch.uint8)
    yield {
        name: content[start + header[name]["data_offsets"][0] : start + header[name]["data_offsets"][1]]
        .view(weights[name].dtype)
        .view(weights[name].shape)
        for name in names
    }
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _reserve(descriptor: int, num_bytes: int) -> None:
    """Give a file its size and its place on the disk: a write through the map has no way to report a full one."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)
        return
    written = os.fstat(descriptor).st_size
    while written < num_bytes:
        written += os.pwrite(descriptor, bytes(min(1 << 24, num_bytes - written)), written)
