"""The inside of a checkpoint: files of torch.distributed.checkpoint, and a manifest with the checksum of each.

Every process writes and checks its part of a folder that all of them see.
"""

import json
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from ultramem.distributed.agreement import gather, is_first_rank, together
from ultramem.train.atomic import write_json
from ultramem.train.checkpoint_pieces import PiecewiseSavePlanner

_MANIFEST = "manifest.json"


def write_folder(folder: Path, state: dict[str, Any], group: dist.ProcessGroup | None) -> None:
    """Write a state and its manifest.

    Args:
        folder: made where it is not there.
        state: nested dictionaries of tensors and plain values.
        group: of the processes that write; none: this one alone.

    Raises:
        OSError: on all of them, where it happened to one.
    """
    with _plain_errors():
        dcp.save(
            state,
            storage_writer=_Writer(folder),
            planner=PiecewiseSavePlanner(),
            process_group=group,
            no_dist=group is None,
        )
    mine = [f"__{dist.get_rank(group) if group else 0}_*", *([".metadata"] if is_first_rank() else [])]
    with together(group):
        checksums = {file.name: _checksum(file) for pattern in mine for file in sorted(folder.glob(pattern))}
    parts = gather(checksums, group)
    with together(group):
        if is_first_rank():
            write_json(folder / _MANIFEST, {name: checksum for part in parts for name, checksum in part.items()})


def read_folder(folder: Path, state: dict[str, Any], group: dist.ProcessGroup | None) -> None:
    """Fill a state of the same shape in place, on any number of processes.

    Args:
        folder: as `write_folder` left it.
        state: tensors are written into, plain values are replaced; it may lack parts of what was saved.
        group: of the processes that read; none: this one alone.
    """
    with _plain_errors():
        dcp.load(state, checkpoint_id=folder, process_group=group, no_dist=group is None)


def damaged_files(folder: Path, group: dist.ProcessGroup | None) -> list[str]:
    """Return the names of files that are missing or not what they were; each process looks at its share of them.

    Args:
        folder: as `write_folder` left it.
        group: of the processes that look; none: this one alone.
    """
    rank, world_size = (dist.get_rank(group), dist.get_world_size(group)) if group else (0, 1)
    with together(group):
        found = _damaged_among(folder, slice(rank, None, world_size))
    return sorted({name for part in gather(found, group) for name in part})


def _damaged_among(folder: Path, share: slice) -> list[str]:
    try:
        checksums = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError):
        return [_MANIFEST]
    return [name for name in sorted(checksums)[share] if not _matches(folder / name, checksums[name])]


def _matches(file: Path, checksum: int) -> bool:
    return file.exists() and _checksum(file) == checksum


def _checksum(file: Path) -> int:
    checksum = 0
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


class _Writer(dcp.FileSystemWriter):
    """Says that the disk is full where that is what happened; the other processes see nothing but the error."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            raise _system_error(error) or error from error


def _system_error(error: BaseException | None) -> OSError | None:
    """A full disk ends in a RuntimeError of the archive's writer, in whose context the system's error still is."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Let through the error behind torch.distributed.checkpoint's own, and not its remarks on a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:
            cause, _ = next(iter(error.failures.values()))
            raise cause from error
