"""The n best columns for each of some rows: one scan of Q in chunks, ties in column order."""

from collections.abc import Sequence

import numpy as np

from mfpar.model.table import Table

SCAN = 1 << 20  # bytes of Q at a time: what a core's cache holds while one row after the other goes through it


def scores(p: np.ndarray, Q: np.ndarray, offsets: np.ndarray, base: float) -> np.ndarray:
    """Predictions base + offset + p·q in float32, each the same however it is grouped with others.

    A matrix product would add in another order at the edges of its tiles, and columns that tie would not.

    Parameters
    ----------
    p : float32[k] or float32[count, k]
        One row for all, or a row each.
    Q : float32[count, k]
    offsets : float64[count]
        Sum of the biases.
    base : float

    Returns
    -------
    float32[count]
    """
    dots = np.einsum("k,ik->i" if p.ndim == 1 else "ik,ik->i", p, Q)
    return np.asarray(base + offsets + dots, np.float32)


def keep(values: np.ndarray, n: int) -> np.ndarray:
    """Positions, ascending, of the n largest values; of equal ones the first.

    >>> keep(np.array([3.0, 9.0, 3.0, 3.0]), 3)
    array([0, 1, 2])
    """
    if len(values) <= n:
        return np.arange(len(values))
    threshold = np.partition(values, len(values) - n)[len(values) - n]
    kept = values > threshold
    kept[np.flatnonzero(values == threshold)[: n - np.count_nonzero(kept)]] = True
    return np.flatnonzero(kept)


def best(
    P: np.ndarray, row_bias: np.ndarray, Q: Table, col_bias: Table, mean: float, n: int, seen: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Find the n best columns of some rows, without holding Q or a score for every column.

    Parameters
    ----------
    P : float32[rows, k]
    row_bias : float32[rows]
    Q : Table float32[columns, k]
    col_bias : Table float32[columns]
    mean : float
    n : int
        At least 1.
    seen : int64[:] for each row
        Columns to leave out; −1 is none.

    Returns
    -------
    int64[rows, n], float32[rows, n]
        Columns by descending score, ties by position, and the scores. Where fewer than n columns remain, a row ends
        in −1 and NaN.
    """
    found = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(P)
    seen = [np.unique(columns) for columns in seen]
    rows, first = max(1, SCAN // (4 * P.shape[1])), 0
    for q, bias in zip(Q.chunks(rows), col_bias.chunks(rows), strict=True):
        for u, (columns, values) in enumerate(found):
            # In float64 up to the last rounding, and added in the order of every other prediction.
            fresh = scores(P[u], q, np.float64(row_bias[u]) + bias, mean)
            begin, end = np.searchsorted(seen[u], (first, first + len(q)))
            allowed = np.ones(len(q), bool)
            allowed[seen[u][begin:end] - first] = False
            columns = np.concatenate((columns, first + np.flatnonzero(allowed)))
            values = np.concatenate((values, fresh[allowed]))
            kept = keep(values, n)
            found[u] = columns[kept], values[kept]
        first += len(q)
    positions, sorted_scores = np.full((len(P), n), -1), np.full((len(P), n), np.nan, np.float32)
    for u, (columns, values) in enumerate(found):
        order = np.argsort(-values, kind="stable")
        positions[u, : len(order)], sorted_scores[u, : len(order)] = columns[order], values[order]
    return positions, sorted_scores
