"""Copies of a run's state in the memory of its ranks, from which those go on that survive the loss of others.

Each rank keeps a snapshot of the blocks that it owned in a cut, its *shard*, and a copy of the shard of another rank,
its *ward*, of which it is the *keeper*. A cut that all have kept so is a *generation*, by number.

How a generation takes the place of the one before, while training stands still:

1. Each rank sends its living blocks to its keeper, which receives them in a spare room. Nothing old is touched.
2. A gather says that all have done so. Whoever leaves it takes its own snapshot, over the old one, and makes the spare
   room the copy's.
3. A gather says that all have left the first. Nobody goes on training, and changes memory that others share, before.

If a rank dies, some may have left the first gather and others not. Those that have not remember where the living blocks
are, which are still those of the cut, as nobody has passed the second one. On the communicator of those that are left
all say what they hold, and can decide: had anyone left the first gather, then all copies were complete. So if all that
are left have completed theirs, the new generation is taken, in which every shard is where it is in the old one; if
not, nobody has touched the old.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mfpar.engine.cut import Blocks
from mfpar.parallel.comm import Communicator
from mfpar.parallel.exchange import swap

FIRST = 1.0  # seconds until there is something to lose
SELDOM = 40  # times as long as a refresh took, until the next one is due: it costs a fortieth of the time, about


@dataclass(frozen=True)
class Shard:
    """What one rank owned in a cut.

    Attributes
    ----------
    generation : int
        From 1.
    rank, ranks : int
        Whose it was, of how many there were: a generation is whole if there are so many shards.
    cut : dict
    blocks : by key, float32[:]
    """

    generation: int
    rank: int
    ranks: int
    cut: dict[str, Any]
    blocks: dict[str, np.ndarray]


class Room:
    """Memory for one shard, which is used for one after the other and grows if it has to."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.float32)

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return self._memory.nbytes

    def lay_out(self, sizes: dict[str, int]) -> dict[str, np.ndarray]:
        """Views float32[size] by key, in this order; what was there before is lost."""
        total = sum(sizes.values())
        if total > self._memory.size:
            self._memory = np.empty(0, np.float32)  # the old goes before the new comes
            self._memory = np.empty(total, np.float32)
        ends = np.cumsum([0, *sizes.values()])
        return {key: self._memory[end - size : end] for (key, size), end in zip(sizes.items(), ends[1:], strict=True)}


