"""The way of column-blocks from team to team, round the ring.

A team whose row-blocks are A … B − 1 has as many column-blocks as row-blocks, and room for two more that are coming
in. In each step one leaves, after row-block A, for the team above, and one comes from the team below, for row-block
B − 1. The first rank of a team sees to that while its threads, and those of the other ranks, compute; what has come it
announces on the team's board. With room for two a team may run ahead of its neighbour by a step.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mfpar.engine.crew import Job
from mfpar.engine.trace import Trace
from mfpar.grid import owner, span
from mfpar.kernels import DONE, SLOT, announce_all
from mfpar.parallel.comm import Communicator, Message, Pending


@dataclass(frozen=True)
class Port:
    """A team and its neighbours.

    Attributes
    ----------
    spans : list[tuple[int, int]]
        Row-blocks of each rank of the team.
    leads : bool
        This rank is the team's first.
    alone : bool
        There is no other team.
    above, below : int
        First ranks of the neighbours.
    leaders : list[int]
        First rank of each rank's team.
    """

    spans: Sequence[tuple[int, int]]
    leads: bool
    alone: bool
    above: int
    below: int
    leaders: Sequence[int]

    @classmethod
    def of(cls, comm: Communicator, size: int) -> "Port":
        """The team of this rank, in a grid of `size` blocks a side."""
        leaders = comm.leaders
        team = [rank for rank in range(comm.size) if leaders[rank] == leaders[comm.rank]]
        spans = [span(size, comm.size, rank) for rank in team]
        return cls(
            spans=spans,
            leads=comm.rank == team[0],
            alone=len(team) == comm.size,
            above=leaders[(team[0] - 1) % comm.size],
            below=leaders[(team[-1] + 1) % comm.size],
            leaders=leaders,
        )

    @property
    def first(self) -> int:
        """The team's first row-block."""
        return self.spans[0][0]

    @property
    def last(self) -> int:
        """The row-block behind its last one."""
        return self.spans[-1][1]


