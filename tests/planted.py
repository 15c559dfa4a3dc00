"""Small blocked files of ratings that a low-rank matrix has made, with few popular and many rare rows and columns."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mfpar.blockfile import Header
from mfpar.grid import Grid, balanced_cuts
from mfpar.ratings.blockwriter import BlockedWriter

UNKNOWN = -1  # in `Ratings`: a row or column that training has not seen


@dataclass(frozen=True)
class Ratings:
    """Triples of row, column and value; indices over the whole matrix."""

    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray

    def __getitem__(self, some: np.ndarray | slice) -> "Ratings":
        return Ratings(self.rows[some], self.cols[some], self.values[some])


@dataclass(frozen=True)
class Planted:
    """A blocked file and what is in it."""

    path: Path
    grid: Grid
    header: Header
    row_ids: np.ndarray
    col_ids: np.ndarray
    train: Ratings
    test: Ratings
    noise: float  # standard deviation: no model predicts better
    weights: np.ndarray | None = None  # of each rating of `train`


def plant(
    path: Path,
    rows: int = 61,
    cols: int = 43,
    count: int = 1500,
    *,
    grid: int = 8,
    centre: float = 3.0,
    spread: float = 1.0,
    noise: float = 0.1,
    test: int = 150,
    unknown: int = 12,
    seed: int = 0,
    weighted: bool = False,
    implicit: bool = False,
) -> Planted:
    """Write `count` training ratings, `test` held-out ones of the same kind, and `unknown` more of unknown ids.

    Ratings are centre + spread · (row bias + column bias + product of 3 factors + noise), with a standard deviation of
    about `spread` before the noise; if `implicit`, all are 1. Weights, if `weighted`, are uniform in [0.5, 2).
    """
    rng = np.random.default_rng(seed)
    b, c = rng.normal(0, 0.5, rows), rng.normal(0, 0.5, cols)
    P, Q = rng.normal(0, 0.64, (rows, 3)), rng.normal(0, 0.64, (cols, 3))
    cells = _skewed_cells(rng, rows, cols, count + test)
    i, j = np.divmod(cells, cols)
    values = b[i] + c[j] + (P[i] * Q[j]).sum(axis=1) + rng.normal(0, noise, len(cells))
    everything = Ratings(i, j, (np.ones(len(cells)) if implicit else centre + spread * values).astype(np.float32))
    train = everything[:count]
    strange = everything[rng.integers(0, count, unknown)]
    which = np.arange(unknown) % 3  # unknown row, unknown column, both
    strange = Ratings(
        np.where(which != 1, UNKNOWN, strange.rows), np.where(which != 0, UNKNOWN, strange.cols), strange.values
    )
    held = [everything[count:], strange]
    heldout = Ratings(*(np.concatenate([getattr(part, name) for part in held]) for name in ("rows", "cols", "values")))
    row_ids, col_ids = rng.permutation(10 * rows)[:rows], rng.permutation(10 * cols)[:cols]
    weights = rng.uniform(0.5, 2, count).astype(np.float32) if weighted else None
    cuts = Grid(
        *(balanced_cuts(np.bincount(x, minlength=n), grid) for x, n in ((train.rows, rows), (train.cols, cols)))
    )
    header = Header(
        rows=rows,
        cols=cols,
        ratings=count,
        test_ratings=test + unknown,
        test_unknown=unknown,
        duplicates=0,
        seed=seed,
        streams=1,
        mean=float(train.values.mean(dtype=float)),
        deviation=float(train.values.std(dtype=float)),
        minimum=float(train.values.min()),
        maximum=float(train.values.max()),
        implicit=implicit,
        weighted=weighted,
    )
    write(path, cuts, header, row_ids, col_ids, {"train": train, "test": heldout}, weights)
    return Planted(path, cuts, header, row_ids, col_ids, train, heldout, noise * spread, weights)


def write(
    path: Path,
    grid: Grid,
    header: Header,
    row_ids: np.ndarray,
    col_ids: np.ndarray,
    parts: dict[str, Ratings],
    weights: np.ndarray | None = None,
) -> None:
    """Write a blocked file; ratings keep their order inside a block. `weights` are those of the training part."""
    writer = BlockedWriter(path, grid, header.weighted)
    for part, ratings in parts.items():
        i, rows = _local(grid.row_cuts, ratings.rows)
        j, cols = _local(grid.col_cuts, ratings.cols)
        for a, b in itertools.product(range(grid.size), repeat=2):
            inside = (i == a) & (j == b)
            if inside.any():
                weighed = weights[inside] if weights is not None and part == "train" else None
                writer.append(part, a, b, rows[inside], cols[inside], ratings.values[inside], weighed)
    write_ids(writer, "rows", row_ids, np.bincount(parts["train"].rows, minlength=len(row_ids)))
    write_ids(writer, "cols", col_ids, np.bincount(parts["train"].cols, minlength=len(col_ids)))
    writer.finish(header)


def write_ids(writer: BlockedWriter, side: str, ids: np.ndarray, counts: np.ndarray) -> None:
    """Write one side's table."""
    order = np.argsort(ids, kind="stable")
    for block, (a, b) in enumerate(itertools.pairwise(writer.grid.cuts(side))):
        writer.append_ids(side, block, ids[a:b], order[a:b], counts[a:b])


def _local(cuts: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Block and index inside it; the unknown go round all blocks, one past their last row."""
    block = np.searchsorted(cuts, indices, side="right") - 1
    unknown = indices == UNKNOWN
    block[unknown] = np.arange(unknown.sum()) % (len(cuts) - 1)
    return block, np.where(unknown, np.diff(cuts)[block], indices - cuts[block])


def _skewed_cells(rng: np.random.Generator, rows: int, cols: int, count: int) -> np.ndarray:
    """`count` different cells: rows and columns of weights like those of a Zipf law with exponent 0.7."""
    weights = [(1.0 + rng.permutation(n)) ** -0.7 for n in (rows, cols)]
    found = np.empty(0, np.int64)
    while len(found) < count:
        i, j = (rng.choice(len(w), 2 * count, p=w / w.sum()) for w in weights)
        cells = np.concatenate((found, i * cols + j))
        found = cells[np.sort(np.unique(cells, return_index=True)[1])]
    return found[:count]
