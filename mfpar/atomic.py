"""Files that appear whole or not at all: written under a temporary name, synced, then renamed into place.

A process that is killed leaves the temporary file, which goes when the next one writes the same file.
"""

import contextlib
import errno
import glob
import io
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mfpar.abandoned import held, remove_abandoned
from mfpar.errors import OutputExistsError, StorageError

TOKEN = "[0-9a-f]" * 8  # as a pattern of names


def refuse_existing(path: Path, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Check, before any work, that an output can be written where it is wanted.

    Parameters
    ----------
    path : Path
    force : bool
        Whether a file there may be replaced.
    inputs : Paths
        What is being read, which no output may replace.

    Raises
    ------
    OutputExistsError
        `path` exists and `force` is not set, or it is one of the inputs.
    StorageError
        Its folder is missing or can't be written to, or `path` is a folder or another thing that is no file.
    """
    if path.is_dir():
        raise StorageError(f"{path}: is a folder; name a file to write")
    if path.exists() and any(source.exists() and path.samefile(source) for source in inputs):
        raise OutputExistsError(f"{path}: is also an input; choose another name for the output")
    if path.exists() and not path.is_file():
        raise StorageError(f"{path}: is not a regular file; name a file to write")
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
    """A temporary file beside `path` to write to; on success it takes the place of `path`, otherwise it is removed.

    Raises
    ------
    StorageError
        Writing failed: disk full, no permission, folder gone. What stood at `path` before still stands there.
    """
    temporary = _temporary(path)
    try:
        with storage_errors(path):
            _clear(path)
            with held(temporary):
                yield temporary
                sync(temporary)
                os.replace(temporary, path)
                with contextlib.suppress(OSError):  # it is in place, and not every file system can sync a folder
                    sync(path.absolute().parent)
    finally:
        with contextlib.suppress(OSError):  # of a disk that is lost, or read-only now, enough is said
            temporary.unlink()


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` for what is of use while that is made; it is removed in the end.

    Raises
    ------
    StorageError
        It can't be made.
    """
    temporary = _temporary(path)
    try:
        with contextlib.ExitStack() as holding:
            with storage_errors(path):
                _clear(path)
                holding.enter_context(held(temporary, folder=True))
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A name that never occurred before."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _clear(path: Path) -> None:
    """Remove what killed processes have left under such names."""
    remove_abandoned(path.parent.glob(f".{glob.escape(path.name)}.{TOKEN}.tmp"))


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


def make_folder(path: Path, parents: bool = False) -> None:
    """Make a folder, if it is missing, and those above it, if so said; they outlast the machine's end. Local.

    Raises
    ------
    OSError
        It can't be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=parents, exist_ok=True)
    for folder in missing:
        with contextlib.suppress(OSError):  # not every file system can
            sync(folder.parent)


def drop_half_line(path: Path) -> None:
    """Cut off the last line of a file if it does not end, as its writer was killed, or the disk was full.

    Raises
    ------
    OSError
        The file can't be opened, read or cut.
    """
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        found = -1
        while end and found < 0:
            end -= min(end, 1 << 16)
            file.seek(end)
            found = file.read(1 << 16).rfind(b"\n")
        if end + found + 1 < size:
            file.truncate(end + found + 1)


def sync(path: Path) -> None:
    """Force a file's or folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DiskFile(io.RawIOBase):
    """A new file, given to `h5py.File` in place of a path, that keeps a full disk from HDF5; ask `check` after writing.

    HDF5 does not survive a failed write: closing the file fails too, objects that Python deletes later complain on
    stderr, and the process may end in a segmentation fault. So this notes the first error and pretends that all went
    well.

    Parameters
    ----------
    path : Path
        Overwritten where it exists.

    Raises
    ------
    OSError
        The file can't be created.
    """

    def __init__(self, path: Path):
        self._descriptor = -1  # should opening fail, Python closes what it made so far
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._position = 0
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the first error met in writing, if there was one."""
        if self._error is not None:
            raise self._error

    def readable(self) -> bool:
        """Yes: HDF5 reads back what it wrote."""
        return True

    def writable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position, and return it."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        self._position = offset + (os.fstat(self._descriptor).st_size if origin is None else origin)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, up to the end of the file; return how many bytes.

        h5py takes it for full whatever this returns, and Linux reads no more than 2 GiB at once.
        """
        view, begun = memoryview(buffer).cast("B"), self._position
        while count := os.preadv(self._descriptor, [view], self._position):
            self._position += count
            view = view[count:]
        return self._position - begun

    def write(self, data: Any) -> int:
        """Write all of `data`, or note why not."""
        view = memoryview(data).cast("B")
        self._position += len(view)
        try:
            while self._error is None and len(view):
                view = view[os.pwrite(self._descriptor, view, self._position - len(view)) :]
        except OSError as error:
            self._error = error
        return len(memoryview(data).cast("B"))

    def truncate(self, size: int | None = None) -> int:
        """Set the length, or note why not."""
        length = self._position if size is None else size
        try:
            os.ftruncate(self._descriptor, length)
        except OSError as error:
            self._error = self._error or error
        return length

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, -1
        super().close()
        if descriptor >= 0:
            os.close(descriptor)
