"""The model while it is trained, on one rank: its slice of P, and the column-blocks of Q that pass."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mfpar.blockfile import SIDES, BlockedFile
from mfpar.budget import Needs
from mfpar.config import TrainConfig
from mfpar.engine.centre import Averages, weighted_sum
from mfpar.engine.crew import Crew
from mfpar.engine.feed import Call, Feed
from mfpar.engine.objective import Objective
from mfpar.engine.rotation import Rotation
from mfpar.engine.rowblocks import RowBlocks
from mfpar.engine.starting import Starter
from mfpar.engine.tally import Totals
from mfpar.engine.trace import Trace
from mfpar.errors import ConfigError
from mfpar.grid import span
from mfpar.parallel.comm import Communicator
from mfpar.shards import Layout


def require_places(grid: int, ranks: int) -> None:
    """Raise ConfigError where there are more ranks than row-blocks."""
    if ranks > grid:
        raise ConfigError(
            f"{ranks} ranks for a grid of {grid}: at most {grid} can take part; "
            f"use fewer, or convert with --grid {4 * ranks}"
        )


class Tables:
    """The tables of a run, and how kernels visit their blocks. Collective.

    Parameters
    ----------
    file : BlockedFile
    objective : Objective
    train : TrainConfig
    comm : Communicator
    trace : Trace
    needs : Needs
        What of it lies where.

    Raises
    ------
    StorageError
        There is no room for spilled rows.
    """

    def __init__(
        self,
        file: BlockedFile,
        objective: Objective,
        train: TrainConfig,
        comm: Communicator,
        trace: Trace,
        needs: Needs,
    ):
        grid = self._grid = file.grid
        self.first, self.last = span(grid.size, comm.size, comm.rank)
        self.needs = needs
        self.comm, self.train, self.header, self.objective = comm, train, file.header, objective
        self.layout = Layout.of(objective.model, train)
        self._offset = 0.0  # δ of docs/method.md
        self._counts = {  # for the averages that a model with biases is centred on
            side: [file.ratings_of(side, index, index + 1) for index in range(self.first, self.last)]
            for side in SIDES
            if self._centred
        }
        self._row_sizes = grid.row_sizes[self.first : self.last]
        lengths = [self.layout.floats(int(size)) for size in self._row_sizes]
        self._rows = RowBlocks(lengths, Path(str(train.spill)) if needs.spilled else None)
        self._starter = Starter(file, objective.model, self.layout, train.seed, objective.unit)
        self._rotation = Rotation(grid, self.layout, comm, self._start_column, Crew(train.threads), trace)
        q_side = self._rotation.slots.buffer, grid.col_sizes + 1
        board, alone = self._rotation.board, self._rotation.alone
        self._feed = Feed(self._rows, self._row_sizes, q_side, board, alone, train.threads)
        self._start_rows()

    def restart(self) -> None:
        """Go back to the starting values. Collective."""
        self._start_rows()
        self._rotation.restart()
        self._offset = 0.0

    def _start_column(self, block: np.ndarray, j: int) -> None:
        self._starter.fill(block, "cols", j)

    def _start_rows(self) -> None:
        for index, block in enumerate(self._rows.blocks(change=True), self.first):
            self._starter.fill(block, "rows", index)

    def state(self, change: bool = False) -> Iterator[np.ndarray]:
        """All that training changes here, block by block, each to be read, or changed, before the next. Local."""
        yield from self._rows.blocks(change)
        yield from self._rotation.held()

    @property
    def position(self) -> tuple[np.ndarray, float]:
        """What else `state` needs to be put back, see `reposition`."""
        return self._rotation.order, self._offset

    def reposition(self, position: tuple[np.ndarray, float]) -> None:
        """Have `state` stand for what it was when `position` was this, to be written back. Collective."""
        order, self._offset = position
        self._rotation.relabel(order)

    def named(self, order: np.ndarray, role: str) -> list[tuple[str, int]]:
        """Names and floats of the blocks that `state` goes through here while column-blocks lie in `order`. Local."""
        rows = [
            (f"{role}/rows/{i}", self.layout.floats(int(self._grid.row_sizes[i]))) for i in range(self.first, self.last)
        ]
        cols = [
            (f"{role}/cols/{j}", self.layout.floats(int(self._grid.col_sizes[j])))
            for j in order[self.first : self.last]
        ]
        return rows + cols

    def seat_strangers(self) -> None:
        """Make the stranger of every block the average row, as the finished model will score it. Collective."""
        if self._centred:
            self._rotation.home()
            averages = self._averages()
            for side, _, block, size in self._blocks(change=True):
                averages.seat_stranger(*self.layout.stranger(block, size), side)

    @property
    def finite(self) -> bool:
        """Whether all numbers on this rank are, and none so large that its square is not."""
        with np.errstate(over="ignore", invalid="ignore"):
            return all(math.isfinite(float(np.dot(block, block))) for block in self.state())

    def finish(self) -> None:
        """Bring column-blocks home and move the model to where its average row and column are zero. Collective."""
        self._rotation.home()
        if self._centred:
            averages = self._averages()
            for side, _, block, size in self._blocks(change=True):
                averages.centre(self.layout.rows(block, size), self.layout.bias(block, size), side)

    @property
    def _centred(self) -> bool:
        """Whether the model ends where its average is zero; what L1 has made zero stays zero instead."""
        return self.layout.biases and not self.objective.l1

    @property
    def base(self) -> float:
        """Of the scores of the finished model."""
        return self.objective.level if self._centred else float(self.objective.base) + self._offset

    def row_block(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Factors float32[rows, k] and biases float32[rows] of this rank's row-block i, until the next is asked for."""
        block, size = self._rows.block(i - self.first), int(self._grid.row_sizes[i])
        return self.layout.rows(block, size), self.layout.bias(block, size)

    def col_block(self, j: int) -> tuple[np.ndarray, np.ndarray]:
        """The same of column-block j (first ≤ j < last); after `finish`."""
        block, size = self._rotation.block(j), int(self._grid.col_sizes[j])
        return self.layout.rows(block, size), self.layout.bias(block, size)

    def _blocks(self, change: bool = False) -> Iterator[tuple[str, int, np.ndarray, int]]:
        """Side, index, buffer and number of rows of each block that this rank owns, column-blocks at home."""
        for index, block in enumerate(self._rows.blocks(change), self.first):
            yield "rows", index, block, int(self._grid.row_sizes[index])
        for index in range(self.first, self.last):
            yield "cols", index, self._rotation.block(index), int(self._grid.col_sizes[index])

    def _averages(self) -> Averages:
        """The average row and column of all ranks, column-blocks at home. Collective."""
        sums: dict[str, list[list[float]]] = {side: [] for side in SIDES}
        for side, index, block, size in self._blocks():
            counts = self._counts[side][index - self.first]
            sums[side].append(
                weighted_sum(self.layout.rows(block, size), self.layout.bias(block, size), counts).tolist()
            )
        ranks = self.comm.gather(sums)
        everybody = {side: [total for rank in ranks for total in rank[side]] for side in SIDES}
        level = float(self.objective.base) + self._offset - self.objective.level
        return Averages.of(everybody, self.header.ratings, level, self.objective.model.nonnegative)

    def _visit(
        self,
        order: np.ndarray,
        call: Call,
        width: int,
        name: str,
        steps: int,
        so_far: np.ndarray | None = None,
        stay: bool = False,
    ) -> Totals:
        """Let a kernel visit blocks in the order of the ring, for so many steps; see `Rotation.run`. Collective."""
        return self._rotation.run(order, self._feed.visitor(call), width, steps, name, so_far, stay)

    def _visit_home(self, call: Call, width: int) -> Totals:
        """Let a kernel visit the blocks on the diagonal, column-blocks at home. Collective."""
        return self._visit(np.arange(self._grid.size), call, width, "sample", 1, stay=True)
