"""Replicas in memory: what is restored after whatever loss is one cut, whole, the same on all ranks that are left."""

import itertools

import numpy as np
import pytest
import simulated
from hypothesis import given, settings
from hypothesis import strategies as st

from mfpar.budget import needs_of
from mfpar.errors import RankError, RankLostError
from mfpar.grid import span
from mfpar.parallel import exchange
from mfpar.parallel.comm import Serial
from mfpar.recovery.replicas import Replicas, keeper_and_ward
from mfpar.shards import Layout

GRID = 7


def size_of(key: str) -> int:
    """Numbers of a block: uneven, and one has none."""
    side, number = key.split("/")
    return {"rows": 5, "cols": 3}[side] * int(number) % 11


def value_of(key: str, cut: dict) -> np.ndarray:
    seed = [cut["step"], ord(key[0]), int(key.split("/")[1])]
    return np.random.default_rng(seed).random(size_of(key), np.float32)


def owned(comm, cut: dict) -> list[str]:
    """Keys of a rank: its rows, and columns that have come round."""
    places = range(*span(GRID, comm.size, comm.rank))
    return [f"rows/{i}" for i in places] + [f"cols/{(i + cut['step']) % GRID}" for i in places]


def state(comm, cut: dict) -> dict[str, np.ndarray]:
    return {key: value_of(key, cut) for key in owned(comm, cut)}


def train_on(blocks: dict[str, np.ndarray]) -> None:
    for block in blocks.values():
        block[:] = np.nan


def keep(comm, replicas: Replicas, cut: dict) -> None:
    """Refresh, and train on if that has succeeded; as ranks of a node share memory, in blocks of all of them."""
    live = state(comm, cut)
    everyone = comm.hub.shared if isinstance(comm, simulated.Simulated) else {}
    everyone[f"live {cut['step']}", comm.rank] = live
    replicas.refresh(comm, cut, live.items)
    for (name, _), blocks in list(everyone.items()):
        if name == f"live {cut['step']}":
            train_on(blocks)


def restored(comm, replicas: Replicas, events: list[int]) -> dict | None:
    """Go back to the best cut there is, check every number of it, and return it."""
    cut = replicas.best(comm)
    assert comm.gather(cut) == [cut] * comm.size
    if cut is not None:
        seen, buffer = [], np.empty(11, np.float32)

        def blocks():  # all in one place, as where they go on to a file
            for key in owned(comm, cut):
                block = buffer[: size_of(key)]
                block[:] = np.nan
                yield key, block
                np.testing.assert_array_equal(block, value_of(key, cut))
                seen.append(key)

        replicas.restore(comm, {key: size_of(key) for key in owned(comm, cut)}, blocks())
        assert seen == owned(comm, cut)
        events.append(cut["step"])
    return cut


def run(ranks: int, victims: list[tuple[int, int, int]], seed: int, team: int = 1, respawn: int = 0):
    """Keep cut 1, then cut 2, going back whenever a rank is lost; then cut 3, and go back to that.

    Parameters
    ----------
    victims : (rank, phase, calls): who dies in phase 0, the refresh with cut 2, or 1, the first restore, after how many

    Returns
    -------
    cuts that each rank was back at; None of one that died
    """

    def body(comm):
        replicas, events = Replicas(), []
        number = None if comm.joined else comm.rank  # as it was at first

        def doom(phase: int) -> None:
            for rank, when, calls in victims:
                if (rank, when) == (number, phase):
                    comm.hub.kill(comm.rank, calls)

        def spare() -> None:
            comm.hub.world.doomed.pop(comm.hub.members[comm.rank], None)

        todo = ["back"] if comm.joined else ["one", "two", "back"]
        while True:
            try:
                with comm.guard():
                    if todo[0] == "one":
                        keep(comm, replicas, {"step": 1})
                        comm.gather(None)
                        todo.pop(0)
                        doom(0)
                    if todo[0] == "two":
                        todo.pop(0)
                        keep(comm, replicas, {"step": 2})
                        comm.gather(None)
                        spare()
                        doom(1)
                    restored(comm, replicas, events)
                    spare()
                    keep(comm, replicas, {"step": 3})
                    assert restored(comm, replicas, events) == ({"step": 3} if comm.size > 1 else None)
                return events
            except RankLostError:
                todo = ["back"]
                doom(1)
                comm = comm.survivors(respawn)

    outcomes = simulated.run_all(ranks, body, seed, team, tolerant=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, simulated.Death):
            raise outcome
    return [None if isinstance(outcome, simulated.Death) else outcome for outcome in outcomes]


