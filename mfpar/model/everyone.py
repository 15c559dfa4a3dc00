"""The best columns of every row, into a file: on any ranks, in memory that is given, whatever the size of P and Q.

Each rank goes through its own row-blocks a batch of rows at a time, and lets each batch meet Q, piece by piece. Every
rank begins with another piece, so that they do not all read the same place of the same file.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from mfpar.atomic import refuse_existing
from mfpar.blockfile import BlockedFile
from mfpar.errors import ConfigError
from mfpar.grid import Grid, span
from mfpar.model.aligned import Aligned
from mfpar.model.leaders import WIDTH, Leaders
from mfpar.model.listing import Listing, listing, require_format
from mfpar.model.scorer import Scorer
from mfpar.parallel.comm import Communicator

MEMORY = 512 << 20  # bytes that a rank may take, if nothing else is said
ALLOWANCE = 144 << 20  # bytes: Python, NumPy, HDF5, DuckDB, MPI, a tile of scores, and windows of tables
LEAST = 16 << 20  # bytes for rows, and cells that they have seen, below which it is no use to start
PER_PLACE = 112  # bytes for each of the n places of a row, while candidates are sorted in
PER_CELL = 48  # bytes for each cell that is left out, while they are sorted
SLICE = 1 << 22  # bytes of ids and scores made text at a time

Cells = tuple[np.ndarray, np.ndarray]


def recommend_all(
    scorer: Scorer,
    grid: Grid,
    path: Path,
    n: int,
    seen: Path | None,
    memory: int | None,
    force: bool,
    comm: Communicator,
) -> int:
    """See `mfpar.model.model.Model.recommend_all`. Collective, within `guard`."""
    if n < 1:
        raise ConfigError(f"n={n}: expected a number of recommendations ≥ 1")
    require_format(path)
    if comm.rank == 0:
        refuse_existing(path, force, [scorer.path, *([seen] if seen else [])])
    comm.gather(None)  # nothing is written before that is settled
    n = min(n, len(scorer.col_ids))
    first, last = (int(grid.row_cuts[block]) for block in span(grid.size, comm.size, comm.rank))
    start = int(grid.col_cuts[span(grid.size, comm.size, comm.rank)[0]])
    budget = _Budget(MEMORY if memory is None else memory, n, scorer.factors)
    with ExitStack() as stack:
        text = scorer.row_ids.text, scorer.col_ids.text
        target = stack.enter_context(listing(path, text, comm))
        file = stack.enter_context(BlockedFile(seen)) if seen else None
        left_out = _LeftOut(scorer.aligned(file, budget.ids) if file else None, budget)
        while first < last and n:
            cells, count = left_out.cells(first, last)
            leaders = _leaders(scorer, first, first + count, n, start, budget.width, cells)
            _write(target, scorer, first, leaders)
            first += count
        return target.finish()


class _Budget:
    """How a rank's memory is shared out.

    Raises
    ------
    ConfigError
        There is too little.
    """

    def __init__(self, memory: int, n: int, factors: int):
        self.width = max(WIDTH, 16 * n)
        # A piece of Q, as it is mapped and as the product takes it.
        fixed = ALLOWANCE + 8 * (factors + 1) * self.width
        left = memory - fixed
        if left < LEAST:
            needed = -(-(fixed + LEAST) >> 20)
            raise ConfigError(f"memory={memory >> 20}M is too small for this model, which needs {needed}M a rank")
        self.rows = max(1, left // 2 // (8 * (factors + 1) + PER_PLACE * n + 128))
        self.cells = left // 4 // PER_CELL
        self.ids = left // 4


class _LeftOut:
    """The cells that are left out, and so how many rows make a batch."""

    def __init__(self, aligned: Aligned | None, budget: _Budget):
        self._aligned, self._budget = aligned, budget
        self._rows = budget.rows
        if aligned is not None:
            header = aligned.file.header
            self._rows = max(1, min(self._rows, int(budget.cells * header.rows / max(1, header.ratings))))

    def cells(self, first: int, last: int) -> tuple[Cells, int]:
        """Cells left out of the rows from `first` on, by column, and for how many rows: as many as memory allows.

        Returns
        -------
        (int32[cells], int64[cells]), count
            Rows, from 0, and columns, ascending.
        """
        count = min(self._rows, last - first)
        if self._aligned is None:
            return (np.empty(0, np.int32), np.empty(0, np.int64)), count
        while True:
            found, total = [(np.empty(0, np.int32), np.empty(0, np.int64))], 0
            for rows, cols in self._aligned.cells(np.arange(first, first + count)):
                found.append((rows, cols))
                total += len(rows)
                if total > self._budget.cells and count > 1:
                    break
            else:
                break
            count = self._rows = count // 2
        rows, cols = (np.concatenate(parts) for parts in zip(*found, strict=True))
        del found
        order = np.argsort(cols, kind="stable")
        return (rows[order], cols[order]), count


def _leaders(scorer: Scorer, first: int, last: int, n: int, start: int, width: int, cells: Cells) -> Leaders:
    """The best columns of some rows, which meet Q from column `start` on and round."""
    leaders = Leaders(scorer.P.read(first, last), scorer.row_bias.read(first, last), scorer.base, n)
    scorer.P.release(first, last)
    scorer.row_bias.release(first, last)
    for begin, end in _round(start, len(scorer.col_ids), width):
        inside = slice(*np.searchsorted(cells[1], (begin, end)))
        rows, cols = cells[0][inside], cells[1][inside]
        order = np.argsort(rows, kind="stable")
        q, bias = scorer.Q.read(begin, end), scorer.col_bias.read(begin, end)
        leaders.meet(begin, q, bias, (rows[order], cols[order]))
        scorer.Q.release(begin, end)
        scorer.col_bias.release(begin, end)
    leaders.settle()
    return leaders


def _round(start: int, count: int, width: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most `width` that cover 0 … count − 1, from `start` on and round."""
    for first, last in ((start, count), (0, start)):
        for begin in range(first, last, width):
            yield begin, min(begin + width, last)


def _write(target: Listing, scorer: Scorer, first: int, leaders: Leaders) -> None:
    """Append the rows from `first` on, in slices."""
    count, n = leaders.columns.shape
    width = n * (scorer.row_ids.dtype.itemsize + scorer.col_ids.dtype.itemsize + 64)
    rows = max(1, SLICE // width)
    for begin in range(0, count, rows):
        columns = leaders.columns[begin : begin + rows]
        there = columns >= 0  # a row may have fewer columns left than places
        users = scorer.row_ids.take(np.arange(first + begin, first + begin + len(columns)))
        scores = scorer.natural(leaders.scores[begin : begin + rows][there])
        target.append(
            np.repeat(users, there.sum(axis=1)), np.nonzero(there)[1] + 1, scorer.col_ids.take(columns[there]), scores
        )
