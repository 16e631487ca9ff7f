"""Checkpoints on disk: written whole or not at all, checked when they are read.

A checkpoint is a folder of torch.distributed.checkpoint, so it can be loaded on another number of processes, and a
manifest with the checksum of each file. Its last act is to be renamed into its name: what has the name is complete.
"""

import json
import re
import shutil
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from ultramem.train.atomic import sync_folder, write_json

_NAME = re.compile(r"step-(\d{8,})")
_MANIFEST = "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the message says which, why, and what to do."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: ``checkpoints/`` of a run; made when the first is written.
        keep: how many stay.

    Example:
        >>> checkpoints = Checkpoints(Path("runs/a/checkpoints"), keep=2)
        >>> checkpoints.save(100, {"model": model.state_dict()})
        >>> checkpoints.newest_step
        100
    """

    def __init__(self, folder: Path, keep: int = 1):
        self.folder, self.keep = folder, keep

    @property
    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, ascending."""
        if not self.folder.exists():
            return []
        names = (_NAME.fullmatch(entry.name) for entry in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    @property
    def newest_step(self) -> int | None:
        """The last step that has a complete checkpoint."""
        return max(self.steps, default=None)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / f"step-{step:08d}"

    def clean(self) -> None:
        """Remove what a kill left half written or half removed."""
        for entry in self.folder.glob("*.tmp"):
            shutil.rmtree(entry)

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint, then remove the oldest beyond ``keep``.

        Args:
            step: its name; it has no checkpoint yet.
            state: nested dictionaries of tensors and plain values.

        Raises:
            CheckpointError: the disk is full or not writable; earlier checkpoints are as they were.
        """
        final, temporary = self.path(step), self.folder / f"step-{step:08d}.tmp"
        assert not final.exists(), final
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(temporary, state)
            temporary.rename(final)
            sync_folder(self.folder)
        except OSError as error:  # a full disk, no permission
            shutil.rmtree(temporary, ignore_errors=True)
            newest = self.newest_step
            kept = "no earlier one exists" if newest is None else f"{self.path(newest)} is intact"
            raise CheckpointError(
                f"cannot write checkpoint {final}: {error.strerror or error}; {kept}: "
                "make room, then run the same command again"
            ) from error
        for old in self.steps[: -self.keep]:
            self._remove(old)
        return final

    def _write(self, folder: Path, state: dict[str, Any]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        with _plain_errors():
            dcp.save(state, checkpoint_id=folder, no_dist=True)
        checksums = {file.name: _checksum(file) for file in sorted(folder.iterdir())}
        write_json(folder / _MANIFEST, checksums)

    def _remove(self, step: int) -> None:
        # Renamed first: a half removed folder must not look like a checkpoint.
        doomed = self.folder / f"step-{step:08d}.removed.tmp"
        self.path(step).rename(doomed)
        shutil.rmtree(doomed)

    def load(self, step: int, state: dict[str, Any]) -> None:
        """Fill a state of the same shape in place.

        Args:
            step: which checkpoint.
            state: tensors are written into, plain values are replaced; it may lack parts of what was saved.

        Raises:
            CheckpointError: the checkpoint is damaged.
        """
        path = self.path(step)
        try:
            damaged = _damaged_files(path)
            if damaged:
                raise OSError(f"{', '.join(damaged)} missing or changed since it was written")
            with _plain_errors():
                dcp.load(state, checkpoint_id=path, no_dist=True)
        except Exception as error:
            earlier = [other for other in self.steps if other < step]
            then = f"go on from step {earlier[-1]}" if earlier else "begin again"
            raise CheckpointError(f"checkpoint {path} is damaged ({error}): remove that folder to {then}") from error


def _checksum(file: Path) -> int:
    checksum = 0
    with open(file, "rb") as stream:
        while block := stream.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _damaged_files(path: Path) -> list[str]:
    manifest = path / _MANIFEST
    if not manifest.exists():
        return [_MANIFEST]
    checksums = json.loads(manifest.read_text())
    return [name for name, checksum in checksums.items() if not _matches(path / name, checksum)]


def _matches(file: Path, checksum: int) -> bool:
    return file.exists() and _checksum(file) == checksum


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Let through the error behind torch.distributed.checkpoint's own, and not its remarks on a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:
            cause, _ = next(iter(error.failures.values()))
            raise _system_error(cause) or cause from error


def _system_error(error: BaseException | None) -> OSError | None:
    """A full disk ends in a RuntimeError of the archive's writer, in whose context the system's error still is."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error
