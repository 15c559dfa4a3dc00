"""Law 1, the blocks themselves: the ring of ranks brings each column-block to every row-block and home again."""

import threading
import time
from types import SimpleNamespace

import naive
import numpy as np
import pytest
import simulated
from hypothesis import given, settings
from hypothesis import strategies as st

from mfpar.engine.crew import Crew
from mfpar.engine.rotation import Rotation
from mfpar.engine.trace import Trace
from mfpar.errors import StorageError
from mfpar.grid import Grid, balanced_cuts, span
from mfpar.kernels import BEGAN, CAME, ENDED, Kind, register, score_kernel
from mfpar.losses import BUILTIN
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


def rotate(comm, grid: Grid, log: Log, seed: int, plan: list[int | str], threads: int = 1) -> int:
    """Go through epochs (numbers), ways "home", and ways "back" to where a copy was kept ("keep") or to the start.

    Every block holds its name and the number of its meetings so far.

    Returns the number of column-blocks that the rank has room for.
    """
    first, last = span(grid.size, comm.size, comm.rank)
    lengths = [LAYOUT.floats(int(size)) for size in grid.col_sizes]

    def fill(block, j):
        assert block.shape == (lengths[j],)
        block[:] = name(j, 0)

    rotation = Rotation(grid, LAYOUT, comm, fill, Crew(threads), Trace(comm, None))
    meetings_so_far = 0
    kept: list[tuple[np.ndarray, list[np.ndarray]]] = []  # the order of some moment, and copies of what lay there

    def visit(turns, sums):
        assert sums.shape == (last - first, 2)
        for place, j, start in naive.take_turns(turns):
            block = rotation.slots.buffer[start:][: lengths[j]]
            visits = len(log.of_col[j])  # nobody else can add to it now
            assert (block == name(j, visits)).all(), f"{block} is not block {j} after {visits} meetings"
            block[:] = name(j, visits + 1)
            log.note(first + place, j)
            sums[place] += j + 1, first + place

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
                rotation.relabel(order)
                for block, copy in zip(rotation.held(), copies, strict=True):
                    block[:] = copy
                meetings_so_far = int(copies[0][0] % 1000)
            else:
                rotation.restart()
                meetings_so_far = 0
            for index in range(first, last):
                log.undone[index] += len(log.of_row[index]) - meetings_so_far
                del log.of_row[index][meetings_so_far:], log.of_col[index][meetings_so_far:]
            comm.gather(None)
        else:
            before = comm.bytes_sent
            comm.gather(None)
            order, totals, step = ring(grid.size, seed, stage), None, 0
            for steps in parts(grid.size, seed + stage):
                so_far = None if totals is None else totals.sums
                totals = rotation.run(np.roll(order, -step), visit, 2, steps, "visit", so_far).after(totals)
                step += steps
                comm.gather(None)
                assert (rotation.order == np.roll(order, -step)).all()
                for j, block in zip(rotation.order[first:last], rotation.held(), strict=True):
                    assert (block == name(int(j), meetings_so_far + step)).all()
                comm.gather(None)
            met = sum(range(1, grid.size + 1))  # every column-block once, j + 1 for column-block j
            assert totals.sums.tolist() == [[met, grid.size * i] for i in range(grid.size)]
            assert totals.bytes_sent == sum(comm.gather(comm.bytes_sent - before))
            meetings_so_far += grid.size
            assert (comm.bytes_sent > before) <= (len(set(comm.leaders)) > 1)
            for j, block in zip(rotation.order[first:last], rotation.held(), strict=True):
                assert (block == name(int(j), meetings_so_far)).all()
    room = [max(lengths)] * len(rotation.slots.starts) if len(set(comm.leaders)) > 1 else lengths
    assert len(rotation.slots.buffer) == sum(room)
    return len(rotation.slots.starts)


def parts(size: int, seed: int) -> list[int]:
    """The steps of an epoch in some parts, as often as not in one."""
    random = np.random.default_rng(seed)
    ends = np.unique(random.integers(1, size + 1, random.integers(0, 3)))
    return np.diff([0, *ends[ends < size], size]).tolist()


def name(j: int, meetings: int) -> np.float32:
    """What fills a block: exact in float32."""
    return np.float32(1000 * (j + 1) + meetings)


