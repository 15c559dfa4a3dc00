"""Ranks are killed under a real MPI that knows ULFM: what those that are left see, and that the job ends well."""

import json
import os
import sys
from pathlib import Path

import pytest
from conftest import BIN
from processes import run_to_end

from mfpar.errors import LaunchError
from mfpar.parallel.launch import FORGIVING, expected_size, knows_ulfm

MPIRUN = str(BIN / "mpirun")
ALONE = expected_size()[0] == 1

pytestmark = [
    pytest.mark.skipif(not ALONE, reason="starts ranks, and is one"),
    pytest.mark.skipif(ALONE and not knows_ulfm(), reason="MPI has no ULFM: ranks do not outlive each other"),
]

SOON = 30  # seconds; any of these jobs takes one or two, and a hang for ever

# What every script begins with. `say` prints a line of JSON whole; `fate` runs a body in a guard and says how it ended.
BEGINNING = """
import json, os, random, signal, sys, threading, time
import numpy as np
from mfpar import errors
from mfpar.cli.main import leave
from mfpar.parallel import launch, respawn, survival
from mfpar.parallel.comm import Message

respawn.command = lambda: [sys.executable, *sys.argv]
try:
    comm = launch.world()
except errors.RankNotNeededError:
    leave(0)
me = comm.rank

def say(*what):
    os.write(1, (json.dumps(what) + "\\n").encode())

def die(after=0.0):
    if after:
        threading.Timer(after, die).start()
    else:
        os.kill(os.getpid(), signal.SIGKILL)

def fate(comm, body):
    try:
        with comm.guard():
            body()
    except errors.MfparError as error:
        return f"{type(error).__name__}: {error}"
    return "well"

def work(comm):
    # Messages round the ring, longer than what MPI sends without asking; a sum; memory of all.
    got, sent = np.zeros(1 << 20, np.float32), np.full(1 << 20, comm.rank, np.float32)
    above, below = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    if comm.size > 1:
        comm.start([Message(sent, above, 1)], [Message(got, below, 1)]).wait()
    assert (got == below).all()
    memory = comm.share(100)
    memory[comm.rank] = 1
    comm.gather(None)
    assert memory.sum() == comm.leaders.count(comm.leaders[comm.rank])
    return comm.gather(comm.rank)
"""


def own_shared_memory(tmp_path: Path) -> dict[str, str]:
    """What the killed leave of MPI's shared memory goes with the test's folder."""
    return {"OMPI_MCA_btl_sm_backing_directory": str(tmp_path)}


