"""Tables of a model: mapped pieces that read as one array, and ids that are found by value."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mfpar.errors import ConfigError


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
        self._ends = np.cumsum([len(piece) for piece in self._pieces])
        self.shape: tuple[int, ...] = (int(self._ends[-1]), *self._pieces[0].shape[1:])
        self.dtype = self._pieces[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The table in memory as one array: for tables known to be small."""
        return np.array(self.read(0, len(self)), dtype, copy=copy)

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

    def chunks(self, rows: int) -> Iterator[np.ndarray]:
        """The table from its first row to its last, `rows` rows at a time, however it is cut into pieces."""
        for first in range(0, len(self), rows):
            yield self.read(first, first + rows)


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

    def take(self, positions: np.ndarray) -> np.ndarray:
        """int64[count] or str[count]: the ids at int64[count] positions."""
        return self._decoded(self._table.take(positions))

    def chunks(self, rows: int) -> Iterator[np.ndarray]:
        """All ids in order, `rows` at a time, as `take` gives them."""
        return map(self._decoded, self._table.chunks(rows))

    def _decoded(self, ids: np.ndarray) -> np.ndarray:
        if not self.text:
            return ids
        try:
            return ids.astype(self.dtype)  # ASCII, at the speed of C
        except UnicodeDecodeError:
            return np.char.decode(ids, "utf-8").astype(self.dtype)

    def find(self, asked: np.ndarray) -> np.ndarray:
        """Look ids up.

        The first call sorts the whole side: 8 bytes an id, and the id itself, stay in memory from then on.

        Parameters
        ----------
        asked : integers, whole floats, str or bytes (UTF-8) [count]; see `as_ids`

        Returns
        -------
        int64[count]
            Position of each id, −1 where it is unknown.
        """
        keys, possible = self._keys(asked)
        order, ids = self._sorted
        if not len(ids):
            return np.full(len(keys), -1)
        places = np.minimum(np.searchsorted(ids, keys), len(ids) - 1)
        return np.where(possible & (ids[places] == keys), order[places], -1)

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
            return _integers(asked)
        if not self.text:
            return asked.astype(np.int64), possible & (asked <= np.iinfo(np.int64).max)
        if asked.dtype.kind != "S":
            asked = _encoded(asked.astype(np.str_))
        # Searching keys of another width would copy the whole table to that width each time.
        fits = np.char.str_len(asked) <= self._table.dtype.itemsize
        return asked.astype(self._table.dtype), possible & fits


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


def _integers(asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64[count] and bool[count]: the numbers that are written in `asked`, and where there is one."""
    if asked.dtype.kind == "S":
        asked = np.char.decode(asked, "utf-8", "replace")
    try:
        numbers = asked.astype(np.int64)
    except (ValueError, OverflowError):
        numbers = np.fromiter((_integer(text) for text in asked.tolist()), np.int64, len(asked))
    return numbers, numbers.astype(np.str_) == asked  # "012" and "1_2" read as numbers too, but are other ids


def _integer(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        return 0
    return number if abs(number) < 2**63 else 0


def _encoded(texts: np.ndarray) -> np.ndarray:
    try:
        return texts.astype(np.bytes_)  # ASCII, at the speed of C
    except UnicodeEncodeError:
        return np.char.encode(texts, "utf-8", "surrogatepass")
