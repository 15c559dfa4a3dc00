"""Where held-out columns stand among all that their row could be recommended: one scan of Q for many rows."""

from collections.abc import Sequence

import numpy as np

from mfpar.model import topk
from mfpar.model.scorer import Scorer


class Standing:
    """Where some columns of a row stand among its candidates, counted as the scores of these come in.

    The columns are candidates themselves, so that each meets itself once.

    Parameters
    ----------
    columns : int64[count]
    scores : float32[count]

    Attributes
    ----------
    candidates : int
        That have come in so far.
    """

    def __init__(self, columns: np.ndarray, scores: np.ndarray):
        self._columns = columns
        self._levels, self._level = np.unique(scores, return_inverse=True)
        self._above = np.zeros(len(self._levels) + 1, np.int64)  # candidates by how many levels are below them
        self._on = np.zeros(len(self._levels), np.int64)  # candidates on each level
        self._ahead = np.zeros(len(columns), np.int64)  # candidates on a column's level that come before it
        self.candidates = 0

    def count(self, columns: np.ndarray, scores: np.ndarray) -> None:
        """Count further candidates, int64[count] columns of float32[count] scores."""
        self.candidates += len(columns)
        above = np.searchsorted(self._levels, scores)
        self._above += np.bincount(above, minlength=len(self._above))
        tied = np.flatnonzero(self._levels[np.minimum(above, len(self._levels) - 1)] == scores)
        level, columns = above[tied], columns[tied]
        self._on += np.bincount(level, minlength=len(self._on))
        # By level, then by column: those of a column's level that come before it are one run.
        width = max(int(self._columns.max()), int(columns.max(initial=0))) + 1
        keys = np.sort(level * width + columns)
        begin = self._level * width
        self._ahead += np.searchsorted(keys, begin + self._columns) - np.searchsorted(keys, begin)

    @property
    def ranks(self) -> np.ndarray:
        """int64[count]: how many candidates stand before each column, by descending score, ties in column order."""
        return np.asarray((self.candidates - np.cumsum(self._above)[:-1])[self._level] + self._ahead)

    @property
    def wins(self) -> np.ndarray:
        """int64[count]: twice the number of candidates that each column's score beats, ties (itself, too) counted ½."""
        return np.asarray((2 * np.cumsum(self._above)[:-1] - self._on)[self._level])


def standings(
    scorer: Scorer, rows: np.ndarray, held: Sequence[tuple[np.ndarray, np.ndarray]], seen: Sequence[np.ndarray]
) -> list[Standing]:
    """Rank columns of some rows among all but the seen, without holding Q or a score for every column.

    Parameters
    ----------
    rows : int64[rows]
    held : int64[:] columns, none of them seen, and float32[:] scores for each row
        At least one.
    seen : int64[:] for each row
        Columns that are no candidates, ascending; −1 is none.
    """
    found = [Standing(*columns_and_scores) for columns_and_scores in held]
    p, row_bias = scorer.P.take(rows), scorer.row_bias.take(rows)
    count, first = max(1, topk.SCAN // (4 * scorer.factors)), 0
    for q, bias in zip(scorer.Q.chunks(count), scorer.col_bias.chunks(count), strict=True):
        for u, standing in enumerate(found):
            scores = topk.scores(p[u], q, np.float64(row_bias[u]) + bias, scorer.base)
            begin, end = np.searchsorted(seen[u], (first, first + len(q)))
            candidates = np.ones(len(q), bool)
            candidates[seen[u][begin:end] - first] = False
            standing.count(first + np.flatnonzero(candidates), scores[candidates])
        first += len(q)
    return found