def test_nobody_dies():
    for ranks in (2, 3, 5):
        assert run(ranks, [], 0) == [[2, 3]] * ranks
    assert run(1, [], 0) == [[]]


def survived(outcomes: list) -> list:
    """What ranks that are left were back at, checked: at the same in the end, and able to keep the next cut."""
    alive = [outcome for outcome in outcomes if outcome is not None]
    assert len({tuple(outcome[-2:]) for outcome in alive}) == 1, outcomes
    assert (alive[0][-1] == 3) == (len(alive) > 1), outcomes
    return alive


@pytest.mark.parametrize("respawn", [0, 1])
@pytest.mark.parametrize("ranks", [2, 3, 4, 5])
def test_a_death_at_any_call_of_a_refresh(ranks, respawn):
    found, calls, died = set(), 0, True
    while died:
        died = False
        for victim, seed in itertools.product(range(ranks), range(2)):
            outcomes = run(ranks, [(victim, 0, calls)], seed, respawn=respawn)
            died |= outcomes[victim] is None
            firsts = {outcome[0] for outcome in survived(outcomes)}
            found |= firsts
            assert firsts <= {1, 2}, outcomes
        calls += 1
    assert found == {1, 2}
    assert calls > 5


@pytest.mark.parametrize("respawn", [0, 1])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_death_at_any_call_of_going_back(ranks, respawn):
    calls, died = 0, True
    while died:
        died = False
        for victim in range(ranks):
            outcomes = run(ranks, [(victim, 1, calls)], calls, respawn=respawn)
            died |= outcomes[victim] is None
            assert {outcome[0] for outcome in survived(outcomes)} == {2}, outcomes
        calls += 1
    assert calls > 5


@pytest.mark.parametrize(("ranks", "first", "second"), [(4, 0, 2), (4, 3, 1), (5, 0, 2), (5, 4, 1)])
def test_another_death_while_going_back(ranks, first, second):
    """Of ranks that keep nothing of each other: nothing is lost."""
    found, deaths = set(), set()
    for calls, more in itertools.product(range(20), range(1, 16, 2)):
        outcomes = run(ranks, [(first, 0, calls), (second, 1, more)], calls)
        firsts = {outcome[0] for outcome in survived(outcomes)}
        assert firsts <= {1, 2}, outcomes
        found |= firsts
        deaths.add(outcomes.count(None))
    assert found == {1, 2}
    assert 2 in deaths


def test_a_rank_and_its_keeper():
    """What only they had is lost, which is noticed; or one of them dies after it has given it on."""
    found = []
    for calls in range(12):
        outcomes = run(4, [(1, 0, calls), (2, 0, calls + 1)], calls)
        alive = [tuple(outcome) for outcome in outcomes if outcome is not None]
        assert len({outcome[-1] for outcome in alive}) == 1
        found.append(alive[0])
    assert (3,) in found


def test_a_host_is_lost():
    found = set()
    for calls, (host, team) in itertools.product(range(14), [((0, 1), 2), ((2, 3), 2)]):
        outcomes = run(4, [(rank, 0, calls + rank) for rank in host], calls, team=team)
        found |= {outcome[0] for outcome in survived(outcomes)}
        assert found <= {1, 2}
    assert found == {1, 2}


class Place:
    """As much of a communicator as tells who keeps whose shard."""

    def __init__(self, rank: int, leaders: list[int]):
        self.rank, self.size, self.leaders = rank, len(leaders), leaders


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6).filter(lambda teams: sum(teams) > 1))
def test_keepers(teams):
    leaders = [leader for leader, team in zip(np.cumsum([0, *teams]), teams, strict=False) for _ in range(team)]
    pairs = [keeper_and_ward(Place(rank, leaders)) for rank in range(len(leaders))]
    for rank, (keeper, ward) in enumerate(pairs):
        assert keeper != rank
        assert pairs[keeper][1] == rank
        assert pairs[ward][0] == rank
        if 2 * max(teams) <= len(leaders):
            assert leaders[keeper] != leaders[rank]


