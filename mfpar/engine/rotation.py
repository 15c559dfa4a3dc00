"""The rotating half of the model: column-blocks, which all row-blocks of all ranks visit by turns.

Ranks that share memory, those of one node, are a *team*. The column-blocks that its row-blocks meet lie in memory that
all of the team see; there nothing is ever moved or copied: whose turn it is, is written on a board
(`mfpar.kernels.turns`). Only what leaves the team's row-blocks for the next team's is sent (`mfpar.engine.ferry`).

Between passes each rank has some column-blocks to itself, those at its own *places*: place i is row-block i's, and the
block there is `order[i]`. So ranks can copy, measure and change the model side by side; a pass begins, for each block,
once the rank that had it lets go of it.
"""

from collections.abc import Callable

import numpy as np

from mfpar.budget import slots_of
from mfpar.engine.crew import Crew, Job
from mfpar.engine.ferry import Ferry, Port
from mfpar.engine.tally import Tally, Totals
from mfpar.engine.trace import Trace
from mfpar.grid import Grid, span
from mfpar.kernels import DONE, SLOT, WIDTH, Turns, announce_all, finish, have_ended
from mfpar.parallel.comm import Communicator
from mfpar.shards import Layout, Slots

LAST_TURN = 2**31 - 1


class Rotation:
    """Blocks of Q with column biases and optimizer state. Collective.

    Parameters
    ----------
    grid, layout : Grid, Layout
    comm : Communicator
    fill : function of a block's buffer float32[:] and its number
        Writes the starting values of a column-block.
    crew : Crew
    trace : Trace
    """

    def __init__(
        self,
        grid: Grid,
        layout: Layout,
        comm: Communicator,
        fill: Callable[[np.ndarray, int], None],
        crew: Crew,
        trace: Trace,
    ):
        self._comm, self._fill, self._crew, self._trace = comm, fill, crew, trace
        self._size = grid.size
        self._first, self._last = span(grid.size, comm.size, comm.rank)
        self._lengths = np.array([layout.floats(int(size)) for size in grid.col_sizes])
        port = Port.of(comm, grid.size)
        self._port = port
        places = slots_of(grid.col_sizes, layout, port.last - port.first)
        self.slots = Slots(places, comm.share(Slots.nbytes(places)))
        self.board = comm.share((grid.size + 2) * WIDTH * 4).view(np.int32).reshape(grid.size + 2, WIDTH)
        self._ferry = Ferry(comm, port, self.board, self._view, trace)
        self._tally = Tally(comm, port)
        self.order = np.arange(grid.size)  # the column-block at each row-block's place, between passes
        self._ended = 0  # how many workers of the team have ended passes, all told
        # The ferry is one more, where there is anywhere to go.
        self._visitors = sum(len(crew.shares(last - first)) for first, last in port.spans)
        self._workers = self._visitors + (not port.alone)
        self._turn = 0  # what the board says of every block between passes
        if self._port.leads:
            self._ferry.settle(self.order, np.arange(len(places)))
        self.restart()

    @property
    def alone(self) -> bool:
        """Whether all row-blocks are this team's."""
        return self._port.alone

    def restart(self) -> None:
        """Write the starting values into the column-blocks, each at home. Collective."""
        self.relabel(np.arange(self._size))
        for j in range(self._first, self._last):
            self._fill(self.block(j), j)

    def relabel(self, order: np.ndarray) -> None:
        """Say that the blocks lie in another order, for everybody to fill in those at his places. Collective."""
        self._comm.gather(None)
        if self._port.leads and not self._port.alone:  # alone each block stays in its place
            places = self._ferry.places
            self._ferry.settle(order, self.board[self.order[places], SLOT].copy())
        self.order = order
        self._comm.gather(None)

    def held(self) -> list[np.ndarray]:
        """Views of the blocks that this rank has to itself between passes, by place."""
        return [self.block(int(j)) for j in self.order[self._first : self._last]]

    def block(self, j: int) -> np.ndarray:
        """View of column-block j, which must lie in this team."""
        return self._view(int(self.board[j, SLOT]), j)

    def _view(self, slot: int, j: int) -> np.ndarray:
        return self.slots[slot][: self._lengths[j]]

    def run(
        self,
        order: np.ndarray,
        visit: Callable[[Turns, np.ndarray], None],
        width: int,
        steps: int,
        name: str,
        so_far: np.ndarray | None = None,
        stay: bool = False,
    ) -> Totals:
        """Let every row-block meet column-blocks in `order` (see `mfpar.schedule.ring`), for so many steps. Collective.

        Afterwards row-block i has at its place the block that it would meet next, order[(i + steps) mod G]: who goes on
        from there, with as many steps as are left, makes the same visits in the same orders as who never stopped.

        Parameters
        ----------
        visit : called by several threads at a time, each with turns of its own, and sums float64[B, width]
            Adds to the sums of the row-blocks that it visits, which begin at 0.
        width : at most `mfpar.engine.tally.WIDEST`
        name : what it does, for the trace
        so_far : float64[G, width]
            What the sums begin at, if not at 0.
        stay : bool
            For a single step, after which blocks stay where they are, instead of coming to where they are met next.
        """
        held = self._last - self._first
        sums, clocks = self._tally.begin(width, so_far)
        marks = np.zeros((held, steps * self._trace.wanted, 3), np.int64)
        if self._turn > LAST_TURN - 2 * self._size:
            self._begin_anew()
        self._turn += 1
        if self._port.alone:
            announce_all(self.board, self.order[self._first : self._last], self._turn)
        else:
            self._comm.gather(None)  # all have let go of what may have to leave the team
        before, self.order = self.order, order if stay else np.roll(order, -steps)

        self._ended += self._workers

        def work(first: int, last: int) -> None:
            visit(
                Turns(
                    *(first, last, self._first, 0, steps, self._turn),
                    *(order, self.board, self.slots.starts, clocks, marks),
                ),
                sums,
            )
            finish(self.board, self._ended)

        exchanged = 0.0
        job = self._crew.start(held, work)
        try:
            if self._port.leads and not self._port.alone:
                exchanged = self._ferry.run(before, order, self._turn, 0 if stay else steps, job)
                finish(self.board, self._ended)
            self._wait_for_team(job)
        except BaseException:
            self._ferry.stop()
            job.join()
            raise
        self._turn += steps
        self._trace.visits(name, marks, self._crew.shares(held), order, self._first)
        return self._tally.end(self._visitors, exchanged)

    def _wait_for_team(self, job: Job) -> None:
        """Wait until all visits of the team are made, and all has come that comes; unlike in a gather, asleep."""
        self._comm.wait_until(lambda: have_ended(self.board, self._ended) or bool(job.error) or self._ferry.stopped)
        if job.error:
            raise job.error
        if self._ferry.stopped:
            self._comm.wait_until(lambda: False)  # somebody of the team has failed, and is about to say so

    def home(self) -> None:
        """Bring column-block j to the place of row-block j, for all j. Collective."""
        self._comm.gather(None)
        before, self.order = self.order, np.arange(self._size)
        if self._port.leads and not self._port.alone:
            self._ferry.lay(before, self.order, self._turn)
        self._comm.gather(None)

    def _begin_anew(self) -> None:
        """Before the counts on the board run over: from 0 again. Collective."""
        self._comm.gather(None)
        self._turn = self._ended = 0
        self.board[:, DONE] = 0
        self._comm.gather(None)
