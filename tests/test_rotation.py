"""Law 1, the blocks themselves: the ring of ranks brings each column-block to every row-block and home again."""

import threading

import numpy as np
import pytest
import simulated
from hypothesis import given, settings
from hypothesis import strategies as st

from mfpar.engine.rotation import Rotation
from mfpar.grid import Grid, balanced_cuts, span
from mfpar.parallel.comm import Message, Serial
from mfpar.schedule import ring
from mfpar.shards import Layout

LAYOUT = Layout(factors=3, biases=True, states=1)


def ragged(size: int) -> Grid:
    """A grid whose column-blocks have 1, 2, 3, … columns by turns."""
    widths = 1 + np.arange(size) % 5
    return Grid(np.arange(size + 1), np.concatenate(([0], np.cumsum(widths))))


class Log:
    """Who met whom, in the order of each row-block and of each column-block."""

    def __init__(self, size: int):
        self.of_row: list[list[int]] = [[] for _ in range(size)]
        self.of_col: list[list[int]] = [[] for _ in range(size)]
        self.undone = [0] * size  # meetings that have been taken back
        self._lock = threading.Lock()

    def note(self, i: int, j: int) -> None:
        with self._lock:
            self.of_row[i].append(j)
            self.of_col[j].append(i)


def rotate(comm, grid: Grid, log: Log, seed: int, plan: list[int | str]) -> int:
    """Go through epochs (numbers), ways "home", and ways "back" to where a copy was kept ("keep") or to the start.

    Every block holds its name and the number of its meetings so far.

    Returns the number of column-blocks that the rank has room for.
    """
    first, last = span(grid.size, comm.size, comm.rank)
    lengths = [LAYOUT.floats(int(size)) for size in grid.col_sizes]

    def fill(block, j):
        assert block.shape == (lengths[j],)
        block[:] = name(j, 0)

    rotation = Rotation(grid, LAYOUT, comm, fill)
    meetings_so_far = 0
    kept: list[tuple[np.ndarray, list[np.ndarray]]] = []  # the order of some moment, and copies of what lay there

    def visit(a, b, met, starts, counts):
        for place in range(a, b):
            i, j = first + place, int(met[place])
            assert counts[place] == grid.col_sizes[j] + 1
            block = rotation.slots.buffer[starts[place] :][: lengths[j]]
            visits = len(log.of_col[j])  # nobody else can add to it now
            assert (block == name(j, visits)).all(), f"{block} is not block {j} after {visits} meetings"
            block[:] = name(j, visits + 1)
            log.note(i, j)

    for stage in plan:
        if stage == "home":
            rotation.home()
            for j in range(first, last):
                assert rotation.block(j).shape == (lengths[j],)
                assert (rotation.block(j) == name(j, meetings_so_far)).all()
        elif stage == "keep":
            kept.append((rotation.order, [block.copy() for block in rotation.held()]))
            for j, block in zip(rotation.order[first:last], rotation.held(), strict=True):
                assert (block == name(int(j), meetings_so_far)).all()
        elif stage in ("back", "restart"):  # to how it was; what has been met since goes out of the count again
            comm.gather(None)  # nobody rotates, or reads the log, while it is cut
            if stage == "back":
                order, copies = kept[-1]
                for block, copy in zip(rotation.held(order), copies, strict=True):
                    block[:] = copy
                rotation.order = order
                meetings_so_far = int(copies[0][0] % 1000)
            else:
                rotation.restart()
                meetings_so_far = 0
            for index in range(first, last):
                log.undone[index] += len(log.of_row[index]) - meetings_so_far
                del log.of_row[index][meetings_so_far:], log.of_col[index][meetings_so_far:]
            comm.gather(None)
        else:
            rotation.epoch(ring(grid.size, seed, stage), visit)
            meetings_so_far += grid.size
    assert len(rotation.slots.buffer) == len(rotation.slots.starts) * max(lengths)
    return len(rotation.slots.starts)


def name(j: int, meetings: int) -> np.float32:
    """What fills a block: exact in float32."""
    return np.float32(1000 * (j + 1) + meetings)


def check(size: int, ranks: int, seed: int, plan: list[int | str]) -> None:
    """Rotate on several ranks, and compare with one."""
    grid = ragged(size)
    log, alone = Log(size), Log(size)
    room = simulated.run(ranks, lambda comm: rotate(comm, grid, log, seed, plan), seed)
    assert rotate(Serial(), grid, alone, seed, plan) == size
    epochs = [stage for stage in plan if isinstance(stage, int)]
    for index in range(size):
        times, rest = divmod(len(log.of_row[index]), size)
        assert (rest, times * size + log.undone[index]) == (0, len(epochs) * size)
        assert sorted(log.of_row[index]) == sorted(log.of_col[index]) == sorted(list(range(size)) * times)
    # The order of each row-block and of each column-block decides every bit.
    assert (log.of_row, log.of_col) == (alone.of_row, alone.of_col)
    for rank, slots in enumerate(room):
        first, last = span(size, ranks, rank)
        assert slots <= last - first + 2 * (ranks > 1)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_each_column_block_meets_every_row_block_and_comes_home(data):
    size = data.draw(st.integers(1, 13), "G")
    ranks = data.draw(st.integers(1, size), "ranks")
    plan = data.draw(st.lists(st.sampled_from([1, 2, 3, "home"]), min_size=1, max_size=5), "plan")
    check(size, ranks, data.draw(st.integers(0, 2**31), "seed"), [*plan, "home", "home"])


@pytest.mark.parametrize(
    ("size", "ranks"), [(1, 1), (2, 2), (3, 2), (5, 5), (16, 3), (16, 16), (7, 6)], ids=lambda value: str(value)
)
def test_special_shapes(size, ranks):
    check(size, ranks, 5, [1, 2, 3, "home", 4, 5, "home"])
    check(size, ranks, 6, [1, "keep", 2, "back", 3, "home", "keep", 4, "home", "back", 5, "restart", 6, "home"])


def test_a_rank_holds_a_share_of_the_blocks_and_room_for_two():
    grid = Grid(*[balanced_cuts(np.ones(96, np.int64), 32)] * 2)
    room = simulated.run(4, lambda comm: len(Rotation(grid, LAYOUT, comm, lambda block, j: None).slots.starts))
    assert room == [10] * 4


def test_the_simulation_tells_a_block_that_is_used_too_late():
    """The instrument itself: what has been sent is no longer there, what comes in is not there yet."""

    def exchange(comm):
        mine, other = np.full(4, comm.rank, np.float32), np.zeros(4, np.float32)
        coming = comm.start([], [Message(other, 1 - comm.rank, 0)])
        early = other.copy()
        comm.gather(None)  # only now does the other one send
        leaving = comm.start([Message(mine, 1 - comm.rank, 0)], [])
        coming.wait()
        leaving.wait()
        return np.isnan(early).all(), np.isnan(mine).all(), other.tolist()

    assert simulated.run(2, exchange) == [(True, True, [1.0] * 4), (True, True, [0.0] * 4)]
