"""Replicas in memory: what is restored after whatever loss is one cut, whole, the same on all ranks that are left."""

import itertools

import numpy as np
import pytest
import simulated

from mfpar.errors import RankLostError
from mfpar.grid import span
from mfpar.recovery.replicas import Replicas

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
    """Refresh, and train on if that has succeeded, or if it is known what to go back to."""
    live = state(comm, cut)
    replicas.refresh(comm, cut, live.items)
    train_on(live)


def restored(comm, replicas: Replicas, events: list[int]) -> dict | None:
    """Go back to the best cut there is, check every number of it, and return it."""
    cut = replicas.best(comm)
    assert comm.gather(cut) == [cut] * comm.size
    if cut is not None:
        blocks = {key: np.full(size_of(key), np.nan, np.float32) for key in owned(comm, cut)}
        replicas.restore(comm, blocks.items())
        for key, block in blocks.items():
            np.testing.assert_array_equal(block, value_of(key, cut))
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


@pytest.mark.parametrize("ranks", [2, 3, 4, 5])
def test_a_death_at_any_call_of_a_refresh(ranks):
    found, calls = set(), 0
    while True:
        died = False
        for victim, seed in itertools.product(range(ranks), range(2)):
            outcomes = run(ranks, [(victim, 0, calls)], seed)
            died |= outcomes[victim] is None
            alive = [outcome for outcome in outcomes if outcome is not None]
            assert all(outcome[:1] in ([1], [2]) for outcome in alive), outcomes
            firsts = [outcome[0] for outcome in alive]
            found |= set(firsts)
            assert len({tuple(outcome[-2:]) for outcome in alive}) == 1, outcomes
        if not died:
            break
        calls += 1
    assert found == {1, 2}
    assert calls > 5
