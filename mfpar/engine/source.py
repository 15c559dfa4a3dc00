"""Where a rank's ratings come from: from memory, or block by block from the file."""

import hashlib
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from mfpar.blockfile import BlockedFile, Strip, combined
from mfpar.errors import FormatError

Check = Callable[[np.ndarray], None]  # of values; raises what is wrong with them
Buffer = dict[str, np.ndarray]  # room for ratings of one row-block
Choose = Callable[[Strip, int], np.ndarray]  # of ratings from row-block i on: bool[nnz], which of them count


class Resident:
    """Ratings in memory.

    Parameters
    ----------
    strip : Strip

    Attributes
    ----------
    counts : int64[B, G]
        Ratings of each block.
    weights : list[float]
        The sum of the weights of each row-block, which does not depend on where ratings come from.
    """

    def __init__(self, strip: Strip):
        self.strip = strip
        self.counts = np.diff(strip.offsets, axis=1)
        self.weights = []
        if strip.weights is not None:
            self.weights = [
                sum(float(strip.weights[a:b].sum(dtype=np.float64)) for a, b in itertools.pairwise(ends))
                for ends in strip.offsets
            ]

    def row_block(self, place: int) -> Strip:
        """The ratings of one row-block; the arrays are those of all."""
        strip = self.strip
        return Strip(strip.offsets[place : place + 1], strip.rows, strip.cols, strip.values, strip.weights)


class Streamed:
    """Ratings that are read from the file whenever they are needed; all once on opening, to be verified.

    Parameters
    ----------
    file : BlockedFile
        Open as long as this is used.
    part : "train" or "test"
    first, last : row-blocks of this rank
    room : ratings in a buffer, at least those of the largest block
    check : called with values of all ratings
    choose : tells which ratings count; None: all

    Attributes
    ----------
    counts, weights : as of `Resident`

    Raises
    ------
    FormatError
        The ratings are damaged; here or in `read`.
    """

    def __init__(
        self, file: BlockedFile, part: str, first: int, last: int, room: int, check: Check, choose: Choose | None = None
    ):
        self._path, self._part, self._first = file.path, part, first
        self._grid = file.grid
        self._size, self._room, self._choose = file.grid.size, room, choose
        self._offsets, self._readers, checksums = file.readers(part, first, last)
        self._lengths = np.diff(self._offsets).reshape(last - first, self._size)
        self.counts = self._lengths if choose is None else np.zeros_like(self._lengths)
        self.weights: list[float] = [0.0] * (last - first) if "weights" in self._readers else []
        self._spare: list[Buffer] = []
        buffer = self.take()
        for place in range(last - first):
            self._verify(place, buffer, check, checksums[place])
        self.give(buffer)

    def take(self) -> Buffer:
        """Room to read into, to be given back."""
        if self._spare:
            return self._spare.pop()
        return {name: np.empty(self._room, reader.dtype) for name, reader in self._readers.items()}

    def give(self, buffer: Buffer) -> None:
        """Give room back."""
        self._spare.append(buffer)

    def reach(self, place: int, columns: np.ndarray) -> int:
        """How many of the blocks (place, j), j in `columns` and in their order, fit a buffer; at least 1."""
        return int(np.searchsorted(np.cumsum(self._lengths[place, columns]), self._room, "right"))

    def read(self, place: int, columns: np.ndarray, buffer: Buffer) -> Strip:
        """Fill a buffer with the blocks (place, j), j in `columns`: a strip of one row-block, its others empty."""
        strip = self._raw(place, columns, buffer)
        return strip if self._choose is None else self._chosen(strip, self._choose(strip, self._first + place))

    def _raw(self, place: int, columns: np.ndarray, buffer: Buffer) -> Strip:
        lengths = np.zeros(self._size, np.int64)
        lengths[columns] = self._lengths[place, columns]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        for a, b in _runs(np.flatnonzero(lengths)):
            begin = int(self._offsets[place * self._size + a])
            for name, reader in self._readers.items():
                reader.read(begin, buffer[name][offsets[a] : offsets[b]])
        return _strip(offsets, {name: array[: offsets[-1]] for name, array in buffer.items()})

    def _chosen(self, strip: Strip, chosen: np.ndarray) -> Strip:
        """Move the chosen ratings of a buffer to its front."""
        before = np.concatenate(([0], np.cumsum(chosen)))
        arrays = {name: getattr(strip, name) for name in self._readers}
        for array in arrays.values():
            array[: before[-1]] = array[chosen]
        return _strip(before[strip.offsets[0]], {name: array[: before[-1]] for name, array in arrays.items()})

    def _verify(self, place: int, buffer: Buffer, check: Check, checksum: np.ndarray) -> None:
        columns = np.arange(self._size)
        shas = [hashlib.sha256() for _ in self._readers]
        a = b = 0
        while a < self._size:
            b = a + self.reach(place, columns[a:])
            strip = self._raw(place, columns[a:b], buffer)
            for sha, name in zip(shas, self._readers, strict=True):
                sha.update(getattr(strip, name))
            if not self._grid.holds(
                self._first + place, strip.offsets, strip.rows, strip.cols, int(self._part == "test")
            ):
                raise FormatError(
                    f"{self._path}: has {self._part} ratings with indices outside their blocks; convert again"
                )
            check(strip.values)
            if self._choose:
                strip = self._chosen(strip, self._choose(strip, self._first + place))
                self.counts[place, a:b] = np.diff(strip.offsets[0])[a:b]
            if strip.weights is not None:
                ends = strip.offsets[0, a : b + 1]
                for begin, end in itertools.pairwise(ends):
                    self.weights[place] += float(strip.weights[begin:end].sum(dtype=np.float64))
            a = b
        if not np.array_equal(combined(shas), checksum):
            where = f"the {self._part} ratings of row-block {self._first + place}"
            raise FormatError(f"{self._path}: is damaged in {where}; convert again")


Source = Resident | Streamed


def _runs(indices: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges [a, b) of integers that follow one on the other.

    >>> list(_runs(np.array([1, 2, 3, 7, 9, 10])))
    [(1, 4), (7, 8), (9, 11)]
    """
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    for part in np.split(indices, breaks) if len(indices) else ():
        yield int(part[0]), int(part[-1]) + 1


def _strip(offsets: np.ndarray, arrays: dict[str, np.ndarray]) -> Strip:
    return Strip(offsets[None], **arrays)
