"""What memory a rank takes: arithmetic on the sizes of blocks, obeyed by the engine and shown by the plan.

A rank's *floor* is what it can't do without: the runtime, its slice of P, and the column-blocks of its node. Ratings
that don't fit beside it are streamed from the file; rows that don't, live in a local file if that is allowed.

Column-blocks lie in memory that the ranks of a node share. The operating system counts it with each of them, and so do
these figures: a bound on every rank is one on the node.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mfpar.grid import span
from mfpar.shards import Layout

# Python with numpy, numba, h5py and MPI, and kernels that a rank may have to compile: 182 MB were seen serially and
# with cached kernels, 233 MB under MPI with kernels compiled anew.
RUNTIME = 236_000_000
LINE = 64  # bytes of a column-block's line on the board
COMING_IN = 2  # column-blocks that a node has room for beside its own
MOST_AHEAD = 1 << 22  # ratings in a buffer for streaming: more make nothing faster
ID_BYTES = 64  # of what is read to start a row with: its id, position and count, and a copy


@dataclass(frozen=True)
class Needs:
    """Bytes of one rank at its peak.

    Attributes
    ----------
    runtime : interpreter, libraries, kernels
    rows : its slice of P, with biases and optimizer state
    columns : the column-blocks of its node, those that come in from other nodes included
    ratings : where they stay in memory
    buffers : for streaming, and what is needed in passing
    copies : states to go back to, where they stay in memory
    safety : replicas, and what a checkpoint is written from while training goes on
    streamed : ratings are read from the file in every epoch
    spilled : rows live in a local file
    room : ratings in each of the two buffers that a thread streams through
    waiting : checkpoints are written while training waits, as there is no memory for a copy
    """

    runtime: int
    rows: int
    columns: int
    ratings: int
    buffers: int
    copies: int
    streamed: bool = False
    spilled: bool = False
    room: int = 0
    safety: int = 0
    waiting: bool = False

    @property
    def total(self) -> int:
        """All of it."""
        parts = self.rows, self.columns, self.ratings, self.buffers, self.copies, self.safety
        return self.runtime + sum(parts)


def slots_of(cols: np.ndarray, layout: Layout, held: int) -> list[int]:
    """Floats of each place for a column-block in a node whose ranks hold `held` row-blocks.

    Where all column-blocks stay on the node each has a place of its size; otherwise any may come to any place.
    """
    lengths = [layout.floats(int(size)) for size in cols]
    return lengths if held == len(cols) else [max(lengths)] * (held + COMING_IN)


def shards_of(rows: np.ndarray, cols: np.ndarray, layout: Layout, ranks: int) -> np.ndarray:
    """Bytes of what each rank owns between two steps, int64[ranks]: its row-blocks, and any as many column-blocks."""
    begins, ends = np.array([span(len(rows), ranks, rank) for rank in range(ranks)]).T
    row_ends, col_ends = (
        np.cumsum([0, *(4 * layout.floats(int(size)) for size in sizes)]) for sizes in (rows, np.sort(cols)[::-1])
    )
    shards: np.ndarray = row_ends[ends] - row_ends[begins] + col_ends[ends - begins]
    return shards


def needs_of(
    rows: np.ndarray,
    cols: np.ndarray,
    counts: dict[str, np.ndarray],
    layout: Layout,
    ranks: int,
    rank: int,
    team: tuple[int, int],
    *,
    rating_bytes: int,
    memory: int | None,
    threads: int = 1,
    spill: bool = False,
    copies: int = 2,
    replicas: int = 0,
    checkpoint: bool = False,
    ways_back: int = 0,
) -> Needs:
    """What a rank needs, and what of it can stay in memory.

    Copies go first, then a checkpoint's, then ratings, then rows. Replicas stay, and rows with them.

    Parameters
    ----------
    rows, cols : int64[G]
        Sizes of row-blocks and column-blocks.
    counts : by part ("train", "test"), int64[G, G] or int64[B, G] with the B row-blocks of this rank
        Ratings of each block.
    layout : Layout
    ranks, rank : int
    team : first and last + 1 of the ranks that share memory with this one
    rating_bytes : of a rating in a blocked file
    memory : bytes that the rank may take; None: as many as it likes
    threads : of the rank
    spill : rows may live in a local file
    copies : states to go back to that may exist at a time
    replicas : copies of each rank's state on other ranks, 0 or 1
    checkpoint : there is one from time to time
    ways_back : states to go back to that are part of what replicas and checkpoints hold

    Returns
    -------
    Needs
        The least there is where `memory` is too small for anything: then its total is above it.
    """
    size = len(rows)
    first, last = span(size, ranks, rank)
    held = span(size, ranks, team[1] - 1)[1] - span(size, ranks, team[0])[0]
    own = {name: part if len(part) == last - first else part[first:last] for name, part in counts.items()}
    lengths = [4 * layout.floats(int(count)) for count in rows[first:last]]
    passing = ID_BYTES * max(int(rows[first:last].max(initial=0)), int(cols.max(initial=0)))
    own_rows = int(rows[first:last].sum())
    tables = sum((part.size + len(part)) * 8 for part in own.values()) + 8 * (own_rows + int(cols[first:last].sum()))
    columns = 4 * sum(slots_of(cols, layout, held)) + (size + 2) * LINE
    ratings = rating_bytes * sum(int(part.sum()) for part in own.values())
    # A copy holds the slice of P and the column-blocks that are this rank's between epochs.
    copy = sum(lengths) + 4 * sum(layout.floats(int(count)) for count in cols) * (last - first) // size
    held_twice = own_shard = read_back = 0
    if checkpoint or (replicas and ranks > 1):
        shards = (1 + ways_back) * shards_of(rows, cols, layout, ranks)
        own_shard = int(shards[rank])
        # A snapshot of its own, and two rooms for that of another rank, whichever: another one after a loss.
        held_twice = own_shard + 2 * int(np.delete(shards, rank).max()) if replicas and ranks > 1 else 0
        # Ways back that lie on the disk are in memory while a copy of them is sent.
        read_back = own_shard // (1 + ways_back) * ways_back if held_twice else 0
    base = Needs(
        RUNTIME, sum(lengths), columns, ratings, passing + tables, copies * copy,
        safety=held_twice + checkpoint * own_shard,
    )  # fmt: skip
    if memory is None or base.total <= memory:
        return base
    base = replace(base, copies=0, safety=base.safety + read_back)
    if base.total <= memory:
        return base
    base = replace(base, safety=held_twice + read_back, waiting=checkpoint)
    if base.total <= memory:
        return base
    workers = min(threads, last - first)
    buffers = 2 * workers * rating_bytes
    largest = max((int(part.max(initial=0)) for part in own.values()), default=0)
    fullest = max((int(part.sum(axis=1).max(initial=0)) for part in own.values()), default=0)

    def streaming(needs: Needs) -> Needs:
        """With as large buffers as there is room for."""
        bare = replace(needs, ratings=0, streamed=True)
        room = max(largest, min((memory - bare.total) // buffers, fullest, MOST_AHEAD))
        return replace(bare, buffers=needs.buffers + room * buffers, room=room)

    streamed = streaming(base)
    if streamed.total <= memory or not spill or held_twice:
        return streamed
    # Two row-blocks for each worker, one that it works on and one that comes or goes, and one more to look at.
    spilled = replace(base, rows=(2 * workers + 1) * max(lengths), spilled=True)
    return spilled if spilled.total <= memory else streaming(spilled)


def refusal(
    found: Needs,
    rows: np.ndarray,
    cols: np.ndarray,
    counts: dict[str, np.ndarray],
    layout: Layout,
    ranks: int,
    on_node: int,
    *,
    memory: int,
    spill: bool = False,
    **options: Any,
) -> str:
    """The sentence for a rank whose `found` needs don't fit: why, and with how many ranks, or factors, it would do.

    Parameters
    ----------
    on_node : ranks that share memory
    others : as of `needs_of`, to which `options` go as they are; counts int64[G, G]
    """

    def fits(layout: Layout, ranks: int, spill: bool) -> bool:
        """Whether each rank fits, with as many on a node as now."""
        for rank in range(ranks):
            leader = rank // on_node * on_node
            team = leader, min(leader + on_node, ranks)
            needs = needs_of(rows, cols, counts, layout, ranks, rank, team, memory=memory, spill=spill, **options)
            if needs.total > memory:
                return False
        return True

    def least(low: int, high: int, good: Callable[[int], bool]) -> int | None:
        """The least number from `low` to `high` that is good, if `high` is; all above a good one are."""
        if low > high or not good(high):
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if good(middle) else (middle + 1, high)
        return low

    ways = []
    if enough := least(ranks + 1, len(rows), lambda count: fits(layout, count, spill)):
        place = "each on a node of its own" if on_node == 1 else f"{on_node} on a node"
        ways.append(f"use {enough} ranks, {place}")
    fewer = least(1 - layout.factors, -1, lambda k: fits(replace(layout, factors=-k), ranks, spill))
    if fewer:
        ways.append(f"--factors {-fewer}")
    without = ""
    if found.safety:
        options["replicas"], without = 0, "--replicas 0 and "
        if fits(layout, ranks, spill):
            ways.append("--replicas 0, to keep no copies in the memory of other ranks")
    if not spill and fits(layout, ranks, True):
        ways.append(f"{without}--spill DIR, to keep rows in a local file")
    return (
        f"a rank may take {megabytes(memory)}, but the least it needs is {megabytes(found.total)} "
        f"({megabytes(found.rows)} for its rows, {megabytes(found.columns)} for column-blocks, "
        f"{megabytes(found.runtime)} for Python and libraries, {megabytes(found.buffers)} for buffers"
        f"{f', {megabytes(found.safety)} for replicas' if found.safety else ''}); "
        f"{', or '.join(ways) if ways else 'give it more memory, or convert with a larger --grid'}"
    )


def megabytes(size: int) -> str:
    """Bytes for people to read.

    >>> megabytes(1_234_500_000)
    '1,234.5 MB'
    """
    return f"{size / 1e6:,.1f} MB"