def run(
    tmp_path: Path, script: str, ranks: int, *, rc: int | None = 0, tolerant: bool = True, forgiving: bool = True
) -> list[list]:
    """Run a script on ranks; returns what they said, sorted, and demands the exit code."""
    (tmp_path / "script.py").write_text(BEGINNING + script + "\nleave(0)\n")
    options = ["--with-ft", "ulfm"] if tolerant else []
    command = [MPIRUN, *options, "-n", str(ranks), sys.executable, "script.py"]
    environment = own_shared_memory(tmp_path) | (FORGIVING if forgiving else {})
    done = run_to_end(command, tmp_path, SOON, environment)
    assert rc in (done.returncode, None), done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return sorted(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


HOST = os.uname().nodename

# What survivors wait for when the others die, and what those do before.
WAITS = {
    "gather": "comm.gather(None)",
    "own threads": "comm.wait_until(lambda: False)",
    "a message of the dead": "comm.start([], [Message(np.zeros(1 << 21), victims[0], 0)]).wait()",
    "a message to the dead": "comm.start([Message(np.zeros(1 << 21), victims[0], 0)], []).wait()",
    "the end of the guard": "pass",
    "the living": "comm.start([], [Message(np.zeros(9), 1 if me == 0 else 0, 0)]).wait()",
}
DEATHS = [(wait, [2]) for wait in WAITS] + [("gather", [1, 3]), ("own threads", [0]), ("gather", [0, 1, 2])]


@pytest.mark.parametrize(("wait", "victims"), DEATHS, ids=lambda value: str(value).strip("[]"))
def test_those_that_are_left_hear_of_it_and_go_on(tmp_path, wait, victims):
    script = f"""
victims = {victims}
def body():
    work(comm)
    if me in victims:
        time.sleep(0.1)
        die()
    {WAITS[wait]}
ended = fate(comm, body)
new = comm.survivors()
say(me, comm.tolerant, ended, new.rank, new.size, new.joined, new.warning, launch.speaks(), work(new))
with new.guard():
    pass
"""
    said = run(tmp_path, script, 4)
    left = [rank for rank in range(4) if rank not in victims]
    assert [line[0] for line in said] == left
    for place, line in enumerate(said):
        assert line[3:] == [place, len(left), False, "", place == 0, list(range(len(left)))]
        assert line[1] is True
        dead = [f"rank {rank} on host {HOST}" for rank in victims if f"rank {rank} " in line[2]]
        assert dead, line
        assert line[2] == f"RankLostError: {' and '.join(dead)} {'has' if len(dead) == 1 else 'have'} died"


def test_what_was_in_memory_goes(tmp_path):
    """Also while somebody still has the communicator that lost a rank."""
    script = """
import gc, weakref

class Large:
    pass

def attempt():
    large = Large()
    with comm.guard():
        known.append(weakref.ref(large))
        if me == 1:
            die()
        comm.wait_until(lambda: False)

known = []
try:
    attempt()
except errors.RankLostError:
    pass
comm.survivors()
gc.collect()
say(me, known[0]() is None)
"""
    assert run(tmp_path, script, 3) == [[0, True], [2, True]]


@pytest.mark.parametrize("seed", range(3))
def test_a_second_death_in_recovery(tmp_path, seed):
    script = f"""
def body():
    if me == 1:
        die()
    comm.gather(None)
ended = fate(comm, body)
if me == 2:
    die(after=random.Random({seed}).choice([1e-4, 1e-3, 3e-3]))
    time.sleep({seed} * 1e-3)
current = comm
while True:
    current = current.survivors()
    if fate(current, lambda: [current.gather(None) for _ in range(100)] and time.sleep(0.3)) == "well":
        break
say(me, ended.partition(":")[0], current.size, work(current))
"""
    assert run(tmp_path, script, 4) == [[rank, "RankLostError", 2, [0, 1]] for rank in (0, 3)]


def test_others_take_the_place_of_the_dead(tmp_path):
    """One rank is left of three and starts two; of these one dies, and is replaced by the two that are left."""
    script = """
generation = int(sys.argv[1]) if len(sys.argv) > 1 else 0
respawn.command = lambda: [sys.executable, sys.argv[0], str(generation + 1)]

def lose(victims):
    def body():
        assert work(comm) == [0, 1, 2]
        if comm.rank in victims:
            die()
        comm.wait_until(lambda: False)
    assert fate(comm, body).startswith("RankLostError")

if generation == 0:
    lose([0, 2])
    comm = comm.survivors(respawn=2)
    assert launch.speaks()
if generation < 2:
    lose([1])
    generation = 1
    comm = comm.survivors(respawn=1)
say(generation, me, launch.launched_rank(), launch.expected_size()[0], comm.rank, comm.joined, comm.warning, work(comm))
with comm.guard():
    pass
"""
    assert run(tmp_path, script, 3) == [
        [1, 1, 1, 3, 0, False, "", [0, 1, 2]],
        [1, 2, 2, 3, 1, False, "", [0, 1, 2]],
        [2, 2, 2, 3, 2, True, "", [0, 1, 2]],
    ]


@pytest.mark.parametrize("victims", [[1], [0, 2], [0, 1]])
def test_mpirun_takes_it_for_a_success_though_nobody_has_told_it_to_forgive(tmp_path, victims):
    script = f"""
if not respawn.joins():
    fate(comm, lambda: die() if me in {victims} else comm.gather(None))
    comm = comm.survivors(respawn={len(victims)})
with comm.guard():
    say(comm.rank, work(comm))
"""
    assert run(tmp_path, script, 3, forgiving=False) == [[rank, [0, 1, 2]] for rank in range(3)]


@pytest.mark.parametrize("moment", [1, 2, 3], ids=["before others meet it", "before it is met", "before it is let in"])
@pytest.mark.parametrize("victim", [1, 2], ids=["the first", "another"])
def test_a_death_while_a_rank_is_started_anew(tmp_path, victim, moment):
    """Nobody waits for ever, neither those that are left nor who was started; and that is no failure either way."""
    script = f"""
def agree(comm, *flags, decided=[]):
    answer = survival.agree(comm, *flags)
    decided.append(answer)
    if me == {victim} and len(decided) == {moment}:
        die()
    return answer

if not respawn.joins():
    fate(comm, lambda: die() if me == 0 else comm.gather(None))
    respawn.agree = agree
    comm = comm.survivors(respawn=1)
with comm.guard():
    say(comm.rank, comm.size, work(comm))
"""
    there = 3 if moment == 3 else 2
    assert run(tmp_path, script, 4) == [[rank, there, list(range(there))] for rank in range(there)]


@pytest.mark.parametrize("nothing", ["[]", "['false']"])
def test_those_that_are_left_go_on_alone_where_nobody_can_be_started(tmp_path, nothing):
    script = f"""
respawn.command = lambda: {nothing}
respawn.START = 0.5
fate(comm, lambda: die() if me == 0 else comm.gather(None))
comm = comm.survivors(respawn=1)
say(comm.rank, work(comm), comm.warning)
"""
    reason = "only mfpar's command line can start itself again" if nothing == "[]" else "no answer in 0 s"
    # A process that never came to MPI makes mpirun say that the job has failed.
    said = run(tmp_path, script, 3, rc=None)
    short = "1 of 1 ranks could not be started again"
    assert said == [[0, [0, 1], f"{short}: {reason}"], [1, [0, 1], short]]


def test_an_error_is_what_it_was_where_nobody_dies(tmp_path):
    script = """
def body():
    if me == 1:
        raise errors.StorageError("disk 1 is full")
    comm.gather(None)
say(me, fate(comm, body), launch.outlived())
time.sleep(0.5)  # who leaves is dead to the others
"""
    assert run(tmp_path, script, 3) == [[rank, "StorageError: disk 1 is full", False] for rank in range(3)]
    script = """
def body():
    if me == 1:
        time.sleep(0.2)
        raise errors.ConfigError("late")
say(me, fate(comm, body), launch.outlived())
"""
    assert run(tmp_path, script, 3) == [[rank, "ConfigError: late", False] for rank in range(3)]


def test_an_error_beside_a_death_fails_the_run(tmp_path):
    script = """
def body():
    if me == 0:
        die()
    if me == 1:
        time.sleep(0.3)
        raise errors.ConfigError("bad luck")
    comm.gather(None)
say(me, fate(comm, body), launch.speaks())
"""
    (_, own, speaks), (_, heard, silent) = run(tmp_path, script, 3)
    assert (own, speaks, silent) == ("ConfigError: bad luck", True, False)
    assert heard == "RankError: a rank has failed while another one was lost"


def test_a_death_in_one_group_is_one_of_all(tmp_path):
    script = """
def body():
    group = comm.split(me % 2)
    with group.guard():
        group.gather(None)
        if me == 3:
            die()
        group.gather(None)
        group.wait_until(lambda: False)
ended = fate(comm, body)
say(me, ended, work(comm.survivors()))
"""
    died = f"RankLostError: rank 3 on host {HOST} has died"
    assert run(tmp_path, script, 4) == [[rank, died, [0, 1, 2]] for rank in range(3)]


def test_a_death_before_and_after_what_is_watched(tmp_path):
    script = """
def watched(comm, where):
    if me == where[0]:
        die()
    try:
        with comm.watch(5.0):
            ended = fate(comm, lambda: comm.gather(None))
            if me == where[1]:
                die()
    except errors.RankLostError as error:
        ended = f"RankLostError: {error}"
    return ended
first = watched(comm, (1, None))
comm = comm.survivors()
say(me, first, watched(comm, (None, 3)), launch.outlived(), work(comm.survivors()))
"""
    died = f"RankLostError: rank 1 on host {HOST} has died"
    assert run(tmp_path, script, 4) == [[rank, died, "well", True, [0, 1]] for rank in (0, 2)]


@pytest.mark.parametrize("tolerant", [True, False])
def test_who_hangs_when_all_is_done_is_not_waited_for(tmp_path, tolerant):
    script = """
with comm.watch(1.0):
    ended = fate(comm, lambda: comm.gather(None))
say(me, ended)
if me == 1:
    os.kill(os.getpid(), signal.SIGSTOP)
launch.finish(lambda: leave(0))
"""
    assert run(tmp_path, script, 3, rc=0 if tolerant else None, tolerant=tolerant) == [[n, "well"] for n in range(3)]


def test_a_loss_that_the_region_itself_declares(tmp_path):
    script = """
def body():
    if me == 1:
        raise errors.RankLostError("rank 0 hangs")
    comm.wait_until(lambda: False)
say(me, fate(comm, body), work(comm.survivors()))
"""
    said = run(tmp_path, script, 2)
    assert said == [[0, "RankLostError: a rank was lost", [0, 1]], [1, "RankLostError: rank 0 hangs", [0, 1]]]


def test_without_ulfm_nobody_goes_on(tmp_path):
    script = """
def body():
    if me == 1:
        raise errors.RankLostError("rank 0 hangs")
    comm.gather(None)
say(me, comm.tolerant, fate(comm, body), fate(comm, comm.survivors)[:11])
"""
    said = run(tmp_path, script, 2, tolerant=False)
    assert said == [[rank, False, "RankLostError: rank 0 hangs", "LaunchError"] for rank in range(2)]


# Runs in every process before anything else.
SABOTAGE = """
import os, sys
from mfpar.parallel.launch import launched_rank
import mfpar.doctor.examine
def examine(comm, *rest):
    if launched_rank() == 0:
        os.kill(os.getpid(), 9)
    comm.gather(None)
mfpar.doctor.examine.examine = examine
"""


def test_the_first_of_those_that_are_left_speaks(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE)
    patched = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}"}
    command = [MPIRUN, "--with-ft", "ulfm", "-n", "3", sys.executable, "-m", "mfpar", "doctor"]
    done = run_to_end(command, tmp_path, 12, patched | own_shared_memory(tmp_path))
    everything = done.stdout + done.stderr
    assert done.returncode == 1, everything
    assert everything.count(f"mfpar: error: rank 0 on host {HOST} has died\n") == 1, everything
    assert everything.count("mfpar: error") == 1, everything


def test_mpirun_is_asked_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("MFPAR_MPIRUN", str(tmp_path / "mpirun"))
    for says, knows in (("mpirun (Open MPI) 5.0.11", True), ("mpirun (Open MPI) 4.1.6", False), ("HYDRA 4.3", False)):
        (tmp_path / "mpirun").write_text(f"#!/bin/sh\necho '{says}'\n")
        (tmp_path / "mpirun").chmod(0o755)
        assert knows_ulfm() == knows
    (tmp_path / "mpirun").unlink()
    with pytest.raises(LaunchError):
        knows_ulfm()
