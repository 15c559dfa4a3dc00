"""A blocked file seen through a model: its ratings by the model's rows and columns."""

import functools
from collections.abc import Iterator

import numpy as np

from mfpar.blockfile import BlockedFile, Strip
from mfpar.model.table import Ids, sorting

PIECE = 1 << 19  # ratings read at a time, where a strip is gone through


class Aligned:
    """Ratings of a blocked file with their rows and columns as positions in a model.

    In the file that the model was trained on both count alike; ids of any other are looked up, block by block for rows,
    once for all columns (8 bytes a column stay in memory).

    Parameters
    ----------
    file : BlockedFile
    row_ids, col_ids : Ids
        Of the model.
    same : bool
        The model was trained on this file.
    memory : int, optional
        Bytes that sorted ids of a side may take, see `Ids.find`.
    """

    def __init__(self, file: BlockedFile, row_ids: Ids, col_ids: Ids, same: bool, memory: int | None = None):
        self.file = file
        self._ids = {"rows": row_ids, "cols": col_ids}
        self._cuts = {"rows": file.grid.row_cuts, "cols": file.grid.col_cuts}
        self._same, self._memory = same, memory

    def ratings(self, part: str, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ratings of row-block i of a part.

        Returns
        -------
        int64[nnz], int64[nnz], float32[nnz]
            Row and column in the model, −1 where it does not know them, and the ratings.
        """
        strip = self.file.strip(part, i, i + 1)
        return self._map("rows", i)[strip.rows], self._columns_of(strip), strip.values

    def seen(self, rows: np.ndarray) -> list[np.ndarray]:
        """Columns that each of some rows has training ratings of.

        Parameters
        ----------
        rows : int64[count]
            Rows of the model.

        Returns
        -------
        int64[:] for each row
            Columns of the model, those that it does not know left out.
        """
        distinct, inverse = np.unique(rows, return_inverse=True)
        found = [(np.empty(0, np.int32), np.empty(0, np.int64)), *self.cells(distinct)]
        at, cols = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.argsort(at, kind="stable")
        by_row = np.split(cols[order], np.searchsorted(at[order], np.arange(1, len(distinct))))
        return [by_row[u] for u in inverse.tolist()]

    def cells(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Cells with a training rating in some rows, a piece of the file at a time.

        Parameters
        ----------
        rows : int64[count]
            Of the model, ascending, none twice.

        Yields
        ------
        int32[cells], int64[cells]
            Which of the rows, counted from 0, and columns of the model.
        """
        places = self._places(rows)
        blocks = np.searchsorted(self._cuts["rows"], places, side="right") - 1  # −1 for rows unknown to the file
        for i in np.unique(blocks[blocks >= 0]).tolist():
            inside = np.flatnonzero(blocks == i)
            first, last = self._cuts["rows"][i : i + 2]
            which = np.full(last - first, -1, np.int32)
            which[places[inside] - first] = inside
            for piece in self.file.pieces("train", i, PIECE):
                at, cols = which[piece.rows], self._columns_of(piece)
                wanted = (at >= 0) & (cols >= 0)
                yield at[wanted], cols[wanted]

    def _places(self, rows: np.ndarray) -> np.ndarray:
        """int64[count]: where rows of the model stand in the file, −1 where it does not know them."""
        if self._same:
            return rows
        none = self.file.ids("rows", 0, 0)
        if self._memory is None or sorting(self.file.header.rows, none.dtype) <= self._memory:
            return self._rows_of_file.find(self._ids["rows"].take(rows))
        found, wanted = np.full(len(rows), -1), self._ids["rows"].some(rows)
        for i, first in enumerate(self._cuts["rows"][:-1]):
            at = wanted.find(self.file.ids("rows", i, i + 1))
            known = np.flatnonzero(at >= 0)
            found[at[known]] = first + known
        return found

    @functools.cached_property
    def _rows_of_file(self) -> Ids:
        return Ids(self.file.ids("rows"))

    def _columns_of(self, strip: Strip) -> np.ndarray:
        """int64[nnz]: columns of the model of a strip of one row-block, −1 where it does not know them."""
        block = np.repeat(np.arange(self.file.grid.size), np.diff(strip.offsets[0]))
        if self._same:
            cols = strip.cols + self._cuts["cols"][block]
            return np.where(cols < self._cuts["cols"][block + 1], cols, -1)
        # Every block's map has one place more than columns, for the unknown.
        return np.asarray(self._columns[strip.cols + self._cuts["cols"][block] + block])

    @functools.cached_property
    def _columns(self) -> np.ndarray:
        return np.concatenate([self._map("cols", j) for j in range(self.file.grid.size)])

    def _map(self, side: str, block: int) -> np.ndarray:
        """int64[size + 1]: positions in the model of a block's rows or columns, and −1 for the unknown."""
        if self._same:
            known = np.arange(self._cuts[side][block], self._cuts[side][block + 1])
        else:
            known = self._ids[side].find(self.file.ids(side, block, block + 1), self._memory)
        return np.append(known, -1)
