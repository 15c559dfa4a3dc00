"""The rows of the model that a rank holds: its row-blocks of P, in memory or in a local file."""

import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mfpar.atomic import reason, storage_errors
from mfpar.errors import StorageError
from mfpar.parallel.memory import aligned
from mfpar.shards import Slots


class RowBlocks:
    """Row-blocks with biases and optimizer state.

    Parameters
    ----------
    lengths : floats of each row-block
    folder : Path or None
        Where a file is made for them that has no name and goes with the process; None: they stay in memory.

    Attributes
    ----------
    resident : Slots or None
        Where they are in memory.

    Raises
    ------
    StorageError
        The folder can't be written to, or has no room for them.
    """

    def __init__(self, lengths: list[int], folder: Path | None = None):
        self._lengths, self._folder = lengths, folder
        self._begins = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))) * 4  # bytes
        self._longest = max(lengths)
        self.resident = Slots(lengths) if folder is None else None
        self._file = None if folder is None else self._reserved(folder)
        self._spare: list[np.ndarray] = []
        self._scratch = np.empty(0, np.float32) if self.resident else self.take()

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return int(self._begins[-1])

    def take(self) -> np.ndarray:
        """float32[longest], aligned: room for any of them, to be given back."""
        return self._spare.pop() if self._spare else aligned(4 * self._longest).view(np.float32)

    def give(self, buffer: np.ndarray) -> None:
        """Give room back."""
        self._spare.append(buffer)

    def block(self, place: int) -> np.ndarray:
        """A row-block to read: a view, or a copy that the next look at another one overwrites."""
        if self.resident:
            return self.resident[place]
        return self.load(place, self._scratch)

    def blocks(self, change: bool) -> Iterator[np.ndarray]:
        """The row-blocks one by one, each to be read, and changed if so said, before the next is asked for."""
        for place in range(len(self._lengths)):
            block = self.block(place)
            yield block
            if change and not self.resident:
                self.store(place, block)

    def load(self, place: int, buffer: np.ndarray) -> np.ndarray:
        """Read a row-block from the file into a buffer, and return the part of it that it fills."""
        block = buffer[: self._lengths[place]]
        rest, at = memoryview(block).cast("B"), int(self._begins[place])
        while len(rest):
            got = self._done(os.preadv, [rest], at)
            rest, at = rest[got:], at + got
        return block

    def store(self, place: int, buffer: np.ndarray) -> None:
        """Write a row-block to the file."""
        rest, at = memoryview(buffer[: self._lengths[place]]).cast("B"), int(self._begins[place])
        while len(rest):
            put = self._done(os.pwritev, [rest], at)
            rest, at = rest[put:], at + put

    def _done(self, call: object, views: list[memoryview], at: int) -> int:
        try:
            count: int = call(self._file, views, at)  # type: ignore[operator]
        except OSError as error:
            raise StorageError(f"{self._folder}: the file of spilled rows failed: {reason(error)}") from error
        return count

    def _reserved(self, folder: Path) -> int:
        with storage_errors(folder / "spilled rows"), tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, self.nbytes)
            descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, descriptor)
        return descriptor
