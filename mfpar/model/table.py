"""Tables of a model: mapped pieces that read as one array, and ids that are found by value.

What is read of a mapped file counts as this process's memory until it is let go of: a table keeps a window at most.
"""

import functools
import mmap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mfpar.blockfile import digest
from mfpar.errors import ConfigError
from mfpar.model.spelling import decoded, encoded, integers

WINDOW = 1 << 23  # bytes of a table that stay in this process's memory after rows were gathered from it
PER_FAULT = 1 << 21  # bytes that Linux may map round one that is looked at: a huge page
SCAN = 1 << 20  # bytes of ids at a time, where a side is gone through


class Table:
    """One dataset of a model: arrays (as a rule mapped from files) end to end, never joined in memory.

    Parameters
    ----------
    pieces : arrays [count, ...] of one dtype and one row shape
        At least one; none is copied.

    Attributes
    ----------
    shape : tuple[int, ...]
    dtype : np.dtype
    """

    def __init__(self, pieces: Sequence[np.ndarray]):
        self._pieces = [np.asarray(piece) for piece in pieces]
        self._mappings = [_mapping(piece) for piece in self._pieces]
        self._ends = np.cumsum([len(piece) for piece in self._pieces])
        self.shape: tuple[int, ...] = (int(self._ends[-1]), *self._pieces[0].shape[1:])
        self.dtype = self._pieces[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The table in memory as one array: for tables known to be small."""
        whole = np.array(self.read(0, len(self)), dtype, copy=copy)
        self.release(0, len(self))
        return whole

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Gather rows by index, in any order, also repeatedly.

        Parameters
        ----------
        indices : int64[count]
            0 ≤ index < len(self).

        Returns
        -------
        array [count, ...]
        """
        size = self._row_bytes
        if len(self) * size <= WINDOW or all(mapping is None for mapping in self._mappings):
            return self._gather(indices)
        if len(indices) * PER_FAULT <= WINDOW:
            taken = self._gather(indices)
            self.release(0, len(self))
            return taken
        taken, rows = np.empty((len(indices), *self.shape[1:]), self.dtype), max(1, WINDOW // size)
        order = np.argsort(indices, kind="stable")
        windows, begins = np.unique(indices[order] // rows, return_index=True)
        for window, inside in zip(windows.tolist(), np.split(order, begins[1:]), strict=True):
            taken[inside] = self._gather(indices[inside])
            self.release(window * rows, (window + 1) * rows)
        return taken

    def _gather(self, indices: np.ndarray) -> np.ndarray:
        if len(self._pieces) == 1:
            return np.asarray(self._pieces[0][indices])
        taken = np.empty((len(indices), *self.shape[1:]), self.dtype)
        which = np.searchsorted(self._ends, indices, side="right")
        # In the smallest integers: up to 16 bits NumPy sorts by radix, in linear time.
        order = np.argsort(which.astype(np.min_scalar_type(len(self._pieces))), kind="stable")
        bounds = np.cumsum(np.bincount(which, minlength=len(self._pieces)))
        begin = 0
        for piece, end, bound in zip(self._pieces, self._ends, bounds, strict=True):
            inside = order[begin:bound]
            if len(inside):
                taken[inside] = piece[indices[inside] - (end - len(piece))]
            begin = bound
        return taken

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows first … last − 1: aligned, and a view where they lie in one piece."""
        parts = []
        for piece, end in zip(self._pieces, self._ends, strict=True):
            start = int(end) - len(piece)
            if first < end and start < last:
                parts.append(piece[max(first - start, 0) : last - start])
        if not parts:
            return np.empty((0, *self.shape[1:]), self.dtype)
        # HDF5 puts a dataset at any byte; sums over unaligned floats are slower, and may be added in another order.
        return np.require(parts[0] if len(parts) == 1 else np.concatenate(parts), requirements="A")

    def chunks(self, rows: int, start: int = 0) -> Iterator[np.ndarray]:
        """The table from row `start` to its last, `rows` rows at a time, however it is cut into pieces.

        Each chunk is let go of when the next one is asked for: it can still be read then, from the file again.
        """
        for first in range(start, len(self), rows):
            yield self.read(first, first + rows)
            self.release(first, first + rows)

    def release(self, first: int, last: int) -> None:
        """Let go of what this process has mapped of the rows first … last − 1; what is looked at again comes back."""
        for piece, mapping, end in zip(self._pieces, self._mappings, self._ends, strict=True):
            start = int(end) - len(piece)
            begin, stop = max(first - start, 0), min(last - start, len(piece))
            if mapping is not None and begin < stop:
                size = self._row_bytes
                at = piece.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
                # With what came along when they were looked at.
                low = max(at + begin * size - PER_FAULT, 0) // mmap.PAGESIZE * mmap.PAGESIZE
                high = min(at + stop * size + PER_FAULT, len(mapping))
                mapping.madvise(mmap.MADV_DONTNEED, low, high - low)

    @functools.cached_property
    def _row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))


class Ids:
    """The ids of one side of a model; position i in the table is row (column) i.

    Ids match by how they are written: in a table of integers "12" finds 12, in one of strings 12 finds "12".

    Parameters
    ----------
    table : Table or array, int64[count] or bytes (UTF-8) [count]
        No id twice.

    Attributes
    ----------
    text : bool
        Ids are strings, otherwise integers.
    """

    def __init__(self, table: Table | np.ndarray):
        self._table = table if isinstance(table, Table) else Table([table])
        self.text = self._table.dtype.kind == "S"

    def __len__(self) -> int:
        return len(self._table)

    @property
    def dtype(self) -> np.dtype:
        """Of what `take` returns: int64, or str of the widest length that an id can have."""
        return np.dtype(f"U{self._table.dtype.itemsize}") if self.text else self._table.dtype

    def digest(self, first: int, last: int) -> np.ndarray:
        """uint8[32]: the digest of the ids at first … last − 1, as they lie in the file."""
        found = digest(self._table.read(first, last))
        self._table.release(first, last)
        return found

    def take(self, positions: np.ndarray) -> np.ndarray:
        """int64[count] or str[count]: the ids at int64[count] positions."""
        return self._decoded(self._table.take(positions))

    def some(self, positions: np.ndarray) -> "Ids":
        """The ids at int64[count] positions, to be found by value themselves."""
        return Ids(self._table.take(positions))

    def chunks(self, rows: int) -> Iterator[np.ndarray]:
        """All ids in order, `rows` at a time, as `take` gives them."""
        return map(self._decoded, self._table.chunks(rows))

    def _decoded(self, ids: np.ndarray) -> np.ndarray:
        if not self.text:
            return ids
        return decoded(ids, self.dtype)

    def find(self, asked: np.ndarray, memory: int | None = None) -> np.ndarray:
        """Look ids up.

        The first call sorts the whole side: 8 bytes an id, and the id itself, stay in memory from then on. Where
        `memory` does not allow that, each call goes through the whole side instead.

        Parameters
        ----------
        asked : integers, whole floats, str or bytes (UTF-8) [count]; see `as_ids`
        memory : int, optional
            Bytes that sorting may take.

        Returns
        -------
        int64[count]
            Position of each id, −1 where it is unknown.
        """
        if not len(asked):
            return np.empty(0, np.int64)
        keys, possible = self._keys(asked)
        if memory is not None and sorting(len(self), self._table.dtype) > memory:
            return np.where(possible, self._scanned(keys), -1)
        order, ids = self._sorted
        if not len(ids):
            return np.full(len(keys), -1)
        places = np.minimum(np.searchsorted(ids, keys), len(ids) - 1)
        return np.where(possible & (ids[places] == keys), order[places], -1)

    def _scanned(self, keys: np.ndarray) -> np.ndarray:
        """Position of each key, −1 where it is unknown, by one look at every id."""
        distinct, inverse = np.unique(keys, return_inverse=True)
        found, first = np.full(len(distinct), -1), 0
        for ids in self._table.chunks(max(1, SCAN // self._table.dtype.itemsize)):
            places = np.searchsorted(distinct[:-1], ids)
            met = np.flatnonzero(distinct[places] == ids)
            found[places[met]] = first + met
            first += len(ids)
        return found[inverse]

    @functools.cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        ids = np.asarray(self._table)
        order = np.argsort(ids, kind="stable")
        return order, ids[order]

    def _keys(self, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is asked for in the table's dtype, and which of it that dtype can hold: the rest is unknown."""
        possible = np.ones(len(asked), bool)
        if asked.dtype.kind == "f":
            possible = (asked == np.floor(asked)) & (np.abs(asked) < 2.0**63)  # false for NaN and infinity
            asked = np.where(possible, asked, 0).astype(np.int64)
        if not self.text and asked.dtype.kind in "US":
            return integers(asked)
        if not self.text:
            return asked.astype(np.int64), possible & (asked <= np.iinfo(np.int64).max)
        if asked.dtype.kind != "S":
            asked = encoded(asked.astype(np.str_))
        # Searching keys of another width would copy the whole table to that width each time.
        fits = np.char.str_len(asked) <= self._table.dtype.itemsize
        return asked.astype(self._table.dtype), possible & fits


def sorting(count: int, dtype: np.dtype) -> int:
    """Bytes that it takes to sort so many ids, the sorted ones and their positions, which stay, among them."""
    return 4 * count * (8 + dtype.itemsize)


def as_ids(ids: Any) -> np.ndarray:
    """Ids as callers give them (one, or a sequence, array or column of them) as an array for `Ids.find`.

    Raises
    ------
    ConfigError
        They are neither integers nor strings, or no flat sequence.
    """
    try:
        array = np.atleast_1d(np.asarray(ids))
        if array.dtype.kind == "O":  # a pandas column of strings, or integers beyond int64
            array = np.atleast_1d(np.asarray(array.tolist()))
            array = array.astype(np.str_) if array.dtype.kind == "O" else array
    except ValueError as error:
        raise ConfigError(f"ids could not be read ({error}); expected one id or a flat sequence of them") from error
    if array.ndim > 1:
        raise ConfigError(f"ids in an array of {array.ndim} dimensions: expected one id or a flat sequence of them")
    if array.dtype.kind not in "iufUS":
        raise ConfigError(f"ids of type {array.dtype}: expected integers or strings")
    return array


def _mapping(array: np.ndarray) -> mmap.mmap | None:
    """What a mapped array lies in; None for one in memory."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None
