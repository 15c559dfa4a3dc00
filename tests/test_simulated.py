"""The death of simulated ranks: those that are left find it out together, whenever it comes, and can go on."""

import threading
import time

import numpy as np
import pytest
import simulated
from simulated import Death, Simulated

from mfpar.errors import ConfigError, LaunchError, RankError, RankLostError
from mfpar.parallel.comm import Message


def work(comm: Simulated, rounds: int = 5) -> list[int]:
    """Some messages round the ring, and gathers."""
    found = []
    for number in range(rounds):
        got = np.zeros(3)
        above, below = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
        flight = (
            comm.start([Message(np.full(3, comm.rank), above, 1)], [Message(got, below, 1)]) if comm.size > 1 else None
        )
        found.append(sum(comm.gather(number)))
        if flight:
            flight.wait()
            assert (got == below).all()
    return found


def persevering(respawn: int = 0):
    """A body that works until nobody dies; returns the size in the end and how many times ranks were lost."""

    def body(comm: Simulated) -> tuple[int, int, bool]:
        losses = 0
        while True:
            try:
                with comm.guard():
                    assert work(comm) == [comm.size * number for number in range(5)]
                return comm.size, losses, comm.joined
            except RankLostError:
                losses += 1
                comm = comm.survivors(respawn)

    return body


def doomed(plan: dict[int, int], body):
    """The body on ranks of which some die after so many calls."""

    def run(comm: Simulated):
        if comm.rank in plan and not comm.joined:
            comm.hub.kill(comm.rank, after=plan[comm.rank])
        return body(comm)

    return run


CALLS = 16  # of `work` and the end of its guard


@pytest.mark.parametrize("call", range(CALLS + 1))
def test_whenever_a_rank_dies_the_others_go_on(call):
    outcomes = simulated.run_all(4, doomed({2: call}, persevering()), seed=call, tolerant=True)
    dies = call < CALLS
    assert isinstance(outcomes[2], Death) == dies
    assert {outcomes[rank] for rank in (0, 1, 3)} == {(3, 1, False) if dies else (4, 0, False)}


@pytest.mark.parametrize("seed", range(10))
def test_who_is_done_leaves_with_the_others(seed):
    """A death between the last meeting and the end of the guard: all hear of it, or none."""

    def body(comm: Simulated):
        if comm.rank == 1:
            threading.Timer(seed * 2e-5, comm.hub.kill, [1]).start()
        with comm.guard():
            pass

    outcomes = simulated.run_all(4, body, seed=seed, tolerant=True)
    assert len({type(outcomes[rank]) for rank in (0, 2, 3)}) == 1


@pytest.mark.parametrize("seed", range(40))
def test_several_die_at_any_moments_in_recovery_too(seed):
    plan = {0: seed % 7, 3: 5 + seed % 5, 4: 20}
    outcomes = simulated.run_all(5, doomed(plan, persevering()), seed=seed, team=2, tolerant=True)
    assert [isinstance(outcomes[rank], Death) for rank in (0, 3)] == [True, True]
    (size, losses, joined), other = outcomes[1], outcomes[2]
    assert other == (size, losses, joined)
    assert size in (2, 3)
    assert 1 <= losses <= 3


@pytest.mark.parametrize("seed", range(10))
def test_others_take_the_place_of_the_dead(seed):
    outcomes = simulated.run_all(3, doomed({1: seed}, persevering(respawn=1)), seed=seed, tolerant=True)
    assert isinstance(outcomes[1], Death)
    assert [outcomes[0], outcomes[2], outcomes[3]] == [(3, 1, False), (3, 1, False), (3, 0, True)]


def test_too_few_can_be_started():
    def body(comm: Simulated):
        if comm.joined:
            return comm.size, comm.rank, comm.warning
        comm.hub.world.startable = 1
        said = ""
        try:
            with comm.guard():
                if comm.rank < 2:
                    comm.hub.kill(comm.rank)
                comm.wait_until(lambda: False)
        except RankLostError as error:
            said = str(error)
            comm = comm.survivors(respawn=2)
        return comm.size, comm.rank, comm.warning, said

    outcomes = simulated.run_all(3, body, tolerant=True)
    *place, said = outcomes[2]
    assert said in ("rank 0 has died", "rank 1 has died", "rank 0, 1 has died", "a rank has died")
    assert place == [2, 0, "1 of 2 ranks could not be started"]
    assert outcomes[3] == (2, 1, "")


def test_a_rank_that_waits_for_its_own_threads_hears_of_it():
    def body(comm: Simulated):
        with comm.guard():
            if comm.rank == 1:
                threading.Timer(0.05, comm.hub.kill, [1]).start()
            comm.wait_until(lambda: False)

    assert [type(outcome) for outcome in simulated.run_all(3, body, tolerant=True)] == [
        RankLostError,
        Death,
        RankLostError,
    ]


@pytest.mark.parametrize("seed", range(10))
def test_an_error_beside_a_death_fails_the_run(seed):
    def body(comm: Simulated):
        with comm.guard():
            if comm.rank == 0:
                comm.hub.kill(0)
            if comm.rank == 1:
                while not comm.hub.lost:
                    time.sleep(1e-3)
                raise ConfigError("bad luck")
            comm.gather(None)

    death, own, heard = simulated.run_all(3, body, seed=seed, tolerant=True)
    assert isinstance(death, Death)
    assert str(own) == "bad luck"
    assert isinstance(heard, ConfigError | RankError)
    assert not isinstance(heard, RankLostError)


def test_a_death_in_one_group_is_one_of_all():
    def body(comm: Simulated):
        with comm.guard():
            group = comm.split(comm.rank % 2)
            with group.guard():
                if comm.rank == 3:
                    comm.hub.kill(3)
                group.wait_until(lambda: False)

    outcomes = simulated.run_all(4, body, tolerant=True)
    assert [type(outcome) for outcome in outcomes] == [RankLostError] * 3 + [Death]


def test_a_loss_that_the_region_itself_declares():
    def body(comm: Simulated):
        with comm.guard():
            if comm.rank == 1:
                raise RankLostError("rank 0 hangs")
            comm.wait_until(lambda: False)

    assert [type(outcome) for outcome in simulated.run_all(2, body, tolerant=True)] == [RankLostError] * 2


def test_ranks_that_are_not_tolerant_have_no_survivors():
    def body(comm: Simulated):
        with pytest.raises(LaunchError):
            comm.survivors()
        return comm.tolerant

    assert simulated.run(2, body) == [False, False]
