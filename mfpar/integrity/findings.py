"""What a check of a file has found: all that is damaged, not only the first part, and how much was read."""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mfpar.blockfile import combined
from mfpar.errors import FormatError, MfparError
from mfpar.formats import ascends, reading

PIECE = 4 << 20  # bytes of all arrays together that are read at a time


@dataclass
class Findings:
    """Of one file, or one checkpoint. `sound` is the verdict."""

    path: Path
    kind: str = ""  # "blocked ratings", "model" or "checkpoint"
    parts: int = 0  # blocks and tables that were compared
    bytes: int = 0  # that were read for it
    counts: dict[str, int] = field(default_factory=dict)  # what the file holds, by name
    damage: list[str] = field(default_factory=list)  # a clause for each part that is damaged

    @property
    def sound(self) -> bool:
        """Nothing is damaged."""
        return not self.damage

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Check one part; an error is noted as its damage, and the check goes on with the next."""
        self.parts += 1
        try:
            with reading(self.path, name):
                yield
        except MfparError as error:
            self.note(error)

    def note(self, error: MfparError) -> None:
        """Add an error to the damage."""
        self.damage.append(str(error).removeprefix(f"{self.path}: ").removeprefix(f"{self.path}/"))

    def pieces(self, group: Any, names: tuple[str, ...], first: int, last: int) -> Iterator[list[np.ndarray]]:
        """Read the rows first … last − 1 of several datasets of an HDF5 group together, a bounded piece at a time."""
        row = sum(group[name].dtype.itemsize * int(np.prod(group[name].shape[1:])) for name in names)
        most = max(1, PIECE // row)
        for begin in range(first, last, most):
            arrays = [group[name][begin : min(begin + most, last)] for name in names]
            self.bytes += sum(array.nbytes for array in arrays)
            yield arrays


class Sums:
    """The digest of several arrays that come in pieces."""

    def __init__(self, count: int):
        self._shas = [hashlib.sha256() for _ in range(count)]

    def add(self, arrays: list[np.ndarray]) -> None:
        """The next piece of each."""
        for sha, array in zip(self._shas, arrays, strict=True):
            sha.update(np.ascontiguousarray(array).view(np.uint8))

    def require(self, stored: np.ndarray, name: str) -> None:
        """Raise FormatError unless the digest is the one that is stored (uint8[32])."""
        if not np.array_equal(combined(self._shas), stored):
            raise FormatError(f"{name} do not match their checksum")


def require(holds: bool, message: str) -> None:
    """Raise FormatError unless it holds."""
    if not holds:
        raise FormatError(message)


def require_cuts(cuts: np.ndarray, count: int, name: str) -> None:
    """Raise FormatError unless int64[G + 1] cuts go from 0 up to `count`, no block without a row."""
    require(len(cuts) > 1 and ascends(cuts, count, 1), f"{name} do not ascend from 0 to {count}")
