"""Makes a folder that appears whole or not at all."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ultramem.data.errors import DataError


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Gives a hidden folder beside `out` to write into, and renames it to `out` when the block ends well.

    When the block fails, what was written is removed. What a killed process left behind is found by `leftovers`.

    Raises:
        DataError: the folder cannot be written, for instance because the disk is full.

    Example:
        >>> with whole_folder(Path("data/x")) as folder:
        ...     (folder / "header.json").write_text("{}")
    """
    target = out.resolve()
    folder = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.rename(target)
    except OSError as error:
        raise DataError(
            f"cannot write {out}: {error.strerror or error}. Nothing was left there: make room or choose another place."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def leftovers(out: Path) -> list[Path]:
    """Returns the unfinished folders beside `out`: those of killed processes, and of any that is still at work."""
    target = out.resolve()
    prefix = f".{target.name}.partial-"
    return sorted(path for path in target.parent.glob(".*") if path.name.startswith(prefix))
