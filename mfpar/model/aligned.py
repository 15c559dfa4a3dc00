"""A blocked file seen through a model: its ratings by the model's rows and columns."""

import functools

import numpy as np

from mfpar.blockfile import BlockedFile
from mfpar.model.table import Ids


class Aligned:
    """Ratings of a blocked file with their rows and columns as positions in a model.

    In the file that the model was trained on both count alike; ids of any other are looked up, block by block for rows,
    once for all columns.

    Parameters
    ----------
    file : BlockedFile
    row_ids, col_ids : Ids
        Of the model.
    same : bool
        The model was trained on this file.
    """

    def __init__(self, file: BlockedFile, row_ids: Ids, col_ids: Ids, same: bool):
        self.file = file
        self._ids = {"rows": row_ids, "cols": col_ids}
        self._cuts = {"rows": file.grid.row_cuts, "cols": file.grid.col_cuts}
        self._same = same
        self._kept_block, self._kept = -1, (np.empty(0, np.int64), np.empty(0, np.int64))

    def ratings(self, part: str, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ratings of row-block i of a part.

        Returns
        -------
        int64[nnz], int64[nnz], float32[nnz]
            Row and column in the model, −1 where it does not know them, and the ratings.
        """
        rows, cols, values = self._local(part, i)
        return self._map("rows", i)[rows], self._columns[cols], values

    def seen(self, rows: np.ndarray) -> list[np.ndarray]:
        """Columns that each of some rows has training ratings of.

        Parameters
        ----------
        rows : int64[count]
            Rows of the model.

        Returns
        -------
        int64[:] for each row
            Columns of the model, −1 where it does not know them.
        """
        places = rows if self._same else self._rows_of_file.find(self._ids["rows"].take(rows))
        blocks = np.searchsorted(self._cuts["rows"], places, side="right") - 1  # −1 for rows unknown to the file
        found = [np.empty(0, np.int64)] * len(rows)
        for i in np.unique(blocks[blocks >= 0]).tolist():
            begins, cols = self._by_row(i)
            for u in np.flatnonzero(blocks == i).tolist():
                local = places[u] - self._cuts["rows"][i]
                found[u] = self._columns[cols[begins[local] : begins[local + 1]]]
        return found

    def _by_row(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Training ratings of row-block i in order of row: where each row begins, and places in `_columns`."""
        if i != self._kept_block:  # the last block is kept: who asks in row order reads each once
            rows, cols, _ = self._local("train", i)
            order = np.argsort(rows, kind="stable")
            size = self._cuts["rows"][i + 1] - self._cuts["rows"][i]
            self._kept_block, self._kept = i, (np.searchsorted(rows[order], np.arange(size + 1)), cols[order])
        return self._kept

    def _local(self, part: str, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows inside the block, columns as places in `_columns`, and ratings."""
        strip = self.file.strip(part, i, i + 1)
        # Every block's map has one place more than columns, for the unknown.
        starts = self._cuts["cols"][:-1] + np.arange(self.file.grid.size)
        return strip.rows, strip.cols + np.repeat(starts, np.diff(strip.offsets[0])), strip.values

    @functools.cached_property
    def _columns(self) -> np.ndarray:
        return np.concatenate([self._map("cols", j) for j in range(self.file.grid.size)])

    def _map(self, side: str, block: int) -> np.ndarray:
        """int64[size + 1]: positions in the model of a block's rows or columns, and −1 for the unknown."""
        if self._same:
            known = np.arange(self._cuts[side][block], self._cuts[side][block + 1])
        else:
            known = self._ids[side].find(self.file.ids(side, block, block + 1))
        return np.append(known, -1)

    @functools.cached_property
    def _rows_of_file(self) -> Ids:
        return Ids(self.file.ids("rows"))
