"""The n best columns of many rows at a time: a matrix product leaves few candidates, which are scored one by one.

A matrix product adds in an order that depends on where a cell lies in its tiles, so that scores which are equal may
come out apart. Here it only sorts out: a cell whose product is too low to be among the n best, whatever was rounded, is
out; what is left is scored as every other prediction is. So columns and scores are those of `mfpar.model.topk.best`, to
the last bit, in whatever order and pieces Q comes.
"""

import numpy as np

from mfpar.model.topk import scores

TILE = 1 << 19  # cells of a matrix product: their scores stay in a core's cache until they are compared
WIDTH = 4096  # columns of a tile, or more where many are asked for
PAIRS = 1 << 21  # bytes of factors gathered for the candidates at a time
ROUNDING = 4 * 2.0**-24  # twice what two sums of float32 in different order may differ by, for each term
PATIENCE = 1 << 14  # candidates that wait at least before they are sorted in
TINY = 1e-36  # what numbers too small for float32's precision may lose


class Leaders:
    """The n best columns so far of some rows. Local.

    Parameters
    ----------
    P : float32[rows, k]
        Copied.
    row_bias : float32[rows]
    base : float
        Of all scores.
    n : int
        At least 1.

    Attributes
    ----------
    columns : int64[rows, n]
        By descending score, ties by position; −1 where there are fewer.
    scores : float32[rows, n]
        Of these columns; −∞ where there are fewer.
    """

    def __init__(self, P: np.ndarray, row_bias: np.ndarray, base: float, n: int):
        count = len(P)
        # A column of ones, which meets the column biases.
        self._p = np.concatenate((P, np.ones((count, 1), np.float32)), axis=1)
        self._row_bias, self._base, self._n = row_bias.astype(np.float64), base, n
        self._constant = base + self._row_bias
        self._length = np.sqrt(np.einsum("ik,ik->i", P, P, dtype=np.float64))
        self._size = np.abs(self._row_bias) + abs(base)
        # The n-th best score of each row, without its constant, is at least this.
        self._floor = np.full(count, -np.inf)
        self.columns = np.full((count, n), -1)
        self.scores = np.full((count, n), -np.inf, np.float32)
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._count_waiting = 0

    def meet(self, first: int, Q: np.ndarray, col_bias: np.ndarray, seen: tuple[np.ndarray, np.ndarray]) -> None:
        """Let the rows meet further columns.

        Parameters
        ----------
        first : int
            Position of the first of them.
        Q : float32[columns, k]
        col_bias : float32[columns]
        seen : int64[cells], int64[cells]
            Rows, from 0 and ascending, and columns of cells to leave out, all of them among these columns.
        """
        q = np.concatenate((Q, col_bias[:, None]), axis=1)
        longest = np.sqrt(np.einsum("ik,ik->i", Q, Q, dtype=np.float64).max(initial=0))
        size = self._length * longest + np.abs(col_bias).max(initial=0) + self._size
        margin = ROUNDING * (q.shape[1] + 4) * size + TINY
        tile = max(1, TILE // len(q))
        product = np.empty((tile, len(q)), np.float32)
        for begin in range(0, len(self._p), tile):
            rows = slice(begin, min(begin + tile, len(self._p)))
            cells = np.matmul(self._p[rows], q.T, out=product[: rows.stop - begin])
            inside = slice(*np.searchsorted(seen[0], (rows.start, rows.stop)))
            cells[seen[0][inside] - begin, seen[1][inside] - first] = -np.inf
            self._raise_floor(rows, cells, margin[rows])
            self._keep(begin, first, cells, self._floor[rows] - margin[rows], Q, col_bias)

    def _raise_floor(self, rows: slice, cells: np.ndarray, margin: np.ndarray) -> None:
        """Of rows that have met nothing yet: n columns, each the best of a group, are as good as the worst of them."""
        if self._floor[rows].min() > -np.inf:
            return
        groups = min(cells.shape[1], 8 * self._n + 64)
        size = cells.shape[1] // groups
        if groups < self._n:
            return
        best = cells[:, : size * groups].reshape(len(cells), size, groups).max(axis=1)
        nth = np.partition(best, groups - self._n, axis=1)[:, groups - self._n]
        self._floor[rows] = np.maximum(self._floor[rows], nth - margin)

    def _keep(
        self, begin: int, first: int, cells: np.ndarray, limit: np.ndarray, Q: np.ndarray, col_bias: np.ndarray
    ) -> None:
        """Score the cells that reach their row's limit."""
        lowest = np.nextafter(limit.astype(np.float32), np.float32(-np.inf))
        reached = np.flatnonzero(cells >= lowest[:, None])
        portion = max(1, PAIRS // (8 * Q.shape[1]))
        for start in range(0, len(reached), portion):
            some = reached[start : start + portion]
            some = some[cells.ravel()[some] > -np.inf]  # not the seen
            i, j = np.divmod(some, cells.shape[1])
            i += begin
            offsets = self._row_bias[i] + col_bias[j]
            self._waiting.append((i, first + j, scores(self._p[i, :-1], Q[j], offsets, self._base)))
            self._count_waiting += len(some)
            if self._count_waiting > max(self.columns.size // 2, PATIENCE):
                self.settle()

    def settle(self) -> None:
        """Let what has been met count; before `columns` and `scores` are looked at."""
        if not self._waiting:
            return
        rows, columns, values = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting, self._count_waiting = [], 0
        touched = np.unique(rows)
        rows = np.concatenate((np.repeat(touched, self._n), rows))
        columns = np.concatenate((self.columns[touched].ravel(), columns))
        values = np.concatenate((self.scores[touched].ravel(), values))
        keys = _keys(rows, values)
        order = np.argsort(keys)
        keys = keys[order]
        tied = np.flatnonzero(np.r_[False, keys[1:] == keys[:-1]] | np.r_[keys[1:] == keys[:-1], False])
        order[tied] = order[tied][np.lexsort((columns[order[tied]], keys[tied]))]
        begins = np.searchsorted(rows[order], touched)
        kept = order[begins[:, None] + np.arange(self._n)]
        self.columns[touched], self.scores[touched] = columns[kept], values[kept]
        worst = self.scores[touched, -1] - self._constant[touched]
        self._floor[touched] = np.maximum(self._floor[touched], worst)


def _keys(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """uint64[count] that are in order of row, then of descending float32 value; equal where both are."""
    bits = (values + np.float32(0)).view(np.uint32)  # of −0, too, those of 0
    descending = np.where(bits >> 31, bits, ~bits & np.uint32(0x7FFFFFFF))
    return rows.astype(np.uint64) << np.uint64(32) | descending
