"""The column-blocks that a rank holds, and their way round the ring of ranks.

A rank that owns B row-blocks holds the B column-blocks that these meet in the current step, one per *place*, and has
room for two more that are still coming in. Handing on the first place's block and receiving the last place's next one
take two steps each to complete, so that a rank may run ahead of its neighbour by one.
"""

import functools
from collections.abc import Callable

import numpy as np

from mfpar.grid import Grid, owner, span
from mfpar.parallel.comm import Communicator, Message, Pending
from mfpar.schedule import meetings
from mfpar.shards import Layout, Slots

COMING_IN = 2

# visit(first, last, met, starts, counts): row-blocks first … last − 1 of this rank meet their column-blocks.
Visit = Callable[[int, int, np.ndarray, np.ndarray, np.ndarray], None]


class Rotation:
    """The rotating half of the model: blocks of Q with column biases and optimizer state.

    Parameters
    ----------
    grid, layout : Grid, Layout
    comm : Communicator
    fill : function of a block's buffer float32[:] and its number
        Writes the starting values of a column-block.
    """

    def __init__(self, grid: Grid, layout: Layout, comm: Communicator, fill: Callable[[np.ndarray, int], None]):
        self._comm = comm
        self._size = grid.size
        self._first, self._last = span(grid.size, comm.size, comm.rank)
        self._col_sizes = grid.col_sizes
        self._lengths = np.array([layout.floats(int(size)) for size in grid.col_sizes])
        held = self._last - self._first
        self.slots = Slots([int(self._lengths.max())] * (held + COMING_IN * (comm.size > 1)))
        self._fill = fill
        self.order = np.arange(grid.size)  # the column-block at each row-block's place, between epochs
        self._slot_of = list(range(held))  # of each of this rank's places
        self._spare = list(range(held, held + COMING_IN * (comm.size > 1)))
        self.restart()

    def restart(self) -> None:
        """Write the starting values into the column-blocks, each at home. Local."""
        self.order = np.arange(self._size)
        for block, j in zip(self.held(), range(self._first, self._last), strict=True):
            self._fill(block, j)

    def held(self, order: np.ndarray | None = None) -> list[np.ndarray]:
        """Views of the blocks that lie on this rank between epochs, by place; as in another `order`, if one is given.

        Whoever writes all of them on all ranks, as they lay in another order, sets `order` to it.
        """
        order = self.order if order is None else order
        return [self._block(slot, int(order[place])) for place, slot in enumerate(self._slot_of, self._first)]

    def starts(self) -> np.ndarray:
        """int64[places]: where in `slots.buffer` the column-block of each place begins."""
        return self.slots.starts[self._slot_of]

    def block(self, j: int) -> np.ndarray:
        """View of column-block j, which must be at home: at the place of row-block j of this rank."""
        return self._block(self._slot_of[j - self._first], j)

    def epoch(self, order: np.ndarray, visit: Visit) -> None:
        """Let every row-block meet every column-block, in `order` (see `mfpar.schedule.ring`). Collective.

        `visit` is called twice a step: for the first row-block, whose column-block then leaves, and for the others.
        """
        self._lay(order)
        held = self._last - self._first
        coming: Pending | None = None
        for step in range(self._size):
            met = meetings(order, step)[self._first : self._last]
            if coming and held == 1:  # the block that comes in is the very one that leaves next
                coming.wait()
                coming = None
            starts = self.starts()
            counts = self._col_sizes[met] + 1
            visit(0, 1, met, starts, counts)
            leaving = self._hand_on(meetings(order, step + 1))
            if coming:
                coming.wait()
            coming = leaving
            if held > 1:
                visit(1, held, met, starts, counts)
        if coming:
            coming.wait()

    def home(self) -> None:
        """Bring column-block j to the place of row-block j, for all j. Collective."""
        self._lay(np.arange(self._size))

    def _block(self, slot: int, j: int) -> np.ndarray:
        return self.slots[slot][: self._lengths[j]]

    def _hand_on(self, after: np.ndarray) -> Pending | None:
        """Move every column-block up by one row-block: `after` is who is where then."""
        first_slot = self._slot_of.pop(0)
        if self._comm.size == 1:
            self._slot_of.append(first_slot)
            return None
        # What comes in now has two steps' time; the slot of what leaves is free when both have arrived.
        incoming = self._spare.pop(0)
        self._spare.append(first_slot)
        self._slot_of.append(incoming)
        above, below = (self._comm.rank - 1) % self._comm.size, (self._comm.rank + 1) % self._comm.size
        leaves, comes = int(after[self._first - 1]), int(after[self._last - 1])
        return self._comm.start(
            [Message(self._block(first_slot, leaves), above, 0)], [Message(self._block(incoming, comes), below, 0)]
        )

    def _lay(self, order: np.ndarray) -> None:
        """Move column-blocks so that `order[i]` is at row-block i's place, for all i.

        Every rank offers all that leave it at once, and takes in as many as it has room for; whatever has left makes
        room for more. Room is never lost, so some rank that still expects blocks always has some, and whatever it
        takes in has been offered already: the exchange can't come to a halt.
        """
        place_before, place_after = np.argsort(self.order), np.argsort(order)
        mine = np.arange(self._first, self._last)
        slot_by_block = {int(self.order[i]): self._slot_of[i - self._first] for i in mine}
        expected = [int(j) for j in order[mine] if int(j) not in slot_by_block]
        flights: list[tuple[Pending, int | None]] = []  # with the slot that becomes free, if any
        for j, slot in list(slot_by_block.items()):
            peer = owner(self._size, self._comm.size, int(place_after[j]))
            if peer != self._comm.rank:
                flights.append((self._comm.start([Message(self._block(slot, j), peer, 1 + j)], []), slot))
        while expected or flights:
            while expected and self._spare:
                j, slot = expected.pop(0), self._spare.pop(0)
                peer = owner(self._size, self._comm.size, int(place_before[j]))
                flights.append((self._comm.start([], [Message(self._block(slot, j), peer, 1 + j)]), None))
                slot_by_block[j] = slot
            self._comm.wait_until(functools.partial(_any_arrived, flights))
            landed = [flight.arrived() for flight, _ in flights]
            self._spare += [slot for (_, slot), done in zip(flights, landed, strict=True) if done and slot is not None]
            flights = [flight for flight, done in zip(flights, landed, strict=True) if not done]
        self._slot_of = [slot_by_block[int(j)] for j in order[mine]]
        self.order = order


def _any_arrived(flights: list[tuple[Pending, int | None]]) -> bool:
    return any(flight.arrived() for flight, _ in flights)
