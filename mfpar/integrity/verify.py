"""Checks a file of either kind."""

from pathlib import Path

import h5py

from mfpar.errors import MfparError, StorageError
from mfpar.formats import format_of, reading
from mfpar.integrity.blocked import check_blocked
from mfpar.integrity.findings import Findings
from mfpar.integrity.model import check_model
from mfpar.model.opening import FORMAT


def verify(path: str | Path) -> Findings:
    """Read all of a blocked ratings file or of a model, its shards too, and say what is damaged. Local.

    It takes a few MB of memory, and 8 bytes for each block of the grid, whatever the size of the file; raises nothing
    for a file that is missing, foreign or damaged: that is what the findings say.
    """
    found = Findings(Path(path))
    try:
        if not found.path.is_file():
            raise StorageError(f"{path}: no such file")
        check = check_model if format_of(found.path) == FORMAT else check_blocked
        with reading(found.path, "header"), h5py.File(found.path, "r") as file:
            check(file, found)
    except MfparError as error:
        found.note(error)
    return found
