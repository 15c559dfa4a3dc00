"""Copies of the model to go back to: in memory where that is ample, on the disk beside the output where it is not.

Each rank copies what it holds, where it holds it, so that neither keeping nor going back sends a message.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from mfpar.atomic import storage_errors

ROLES = ("last", "before", "best")


class Copies:
    """The states that a rank may want back, by role.

    Parameters
    ----------
    beside : Path
        Copies on the disk are files without a name in its folder, which end with this process, however that ends.
    in_memory : bool
        Where they go.
    """

    def __init__(self, beside: Path, in_memory: bool):
        self._beside, self._in_memory = beside, in_memory
        self._kept: dict[str, int] = {}  # number of the copy, by role
        self._copies: dict[int, list[np.ndarray] | BinaryIO] = {}
        self._count = 0
        self._free: list[np.ndarray] = []  # memory of a copy that was dropped

    def keep(self, roles: Sequence[str], arrays: Iterable[np.ndarray]) -> None:
        """Copy float32 arrays for these roles; what the roles meant before is dropped.

        Raises
        ------
        StorageError
            The disk is full, or the folder can't be written to.
        """
        if self._in_memory:
            self._note(roles, self._copied(list(arrays)))
        else:
            with storage_errors(self._beside):
                self._note(roles, file := self._file())
                for array in arrays:
                    file.write(np.ascontiguousarray(array).data)
                file.flush()

    def receive(self, role: str, lengths: Sequence[int]) -> Iterator[np.ndarray]:
        """Arrays of these lengths, to be filled, each before the next; together they are what is kept for a role.

        Raises
        ------
        StorageError
            As `keep`.
        """
        if self._in_memory:
            copy = [np.empty(length, np.float32) for length in lengths]
            self._note([role], copy)
            yield from copy
        else:
            with storage_errors(self._beside):
                self._note([role], file := self._file())
                for length in lengths:
                    array = np.empty(length, np.float32)
                    yield array
                    file.write(array.data)
                file.flush()

    def read(self, role: str, lengths: Iterable[int]) -> Iterator[np.ndarray]:
        """What is kept for a role, array by array, of the lengths that were kept."""
        copy = self._copies[self._kept[role]]
        if isinstance(copy, list):
            yield from copy
        else:
            with storage_errors(self._beside):
                copy.seek(0)
                for length in lengths:
                    yield np.fromfile(copy, np.float32, length)

    def rename(self, role: str, other: str) -> None:
        """What is kept for a role is kept for another one, whose own is dropped."""
        self._kept[other] = self._kept.pop(role)
        self._drop_unused()

    def restore(self, role: str, arrays: Iterable[np.ndarray]) -> None:
        """Write a copy back into arrays of the shapes that were kept."""
        copy = self._copies[self._kept[role]]
        if isinstance(copy, list):
            for array, kept in zip(arrays, copy, strict=True):
                array[:] = kept
        else:
            with storage_errors(self._beside):
                copy.seek(0)
                for array in arrays:
                    copy.readinto(memoryview(array).cast("B"))  # type: ignore[attr-defined]

    def close(self) -> None:
        """Drop all copies."""
        for number in list(self._copies):
            self._drop(number)

    def _file(self) -> BinaryIO:
        return cast(BinaryIO, tempfile.TemporaryFile(dir=self._beside.absolute().parent))

    def _note(self, roles: Sequence[str], copy: list[np.ndarray] | BinaryIO) -> None:
        self._count += 1
        self._copies[self._count] = copy
        self._kept.update(dict.fromkeys(roles, self._count))
        self._drop_unused()

    def _copied(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Copies, where possible in memory that held others: new memory costs more than copying does."""
        copies = self._free if [old.size for old in self._free] == [a.size for a in arrays] else None
        copies, self._free = copies or [np.empty_like(array) for array in arrays], []
        for copy, array in zip(copies, arrays, strict=True):
            copy[:] = array
        return copies

    def _drop_unused(self) -> None:
        for number in set(self._copies) - set(self._kept.values()):
            self._drop(number)

    def _drop(self, number: int) -> None:
        copy = self._copies.pop(number)
        if isinstance(copy, list):
            self._free = copy
        else:
            copy.close()