class Replicas:
    """Of one rank; the others have theirs. Outlives communicators and all that trains.

    Parameters
    ----------
    clock : seconds of a clock that never goes back
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._own: Shard | None = None
        self._copy: Shard | None = None
        self._pending: tuple[Shard, Shard] | None = None  # the living blocks, and the ward's in the spare room
        self._refused = 0  # the generation whose copy this rank has not completed, or that it has given up
        self._own_room, self._copy_room, self._spare = Room(), Room(), Room()
        self._chosen, self._givers = 0, list[int]()  # by `best`: a generation, and who gives each of its shards
        self._cost, self._due_at = 0.0, clock() + FIRST

    @property
    def due(self) -> bool:
        """Whether it is time for a refresh, after a loss at once; the first rank decides."""
        return self._clock() >= self._due_at

    @property
    def seconds(self) -> float:
        """What the last refresh took on this rank, waiting for others included."""
        return self._cost

    @property
    def nbytes(self) -> int:
        """Memory that this rank takes for replicas."""
        return self._own_room.nbytes + self._copy_room.nbytes + self._spare.nbytes

    def refresh(self, comm: Communicator, cut: dict[str, Any], blocks: Callable[[], Blocks]) -> None:
        """Keep a cut, in place of the one before. Collective, at a boundary; a rank alone keeps nothing.

        Parameters
        ----------
        cut : plain JSON values, the same on all ranks
        blocks : what this rank owns: arrays that stay, where and as they are, until this has returned, or, if it raises
            RankLostError, until `best` has

        Raises
        ------
        RankLostError
            Either this cut or the one before can be restored by those that are left, as `best` will find out.
        """
        started = self._clock()
        self._pending = None
        if comm.size == 1:
            self._own = self._copy = None
            self._own_room, self._copy_room, self._spare = Room(), Room(), Room()
        else:
            self._keep(comm, cut, dict(blocks()))
        self._cost = self._clock() - started
        self._due_at = self._clock() + SELDOM * self._cost

    def _keep(self, comm: Communicator, cut: dict[str, Any], living: dict[str, np.ndarray]) -> None:
        """Let a new generation take the place of the old one. Collective."""
        said = json.dumps({key: block.size for key, block in living.items()}).encode()
        generations, lengths = zip(*comm.gather([self._newest, len(said)]), strict=True)
        generation = max(generations) + 1
        if self._refused:  # what was on its way when a rank was lost may come yet
            self._spare = Room()
        self._refused = generation  # until the copy is complete
        keeper, ward = keeper_and_ward(comm)
        listing = np.empty(lengths[ward], np.uint8)
        swap(comm, [np.frombuffer(said, np.uint8)], keeper, [listing], ward)
        # Shards of other ranks than before have other sizes, so that old rooms may be larger than they need be.
        moved = self._own is not None and (self._own.rank, self._own.ranks) != (comm.rank, comm.size)
        if moved:
            self._spare = Room()
        theirs = self._spare.lay_out(json.loads(listing.tobytes()))
        swap(comm, list(living.values()), keeper, list(theirs.values()), ward)
        own, copy = (
            Shard(generation, rank, comm.size, cut, kept) for rank, kept in ((comm.rank, living), (ward, theirs))
        )
        self._pending, self._refused = (own, copy), 0
        comm.gather(None)
        if moved:
            self._own, self._copy, self._own_room, self._copy_room = None, None, Room(), Room()
        self._commit(own, copy)
        comm.gather(None)

    def best(self, comm: Communicator) -> dict[str, Any] | None:
        """The newest cut that the ranks of a communicator hold all shards of; None: there is none. Collective.

        To be called after a loss before anything else is built: living blocks of a refresh that was cut off may be
        needed here, and nowhere else.
        """
        self._due_at = float("-inf")  # shards that the lost ranks held are there once only
        held = [[shard.generation, shard.rank, shard.ranks] for shard in self._shards()]
        said = comm.gather([self._refused, held])
        refused = {one for one, _ in said}
        givers: dict[int, dict[int, int]] = {}
        whole = set()
        for place in range(2):  # a rank's own shard, if it is there, rather than the copy of it
            for giver, (_, shards) in enumerate(said):
                for generation, rank, ranks in shards[place::2]:
                    found = givers.setdefault(generation, {})
                    found.setdefault(rank, giver)
                    if len(found) == ranks and generation not in refused:
                        whole.add(generation)
        self._chosen = max(whole, default=0)
        if self._pending and self._pending[0].generation == self._chosen:
            self._commit(*self._pending)
        elif self._pending:
            self._refused, self._pending = self._pending[0].generation, None
        if not self._chosen:
            return None
        self._givers = [giver for _, giver in sorted(givers[self._chosen].items())]
        cut = next((shard.cut for shard in self._shards() if shard.generation == self._chosen), None)
        told: dict[str, Any] = comm.gather(cut if comm.rank == self._givers[0] else None)[self._givers[0]]
        return told

    def restore(self, comm: Communicator, sizes: dict[str, int], blocks: Blocks) -> None:
        """Write the cut that `best` has found into blocks that are owned now, by whomever. Collective.

        What is held stays as it is: if another rank is lost meanwhile, those that are left can do it again.

        Parameters
        ----------
        comm : that of `best`
        sizes : numbers of each block by key, as `blocks` will go through them here
        blocks : of all ranks together those of the cut, each to be written before the next is asked for
        """
        shards = [shard for shard in self._shards() if shard.generation == self._chosen]
        here = {key: block for shard in shards for key, block in shard.blocks.items()}
        for key in sizes.keys() & here.keys():
            _require_size(key, here[key], sizes[key])
        lacking = comm.gather({key: size for key, size in sizes.items() if key not in here})
        owners = {key: rank for rank, keys in enumerate(lacking) for key in keys}
        offered = [key for shard in shards if self._givers[shard.rank] == comm.rank for key in shard.blocks]
        given = comm.gather([key for key in offered if key in owners])
        source_of = {key: rank for rank, keys in enumerate(given) for key in keys}
        self._spare = Room()  # which leaves memory for what comes
        come = Room().lay_out(lacking[comm.rank])
        for step in range(1, comm.size):
            to, source = (comm.rank + step) % comm.size, (comm.rank - step) % comm.size
            leaving = [key for key in given[comm.rank] if owners[key] == to]
            for key in leaving:
                _require_size(key, here[key], lacking[to][key])
            entering = [key for key in given[source] if owners[key] == comm.rank]
            swap(comm, [here[key] for key in leaving], to, [come[key] for key in entering], source)
        if missing := lacking[comm.rank].keys() - source_of.keys():
            raise ValueError(f"no rank has kept {min(missing)}")
        for key, block in blocks:
            block[:] = here[key] if key in here else come[key]

    @property
    def _newest(self) -> int:
        """The newest generation that this rank knows of."""
        return max([self._refused, *(shard.generation for shard in self._shards())])

    def _shards(self) -> Iterator[Shard]:
        """What is held: own ones and copies by turns."""
        if self._own and self._copy:
            yield from (self._own, self._copy)
        if self._pending:
            yield from self._pending

    def _commit(self, living: Shard, copy: Shard) -> None:
        """Take the own snapshot of the living blocks, and what has come to the spare room for the copy. Local."""
        self._own = None
        kept = self._own_room.lay_out({key: block.size for key, block in living.blocks.items()})
        for key, block in living.blocks.items():
            kept[key][:] = block
        self._own, self._copy = Shard(living.generation, living.rank, living.ranks, living.cut, kept), copy
        self._copy_room, self._spare = self._spare, self._copy_room
        self._pending = None


def keeper_and_ward(comm: Communicator) -> tuple[int, int]:
    """The rank that keeps this one's shard, and the one whose shard this one keeps, of two ranks or more. Local.

    As many ranks on and back as the largest team has, so that they are on other nodes, unless one has most of the
    ranks; the neighbours where there is one team.
    """
    largest = max(comm.leaders.count(leader) for leader in comm.leaders)
    step = largest if largest < comm.size else 1
    return (comm.rank + step) % comm.size, (comm.rank - step) % comm.size


def _require_size(key: str, block: np.ndarray, size: int) -> None:
    if block.size != size:
        raise ValueError(f"{key} was kept with {block.size} numbers, but has {size} now")
