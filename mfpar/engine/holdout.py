"""A validation part cut out of the training ratings, by a hash of seed, row and column: the same on any ranks."""

import numpy as np

from mfpar.blockfile import Strip
from mfpar.config import TrainConfig
from mfpar.grid import Grid
from mfpar.hashing import GOLDEN, mixed


def held_out(strip: Strip, first: int, grid: Grid, train: TrainConfig) -> np.ndarray:
    """bool[nnz]: which ratings of the row-blocks first, first + 1, … to validate on.

    With folds, the fold of a rating is its hash modulo their number.
    """
    held = np.empty(len(strip.values), bool)
    begin = 0
    for i, offsets in enumerate(strip.offsets, first):
        end = int(offsets[-1])
        starts = np.repeat(grid.col_cuts[:-1], np.diff(offsets))
        rows = strip.rows[begin:end] + grid.row_cuts[i]
        words = _hash(rows, strip.cols[begin:end] + starts, train.seed)
        if train.folds is not None:
            held[begin:end] = words % np.uint64(train.folds) == train.fold - 1
        else:
            held[begin:end] = words < np.uint64(train.validation_fraction * 2**64)
        begin = end
    return held


def _hash(rows: np.ndarray, cols: np.ndarray, seed: int) -> np.ndarray:
    """uint64[n] of int64[n] positions."""
    words = (rows.astype(np.uint64) << np.uint64(32)) ^ cols.astype(np.uint64)
    return mixed(mixed(words ^ np.uint64(seed)) ^ GOLDEN)


def some(strip: Strip, chosen: np.ndarray) -> Strip:
    """The chosen ratings of a strip, bool[nnz], in their order."""
    before = np.concatenate(([0], np.cumsum(chosen)))
    weights = None if strip.weights is None else strip.weights[chosen]
    return Strip(before[strip.offsets], strip.rows[chosen], strip.cols[chosen], strip.values[chosen], weights)