def check(size: int, ranks: int, seed: int, plan: list[int | str], team: int = 1, threads: int = 1) -> None:
    """Rotate on several ranks, each `team` of which share memory, and compare with one."""
    grid = ragged(size)
    log, alone = Log(size), Log(size)
    room = simulated.run(ranks, lambda comm: rotate(comm, grid, log, seed, plan, threads), seed, team)
    assert rotate(Serial(), grid, alone, seed, plan) == size
    epochs = [stage for stage in plan if isinstance(stage, int)]
    for index in range(size):
        times, rest = divmod(len(log.of_row[index]), size)
        assert (rest, times * size + log.undone[index]) == (0, len(epochs) * size)
        assert sorted(log.of_row[index]) == sorted(log.of_col[index]) == sorted(list(range(size)) * times)
    # The order of each row-block and of each column-block decides every bit.
    assert (log.of_row, log.of_col) == (alone.of_row, alone.of_col)
    for rank, slots in enumerate(room):
        team_of = [other for other in range(ranks) if other // team == rank // team]
        held = span(size, ranks, team_of[-1])[1] - span(size, ranks, team_of[0])[0]
        assert slots == held + 2 * (len(team_of) < ranks)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_each_column_block_meets_every_row_block_and_comes_home(data):
    size = data.draw(st.integers(1, 13), "G")
    ranks = data.draw(st.integers(1, size), "ranks")
    plan = data.draw(st.lists(st.sampled_from([1, 2, 3, "home"]), min_size=1, max_size=5), "plan")
    team, threads = data.draw(st.integers(1, ranks), "team"), data.draw(st.integers(1, 3), "threads")
    check(size, ranks, data.draw(st.integers(0, 2**31), "seed"), [*plan, "home", "home"], team, threads)


@pytest.mark.parametrize("team", [1, 2, 16])
@pytest.mark.parametrize(
    ("size", "ranks"), [(1, 1), (2, 2), (3, 2), (5, 5), (16, 3), (16, 16), (7, 6)], ids=lambda value: str(value)
)
def test_special_shapes(size, ranks, team):
    check(size, ranks, 5, [1, 2, 3, "home", 4, 5, "home"], team)
    plan = [1, "keep", 2, "back", 3, "home", "keep", 4, "home", "back", 5, "restart", 6, "home"]
    check(size, ranks, 6, plan, team, threads=2)


def test_a_team_holds_a_share_of_the_blocks_and_room_for_two():
    grid = Grid(*[balanced_cuts(np.ones(96, np.int64), 32)] * 2)

    def room(comm):
        return len(Rotation(grid, LAYOUT, comm, lambda block, j: None, Crew(1), Trace(comm, None)).slots.starts)

    assert [simulated.run(4, room, team=team) for team in (1, 2, 3, 4)] == [
        [10] * 4,
        [18] * 4,
        [26] * 3 + [10],
        [32] * 4,
    ]


def test_counts_on_the_board_begin_anew_before_they_run_over(monkeypatch):
    monkeypatch.setattr("mfpar.engine.rotation.LAST_TURN", 40)
    check(6, 3, 1, [1, 2, 3, 4, 5, 6, 7, "home", 8, 9], team=2, threads=2)


@pytest.mark.parametrize("team", [1, 2, 4])
def test_an_error_in_one_thread_ends_the_pass_on_all_ranks(team):
    grid = ragged(8)

    def fail(comm):
        def visit(turns, sums):
            for place, j, _ in naive.take_turns(turns):
                if (comm.rank, place, j) == (2, 1, 5):
                    raise StorageError("no more")

        rotation = Rotation(grid, LAYOUT, comm, lambda block, j: None, Crew(2), Trace(comm, None))
        rotation.run(ring(8, 0, 1), visit, 1, 8, "visit")

    outcomes = simulated.run_all(4, fail, team=team)
    assert [str(outcome) for outcome in outcomes] == ["no more"] * 4


def test_compiled_workers_take_turns_as_their_twin_does():
    """Visits of real threads, compiled on one half of the row-blocks and in Python on the other, and their marks."""
    grid, log = ragged(6), Log(6)
    kind = Kind(8, LAYOUT.factors, register(BUILTIN["squared"]), True, True, "uint16", "uint16", paced=True)
    kernel, empty = score_kernel(kind), np.empty(0, np.float32)
    strip = np.zeros((6, 7), np.int64), *np.empty((2, 0), np.uint16), empty, empty
    noted = []
    trace = SimpleNamespace(wanted=True, visits=lambda *what: noted.append(what))
    rotation = Rotation(grid, LAYOUT, Serial(), lambda block, j: None, Crew(2), trace)
    p_side = np.zeros(6 * 100, np.float32), np.arange(6) * 100, np.full(6, 2)
    limits = np.float32(0), np.float32(0), np.float32(1)

    def visit(turns, sums):
        if turns.first == 0:
            kernel(turns, *strip, *p_side, rotation.slots.buffer, grid.col_sizes + 1, *limits, sums)
        else:
            for place, j, _ in naive.take_turns(turns):
                log.note(place, j)

    before = time.monotonic_ns()
    totals = rotation.run(ring(6, 3, 1), visit, 4, 6, "look")
    after = time.monotonic_ns()
    [(what, marks, shares, order, origin)] = noted
    assert (what, shares, order.tolist(), origin) == ("look", [(0, 3), (3, 6)], ring(6, 3, 1).tolist(), 0)
    assert [len(met) for met in log.of_row] == [0, 0, 0, 6, 6, 6]
    came, began, ended = (marks[:3, :, part] for part in (CAME, BEGAN, ENDED))
    assert marks.shape == (6, 6, 3)
    assert before < came.min()
    assert ended.max() < after
    assert (came <= began).all()
    assert (began <= ended).all()
    assert (ended[:, :-1] <= came[:, 1:]).all()
    assert totals.waited == pytest.approx((began - came).sum() / 2e9)  # two threads, of which one keeps no time
    assert totals.worked == pytest.approx((ended - began).sum() / 2e9)


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
