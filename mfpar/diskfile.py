"""A file for HDF5 to write to that keeps a full disk from HDF5.

HDF5 does not survive a failed write: closing the file fails too, objects that Python deletes later complain on stderr,
and the process may end in a segmentation fault. So writes go through a file that notes the first error, pretends that
all went well, and hands the error to whoever asks.
"""

import io
import os
from pathlib import Path
from typing import Any


class DiskFile(io.RawIOBase):
    """A new file, given to `h5py.File` in place of a path; ask `check` after writing.

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
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o666)
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
        """Read into a buffer, and return how many bytes."""
        data = os.pread(self._descriptor, len(buffer), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

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
        if not self.closed:
            os.close(self._descriptor)
        super().close()