def test_little_is_under_way(monkeypatch):
    monkeypatch.setattr(exchange, "WINDOW", 64)
    monkeypatch.setattr(exchange, "FEW", 3)
    most, start = [], simulated.Simulated.start

    def watched(comm, sends, receives):
        for messages in (sends, receives):
            sizes = [message.buffer.nbytes for message in messages]
            assert all(sizes)
            assert sum(sizes) <= 64 or len(sizes) == 1
            most.append(len(sizes))
        return start(comm, sends, receives)

    monkeypatch.setattr(simulated.Simulated, "start", watched)
    assert run(3, [], 0) == [[2, 3]] * 3
    assert max(most) == 3


def test_paces_itself():
    def body(comm):
        now = [0.0]
        replicas = Replicas(lambda: now[0])
        assert not replicas.due
        now[0] = 1
        assert replicas.due

        def blocks():
            now[0] += 2
            return state(comm, {"step": 1}).items()

        replicas.refresh(comm, {"step": 1}, blocks)
        due = []
        for now[0] in (3, 82, 83, 90):  # 40 times the 2 seconds that it took
            due.append(replicas.due)
        now[0] = 4
        replicas.best(comm)
        return replicas.seconds, due, replicas.due

    assert simulated.run(2, body) == [(2, [False, False, True, True], True)] * 2


def test_what_was_not_kept_is_refused():
    wanted = {"rows/99": 3}, [("rows/99", np.zeros(3, np.float32))]

    def body(comm):
        replicas = Replicas()
        keep(comm, replicas, {"step": 1})
        replicas.best(comm)
        replicas.restore(comm, *(wanted if comm.rank else ({}, [])))

    with pytest.raises(ValueError, match="no rank has kept rows/99"):
        Replicas().restore(Serial(), *wanted)
    with pytest.raises(RankError, match=r"rank 1 failed: .*no rank has kept rows/99"):
        simulated.run(2, body)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_the_plan_has_room_for_it(data):
    """Of any sizes, wherever column-blocks are, also after ranks were lost; to the byte where sizes are even."""
    grid = data.draw(st.integers(3, 8), "grid")
    even = data.draw(st.booleans(), "even")
    draw = st.integers(1, 1) if even else st.integers(1, 9)
    rows, cols = (np.array(data.draw(st.lists(draw, min_size=grid, max_size=grid))) for _ in range(2))
    layout, roles = Layout(3, True), data.draw(st.sampled_from([["now"], ["now", "best"]]))
    ranks = data.draw(st.integers(3, grid))

    def most(comm, replicas, step):
        places = range(*span(grid, comm.size, comm.rank))
        live = {}
        for role, (name, sizes, turn) in itertools.product(roles, [("rows", rows, 0), ("cols", cols, step)]):
            for i in places:
                block = (i + turn) % grid
                live[f"{role}/{name}/{block}"] = np.zeros(layout.floats(int(sizes[block])), np.float32)
        replicas.refresh(comm, {}, live.items)
        counts = {"train": np.ones((grid, grid), np.int64)}
        needs = [
            needs_of(
                rows, cols, counts, layout, comm.size, comm.rank, (comm.rank, comm.rank + 1), rating_bytes=8,
                memory=None, replicas=1, checkpoint=checkpoint, ways_back=len(roles) - 1,
            ).safety
            for checkpoint in (False, True)
        ]  # fmt: skip
        assert sum(block.nbytes for block in live.values()) <= needs[1] - needs[0]
        return replicas.nbytes, needs[0]

    def body(comm):
        replicas = Replicas()
        found = [most(comm, replicas, step) for step in range(3)]
        few = comm.split(int(comm.rank == 1))
        if comm.rank != 1:
            found += [most(few, replicas, step) for step in range(3)]
        return found

    for found in simulated.run(ranks, body):
        for taken, planned in found[1:3] + found[4:]:
            assert taken <= planned
            if even and grid % ranks == 0 and found[0][1] == planned:
                assert taken == planned


@pytest.mark.parallel(nprocs=[2, 3, 4])
def test_under_mpi():
    """Back on the same ranks; and on those that are left if the first one goes."""
    from mpi4py import MPI

    from mfpar.parallel.mpi import Mpi

    comm, replicas, events = Mpi(MPI.COMM_WORLD), Replicas(), []
    with comm.guard():
        for step in (1, 2):
            keep(comm, replicas, {"step": step})
            assert restored(comm, replicas, events) == {"step": step}
        few = comm.split(int(comm.rank == 0))
        if comm.rank:
            assert restored(few, replicas, events) == {"step": 2}
        few.close()
    comm.close()
    assert events == [1, 2, 2][: 2 + (comm.rank > 0)]
