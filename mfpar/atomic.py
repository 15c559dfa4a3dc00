"""Files that appear whole or not at all: written under a temporary name, synced, then renamed into place."""

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from mfpar.errors import OutputExistsError, StorageError


def refuse_existing(path: Path, force: bool) -> None:
    """Check, before any work, that an output can be written where it is wanted.

    Raises
    ------
    OutputExistsError
        `path` exists and `force` is not set.
    StorageError
        Its folder is missing or can't be written to, or `path` is a folder.
    """
    if path.is_dir():
        raise StorageError(f"{path}: is a folder; name a file to write")
    if path.exists() and not force:
        raise OutputExistsError(
            f"{path}: exists already; choose another name, or overwrite it with --force (force=True)"
        )
    folder = path.absolute().parent
    if not folder.is_dir():
        raise StorageError(f"{path}: the folder {folder} does not exist; create it first")
    if not os.access(folder, os.W_OK):
        raise StorageError(f"{path}: no permission to write in {folder}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; on success it takes the place of `path`, otherwise it is removed.

    Raises
    ------
    StorageError
        Writing failed: disk full, no permission, folder gone. What stood at `path` before still stands there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with storage_errors(path):
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.absolute().parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError from writing `path` (h5py hides the error number in its text) into one clear sentence."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{path}: could not be written: {reason(error)}; nothing was left behind") from error


def reason(error: OSError) -> str:
    """What the operating system says, without the noise that libraries put round it."""
    hidden = re.search(r"errno = (\d+)", str(error))
    number = int(hidden[1]) if hidden else error.errno
    if number == errno.ENOSPC:
        return "no space left on the device"
    return os.strerror(number) if number else str(error).splitlines()[0]


def sync(path: Path) -> None:
    """Force a file's or folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
