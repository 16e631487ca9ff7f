"""Checkpoints on disk: written whole or not at all, checked when they are read.

A checkpoint's last act is to be renamed into its name: what has the name is complete. With several processes the first
one renames, once all have written.
"""

import re
import shutil
from concurrent.futures import Future
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from ultramem.distributed.agreement import gather, is_alone, is_first_rank, together
from ultramem.train.atomic import sync_folder
from ultramem.train.background import in_background
from ultramem.train.checkpoint_folder import damaged_files, read_folder, write_folder

_NAME = re.compile(r"step-(\d{8,})")


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the message says which, why, and what to do."""


class Checkpoints:
    """The checkpoints of one run.

    With several processes all of them make the same calls in the same order, and all get the same error.

    Args:
        folder: ``checkpoints/`` of a run, which all processes see; made when the first is written.
        keep: how many stay.

    Example:
        >>> checkpoints = Checkpoints(Path("runs/a/checkpoints"), keep=2)
        >>> checkpoints.save(100, {"model": model.state_dict()})
        >>> checkpoints.newest_step
        100
    """

    def __init__(self, folder: Path, keep: int = 1):
        self.folder, self.keep = folder, keep
        self._under_way: Future[None] | None = None

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
        with together(self._group):
            if is_first_rank():
                for entry in self.folder.glob("*.tmp"):
                    shutil.rmtree(entry)

    def save(self, step: int, state: dict[str, Any], *, background: bool = False) -> None:
        """Write a checkpoint, then remove the oldest beyond ``keep``.

        Args:
            step: its name; it has no checkpoint yet.
            state: nested dictionaries of tensors and plain values.
            background: return once the state is copied into memory, and write the copy while training goes on; `finish`
                or the next save waits for it and raises its error.

        Raises:
            CheckpointError: the disk is full or not writable; earlier checkpoints are as they were.
        """
        self.finish()
        group = self._group
        if background:
            copy = DefaultStager(StagingOptions(False, False, False, False)).stage(state)
            assert isinstance(copy, dict)
            self._under_way = in_background(lambda: self._save(step, copy, group))
        else:
            self._save(step, state, group)

    def finish(self) -> None:
        """Wait for a save in the background.

        Raises:
            CheckpointError: it could not be written.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    @cached_property
    def _group(self) -> dist.ProcessGroup | None:
        """Of its own, because a save in the background must not meet the training's collectives."""
        return None if is_alone() else dist.new_group(backend="gloo")

    def _save(self, step: int, state: dict[str, Any], group: dist.ProcessGroup | None) -> None:
        final, temporary = self.path(step), self.folder / f"step-{step:08d}.tmp"
        try:
            with together(group):
                if is_first_rank():
                    assert not final.exists(), final
                    shutil.rmtree(temporary, ignore_errors=True)
                    temporary.mkdir(parents=True)
            write_folder(temporary, state, group)
            with together(group):
                if is_first_rank():
                    temporary.rename(final)
                    sync_folder(self.folder)
                    for old in self.steps[: -self.keep]:
                        self._remove(old)
        except OSError as error:  # a full disk, no permission
            if is_first_rank():
                shutil.rmtree(temporary, ignore_errors=True)
            newest = gather(self.newest_step, group)[0]
            kept = "no earlier one exists" if newest is None else f"{self.path(newest)} is intact"
            raise CheckpointError(
                f"cannot write checkpoint {final}: {error.strerror or error}; {kept}: "
                "make room, then run the same command again"
            ) from error

    def _remove(self, step: int) -> None:
        # Renamed first: a half removed folder must not look like a checkpoint.
        doomed = self.folder / f"step-{step:08d}.removed.tmp"
        self.path(step).rename(doomed)
        shutil.rmtree(doomed)

    def load(self, step: int, state: dict[str, Any]) -> None:
        """Fill a state of the same shape in place, whatever number of processes saved it.

        Args:
            step: which checkpoint.
            state: tensors are written into, plain values are replaced; it may lack parts of what was saved.

        Raises:
            CheckpointError: the checkpoint is damaged, or of another shape.
        """
        damaged = damaged_files(self.path(step), self._group)
        if damaged:
            earlier = [other for other in self.steps if other < step]
            then = f"go on from step {earlier[-1]}" if earlier else "begin again"
            raise CheckpointError(
                f"checkpoint {self.path(step)} is damaged ({', '.join(damaged)} missing or changed since it was "
                f"written): remove that folder to {then}"
            )
        try:
            read_folder(self.path(step), state, self._group)
        except Exception as error:
            raise CheckpointError(f"checkpoint {self.path(step)} does not fit this model: {error}") from error

    def set_aside_damaged(self) -> list[Path]:
        """Make the last good checkpoint the newest one, by renaming later, damaged ones.

        Returns:
            Where they lie now; none where the newest is good, or there is none.

        Raises:
            CheckpointError: all are damaged; none was renamed.
        """
        steps = gather(self.steps, self._group)[0]
        damaged = list(takewhile(lambda step: damaged_files(self.path(step), self._group), reversed(steps)))
        if damaged and len(damaged) == len(steps):
            raise CheckpointError(f"all checkpoints in {self.folder} are damaged: remove that folder to begin again")
        aside = {step: self.folder / f"{self.path(step).name}.damaged" for step in damaged}
        with together(self._group):
            if is_first_rank():
                for step, path in aside.items():
                    shutil.rmtree(path, ignore_errors=True)
                    self.path(step).rename(path)
        return list(aside.values())