class Ferry:
    """What the first rank of a team does between teams. Local, but for the messages.

    Parameters
    ----------
    comm : Communicator
    port : Port
    board : int32[G + 2, WIDTH]
        Of the team.
    view : function of slot and j
        The part of a slot that column-block j fills.
    trace : Trace
    """

    def __init__(
        self,
        comm: Communicator,
        port: Port,
        board: np.ndarray,
        view: Callable[[int, int], np.ndarray],
        trace: Trace,
    ):
        self._comm, self._board, self._view, self._trace = comm, board, view, trace
        self._size = len(board) - 2
        self.port, self.places = port, np.arange(port.first, port.last)
        self._spare: list[int] = []

    def settle(self, order: np.ndarray, slots: np.ndarray) -> None:
        """Say in which slots the blocks order[places] lie; further slots are spare."""
        self._board[order[self.places], SLOT] = slots[: len(self.places)]
        self._spare += slots[len(self.places) :].tolist()

    def run(self, before: np.ndarray, order: np.ndarray, turn: int, steps: int, job: Job) -> float:
        """Lay the blocks in `order`, and hand on all that leave the team, unless the job fails.

        Returns the seconds until the blocks lay in order, while workers began where they could.

        Raises what another rank has failed with.
        """
        started = time.perf_counter()
        with self._trace.span("exchange"):
            self.lay(before, order, turn)
        exchanged = time.perf_counter() - started
        passage = _Passage(self, order, turn, steps)
        self._comm.wait_until(lambda: passage.complete() or bool(job.error) or self.stopped)
        return exchanged

    def lay(self, before: np.ndarray, order: np.ndarray, turn: int) -> None:
        """Move column-blocks so that order[i] is at place i, for all i, and announce each with the count `turn`.

        Every team offers all that leave it at once, and takes in as many as it has room for; whatever has left makes
        room for more. Room is never lost, so some team that still expects blocks always has some, and whatever it
        takes in has been offered already: the exchange can't come to a halt.
        """
        place_before, place_after = np.argsort(before), np.argsort(order)
        here, wanted = {int(j) for j in before[self.places]}, [int(j) for j in order[self.places]]
        announce_all(self._board, np.array([j for j in wanted if j in here], np.int64), turn)
        expected = [j for j in wanted if j not in here]
        leaving = [self.send(j, self._leader(place_after[j]), 1 + j) for j in here.difference(wanted)]
        coming: list[tuple[Flight, int]] = []
        while expected or leaving or coming:
            while expected and self.has_room:
                j = expected.pop(0)
                coming.append((self.receive(j, self._leader(place_before[j]), 1 + j), turn))
            flights = [*leaving, *(flight for flight, _ in coming)]
            self._comm.wait_until(functools.partial(_any_arrived, flights))
            leaving, coming = self.land(leaving, coming)

    def send(self, j: int, peer: int, tag: int) -> "Flight":
        """Start to send a block of the team."""
        slot = int(self._board[j, SLOT])
        return Flight(self._comm.start([Message(self._view(slot, j), peer, tag)], []), j, slot)

    def receive(self, j: int, peer: int, tag: int) -> "Flight":
        """Start to receive a block into a spare slot."""
        slot = self._spare.pop(0)
        return Flight(self._comm.start([], [Message(self._view(slot, j), peer, tag)]), j, slot)

    def land(
        self, leaving: list["Flight"], coming: list[tuple["Flight", int]]
    ) -> tuple[list["Flight"], list[tuple["Flight", int]]]:
        """Take note of what has been sent, and announce with its count what has come; return the rest."""
        under_way: list[Flight] = []
        for flight in leaving:
            if flight.pending.arrived():
                self._spare.append(flight.slot)
                self._trace.message("send", flight.j, flight.begun)
            else:
                under_way.append(flight)
        expected: list[tuple[Flight, int]] = []
        for flight, count in coming:
            if flight.pending.arrived():
                self._board[flight.j, SLOT] = flight.slot
                announce_all(self._board, np.array([flight.j]), count)
                self._trace.message("receive", flight.j, flight.begun)
            else:
                expected.append((flight, count))
        return under_way, expected

    def visited(self, j: int) -> int:
        """How often a block of the team has been visited."""
        return int(self._board[j, DONE])

    @property
    def stopped(self) -> bool:
        """Whether somebody of the team has failed, so that all shall stop."""
        return bool(self._board[self._size, DONE])

    def stop(self) -> None:
        """Have all of the team stop."""
        self._board[self._size, DONE] = 1

    @property
    def has_room(self) -> bool:
        """Whether a slot is spare."""
        return bool(self._spare)

    def _leader(self, place: int) -> int:
        return self.port.leaders[owner(self._size, self._comm.size, int(place))]


@dataclass
class Flight:
    """A block under way, and the slot that it leaves or comes to."""

    pending: Pending
    j: int
    slot: int
    begun: int = field(default_factory=time.monotonic_ns)  # nanoseconds


def _any_arrived(flights: list[Flight]) -> bool:
    return any(flight.pending.arrived() for flight in flights)


class _Passage:
    """Some steps round the ring: the blocks that leave, in order, and those that come, one of each in every step."""

    def __init__(self, ferry: Ferry, order: np.ndarray, turn: int, steps: int):
        self._ferry, self._turn, self._steps = ferry, turn, steps
        ends = ferry.port.first, ferry.port.last
        self._to_leave, self._to_come = (order[(end + np.arange(steps)) % len(order)] for end in ends)
        self._left = self._come = 0  # how many have begun to
        self._leaving: list[Flight] = []
        self._coming: list[tuple[Flight, int]] = []

    def complete(self) -> bool:
        """Do what can be done now; whether all is done."""
        ferry = self._ferry
        self._leaving, self._coming = ferry.land(self._leaving, self._coming)
        while self._left < self._steps and self._may_leave(int(self._to_leave[self._left])):
            self._leaving.append(ferry.send(int(self._to_leave[self._left]), ferry.port.above, 0))
            self._left += 1
        while self._come < self._steps and ferry.has_room:
            flight = ferry.receive(int(self._to_come[self._come]), ferry.port.below, 0)
            self._come += 1
            self._coming.append((flight, self._turn + self._come))
        return self._left == self._come == self._steps and not self._leaving and not self._coming

    def _may_leave(self, j: int) -> bool:
        return self._ferry.visited(j) == self._turn + self._left + 1
