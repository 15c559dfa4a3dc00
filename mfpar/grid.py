"""The grid: how rows and columns are cut into blocks, and which rank owns which row-blocks. Pure integers.

Rows 0…m−1 are cut into G row-blocks, columns into G column-blocks. With 8 row-blocks on 3 ranks::

    row-block   0  1  2 | 3  4  5 | 6  7
    rank             0  |       1 |    2

so that ranks own contiguous ranges whose lengths differ by one at most.
"""

from dataclasses import dataclass

import numpy as np

from mfpar.errors import ConfigError

SMALLEST_GRID = 16
LARGEST_GRID = 1024
BLOCK_SIDE = 8192  # rows or columns: with 32 factors such a row-block fits a 1 MB cache
IMPLICIT_SIDE = 16  # rows and columns of a block from which cells without a rating are drawn
IMPLICIT_GRID = 4  # that many blocks of them at least, for a few ranks to share
BLOCK_RATINGS = 8192  # below this, a step is too short to hide what happens between steps


def span(count: int, parts: int, part: int) -> tuple[int, int]:
    """Range [first, last) of `count` things that belongs to `part` of `parts`: contiguous, lengths within one.

    >>> [span(8, 3, part) for part in range(3)]
    [(0, 3), (3, 6), (6, 8)]
    """
    small, larger = divmod(count, parts)
    first = part * small + min(part, larger)
    return first, first + small + (part < larger)


def owner(count: int, parts: int, index: int) -> int:
    """The part whose span holds `index`.

    >>> [owner(8, 3, index) for index in range(8)]
    [0, 0, 0, 1, 1, 1, 2, 2]
    """
    small, larger = divmod(count, parts)
    boundary = larger * (small + 1)
    return index // (small + 1) if index < boundary else larger + (index - boundary) // small


def default_grid(rows: int, cols: int, ratings: int, implicit: bool = False) -> int:
    """A sound G: a power of two from 16 on, larger for large sides while blocks keep enough ratings.

    Data with fewer than 16 rows or columns gets as many blocks as it has. Blocks of implicit data keep enough rows and
    columns to draw from: what is never in one block is never compared.

    >>> default_grid(943, 1682, 100_000), default_grid(480_189, 17_770, 100_000_000), default_grid(5, 9, 40)
    (16, 64, 5)
    >>> default_grid(943, 1682, 100_000, implicit=True), default_grid(100, 90, 1000, implicit=True)
    (16, 5)
    """
    grid = SMALLEST_GRID
    while grid < LARGEST_GRID and max(rows, cols) > grid * BLOCK_SIDE and ratings >= (2 * grid) ** 2 * BLOCK_RATINGS:
        grid *= 2
    side = min(rows, cols)
    if implicit:
        return max(1, min(IMPLICIT_GRID, side // 2), min(grid, side // IMPLICIT_SIDE))
    return min(grid, side)


def balanced_cuts(counts: np.ndarray, grid: int) -> np.ndarray:
    """Cut a line of rows (or columns) into `grid` blocks with near-equal numbers of ratings, none without a row.

    Parameters
    ----------
    counts : int64[m]
        Ratings of each row, in row order.
    grid : int
        Number of blocks, 1 ≤ grid ≤ m.

    Returns
    -------
    int64[grid + 1]
        Block b holds rows cuts[b] … cuts[b+1] − 1.

    Raises
    ------
    ConfigError
        More blocks than rows.

    >>> balanced_cuts(np.array([5, 1, 1, 1, 1, 1]), 2)
    array([0, 1, 6])
    """
    counts = np.asarray(counts, np.int64)
    return settled_cuts(nearest_cuts(counts, 0, 0, int(counts.sum()), grid), len(counts), grid)


def nearest_cuts(counts: np.ndarray, first: int, before: int, total: int, grid: int) -> np.ndarray:
    """Those cuts nearest to equal numbers of ratings whose places are to be sought in one piece of the line of rows.

    Pieces that make up the line have, one after the other, its grid − 1 inner cuts, as `settled_cuts` wants them.

    Parameters
    ----------
    counts : int64[rows of the piece], each at least 1
    first : row where the piece begins
    before : ratings of all rows before
    total : ratings of the whole line
    """
    after = (before + np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))) * grid
    # In integers: the cut nearest to each target b·total/grid, exact for any number of ratings below 2^63 / grid.
    targets = np.arange(1, grid, dtype=np.int64) * total
    targets = targets[(targets > after[0]) & (targets <= after[-1])]
    above = np.searchsorted(after, targets)
    nearer_below = targets - after[above - 1] < after[above] - targets
    return np.asarray(first + above - nearer_below)


def settled_cuts(nearest: np.ndarray, rows: int, grid: int) -> np.ndarray:
    """int64[grid + 1]: the cuts of `balanced_cuts` from what `nearest_cuts` found, with at least one row a block."""
    if not 1 <= grid <= rows:
        raise ConfigError(
            f"a grid of {grid} blocks a side needs at least {grid} rows and columns, but the data has {rows}"
        )
    cuts = np.concatenate((np.zeros(grid - len(nearest)), nearest, [rows])).astype(np.int64)  # no ratings, no targets
    # Push cuts right where they coincide, then left where that ran over the end.
    index = np.arange(grid + 1)
    cuts = np.maximum.accumulate(cuts - index) + index
    return np.asarray(np.minimum(cuts, rows - grid + index))


@dataclass(frozen=True)
class Grid:
    """The cuts of both sides.

    Attributes
    ----------
    row_cuts, col_cuts : int64[G + 1]
        Row-block i holds rows row_cuts[i] … row_cuts[i+1] − 1; likewise columns.
    """

    row_cuts: np.ndarray
    col_cuts: np.ndarray

    @property
    def size(self) -> int:
        """G, the number of row-blocks and of column-blocks."""
        return len(self.row_cuts) - 1

    def cuts(self, side: str) -> np.ndarray:
        """The cuts of one side, "rows" or "cols"."""
        return {"rows": self.row_cuts, "cols": self.col_cuts}[side]

    @property
    def row_sizes(self) -> np.ndarray:
        """int64[G]: rows of each row-block."""
        return np.diff(self.row_cuts)

    @property
    def col_sizes(self) -> np.ndarray:
        """int64[G]: columns of each column-block."""
        return np.diff(self.col_cuts)

    def holds(self, first: int, offsets: np.ndarray, rows: np.ndarray, cols: np.ndarray, beyond: int) -> bool:
        """Whether indices inside blocks are: kernels believe them, and would write beside their arrays.

        Parameters
        ----------
        first : the row-block of offsets[0]
        offsets : int64[count, G + 1]
            Block (first + i, j) has the indices offsets[i, j] … offsets[i, j + 1] − 1; blocks follow each other.
        rows, cols : unsigned integers [nnz]
        beyond : 1 if the index one past the last stands for the unknown, otherwise 0
        """
        count, full = len(offsets), np.diff(offsets, axis=1).ravel() > 0
        if not full.any():
            return True
        starts = offsets[:, :-1].ravel()[full]
        row_ends = np.repeat(self.row_sizes[first : first + count], self.size)[full] + beyond
        col_ends = np.tile(self.col_sizes, count)[full] + beyond
        return bool(
            (np.maximum.reduceat(rows, starts) < row_ends).all()
            and (np.maximum.reduceat(cols, starts) < col_ends).all()
        )
