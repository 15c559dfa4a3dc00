"""Checks a file or a checkpoint, whatever its kind."""

import contextlib
from pathlib import Path

import h5py

from mfpar.errors import FormatError, MfparError, StorageError
from mfpar.formats import format_of, reading
from mfpar.integrity.blocked import check_blocked
from mfpar.integrity.checkpoint import check_checkpoint
from mfpar.integrity.findings import Findings
from mfpar.integrity.model import check_model
from mfpar.model.opening import FORMAT
from mfpar.recovery.manifest import checkpoints_in, is_checkpoint


def verify(path: str | Path) -> Findings:
    """Read all of a blocked ratings file, a model, its shards too, or a checkpoint, and say what is damaged. Local.

    It takes a few MB of memory, and 8 bytes for each block of the grid, whatever the size of the file; raises nothing
    for a file that is missing, foreign or damaged: that is what the findings say.
    """
    found = Findings(Path(path))
    try:
        if found.path.is_dir():
            if not is_checkpoint(found.path):
                raise FormatError(f"{path}: is a folder without a checkpoint")
            check_checkpoint(found)
            return found
        if not found.path.is_file():
            raise StorageError(f"{path}: no such file")
        check = check_model if format_of(found.path) == FORMAT else check_blocked
        with reading(found.path, "header"), h5py.File(found.path, "r") as file:
            check(file, found)
    except MfparError as error:
        found.note(error)
    return found


def checkpoints_or_itself(path: str) -> list[str]:
    """The whole checkpoints of a folder that has some, the newest first; otherwise the path alone. Local."""
    found: list[Path] = []
    with contextlib.suppress(StorageError):
        if not is_checkpoint(Path(path)):
            found = checkpoints_in(Path(path))
    return [str(one) for one in found] or [path]
