"""No rank waits for ever for one that hangs; and none is accused that does not."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from planted import plant
from processes import run_to_end

from mfpar.parallel.comm import Serial
from mfpar.parallel.launch import expected_size, knows_ulfm
from mfpar.parallel.processes import Process
from mfpar.parallel.progress import LEAST, Activity, Waits

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="stops processes as Linux does")

SOON = 60  # seconds: any of these jobs takes less than ten, more on a machine that has other things to do
TIMEOUT = 2  # seconds without progress
MPIRUN = str(Path(sys.executable).parent / "mpirun")

# Each rank does its part in a scene, and leaves in a file how it has ended.
SCENES = """
import os, signal, sys, threading, time
from pathlib import Path
from mpi4py import MPI
from mfpar.errors import RankError, RankLostError
from mfpar.parallel.launch import speaks
from mfpar.parallel.tolerant import formed

scene, timeout = sys.argv[1], float(sys.argv[2])
comm = formed(MPI.COMM_WORLD)
rank = comm.rank
Path(f"process-{rank}").write_text(str(os.getpid()))

def stop():
    os.kill(os.getpid(), signal.SIGSTOP)

def read_what_nobody_writes():
    os.mkfifo("fifo")
    Path("fifo").read_bytes()

def one_is_stopped_while_others_wait():
    if rank == 1:
        stop()
    elif rank == 0:
        comm.gather(None)
    else:
        comm.wait_until(lambda: False)

def the_first_is_stopped_while_others_are_in_mpi():
    if rank == 0:
        stop()
    MPI.COMM_WORLD.Barrier()

def one_reads_from_a_dead_disk():
    if rank == 2:
        read_what_nobody_writes()
    comm.gather(None)

def one_waits_for_its_own_thread_that_reads():
    if rank == 1:
        thread = threading.Thread(target=read_what_nobody_writes, daemon=True)
        thread.start()
        comm.wait_until(lambda: not thread.is_alive())
    comm.gather(None)

def one_dies_and_another_is_stopped():
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.gather(None)

def work(seconds):
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        sum(range(10_000))

def all_end_at_different_times():
    work(rank * 0.7 * timeout)  # so the first waits for longer than it may hang

def one_fails_while_others_work():
    if rank == 1:
        raise KeyError("lost")
    work(1.5 * timeout)

def ended(how):
    Path(f"new-{rank}").write_text(how)
    os.rename(f"new-{rank}", f"ended-{rank}")

try:
    with comm.watch(timeout), comm.guard():
        globals()[scene]()
    with comm.watch(0), comm.guard():
        pass
except RankLostError as error:
    if scene == "one_dies_and_another_is_stopped" and rank == 2:
        stop()
    left = comm.survivors()
    with left.watch(timeout), left.guard():
        ended(f"{left.gather(rank)} go on: {error}")
    os._exit(0)  # MPI may not come to its end
except RankError as error:
    ended(f"{type(error).__name__}: {error}")
    if speaks():
        until = time.perf_counter() + 20
        while sum(path.name.startswith("ended-") for path in Path().iterdir()) < 2 and time.perf_counter() < until:
            time.sleep(0.05)
        MPI.COMM_WORLD.Abort(1)
    time.sleep(20)
except KeyError:
    ended("KeyError")
    time.sleep(20)
else:
    ended("well")
"""


def play(folder: Path, scene: str, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[int, str]]:
    """Three ranks play a scene: what they print, and how those ended that did so by themselves."""
    (folder / "scenes.py").write_text(SCENES)
    command = [MPIRUN, *options, "-n", "3", sys.executable, str(folder / "scenes.py"), scene, str(TIMEOUT)]
    try:
        done = run_to_end(command, folder, SOON)
        left = [path.name for path in folder.glob("process-*") if not is_gone(int(path.read_text()))]
    finally:
        for path in folder.glob("process-*"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)
    assert not left, f"{scene}: were still there when the job had ended"
    return done, {int(path.name[-1]): path.read_text() for path in sorted(folder.glob("ended-*"))}


def is_gone(process: int) -> bool:
    """Whether a process ends soon: mpirun does not wait for the last one."""
    until = time.perf_counter() + SOON
    while time.perf_counter() < until:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def accusation(folder: Path, rank: int) -> str:
    host, process = os.uname().nodename, (folder / f"process-{rank}").read_text()
    return f"rank {rank} on host {host} (process {process}) has made no progress for {TIMEOUT} s and is taken for dead"


@pytest.mark.parametrize(
    ("scene", "rank"), [("one_is_stopped_while_others_wait", 1), ("one_reads_from_a_dead_disk", 2)]
)
def test_a_rank_that_hangs_is_named_to_all(tmp_path, scene, rank):
    done, ends = play(tmp_path, scene)
    assert done.returncode != 0
    sentence = accusation(tmp_path, rank)
    assert ends == {other: f"RankError: {sentence}" for other in range(3) if other != rank}


def test_those_who_do_not_come_back_from_mpi_end_all_the_same(tmp_path):
    done, ends = play(tmp_path, "the_first_is_stopped_while_others_are_in_mpi")
    assert done.returncode != 0
    assert not ends
    assert done.stderr.count(f"mfpar: error: {accusation(tmp_path, 0)}\n") == done.stderr.count("mfpar: error") == 1


def test_ranks_that_all_wait_are_told_so(tmp_path):
    done, ends = play(tmp_path, "one_waits_for_its_own_thread_that_reads")
    assert done.returncode != 0
    assert set(ends) >= {0}
    for end in ends.values():
        assert re.match(rf"RankError: no rank has made progress for {TIMEOUT} s, ", end)


@pytest.mark.skipif(expected_size()[0] > 1 or not knows_ulfm(), reason="this MPI does not know ULFM")
def test_who_is_stopped_while_others_recover_is_left_behind(tmp_path):
    done, ends = play(tmp_path, "one_dies_and_another_is_stopped", "--with-ft", "ulfm")
    assert done.returncode == 0, done.stderr
    assert list(ends) == [0]
    assert ends[0].startswith("[0] go on: ")


LATE = """
import os, signal, sys, time
from mfpar.parallel.launch import launched_rank, world
if launched_rank() == 1:
    os.kill(os.getpid(), {signal})
world(float(sys.argv[1]))
"""


@pytest.mark.parametrize("number", ["SIGSTOP", "SIGKILL"])
@pytest.mark.parametrize("options", [[], ["--with-ft", "ulfm"]])
def test_who_does_not_come_at_the_start_is_not_waited_for(tmp_path, number, options):
    if options and not knows_ulfm():
        pytest.skip("this MPI does not know ULFM")
    (tmp_path / "late.py").write_text(LATE.format(signal=f"signal.{number}"))
    command = [MPIRUN, *options, "-n", "3", sys.executable, str(tmp_path / "late.py"), str(TIMEOUT)]
    assert run_to_end(command, tmp_path, SOON).returncode != 0


BETWEEN = """
import os, signal, sys
from mfpar.cli.main import main
from mfpar.parallel import launch
met = launch.world
def world(patience):
    comm = met(patience)
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    return comm
launch.world = world
sys.exit(main(["train", "ratings.h5", "-o", "model.h5", "--hang-timeout", sys.argv[1]]))
"""


def test_who_has_come_but_does_not_begin_is_not_waited_for(tmp_path):
    plant(tmp_path / "ratings.h5")
    (tmp_path / "between.py").write_text(BETWEEN)
    command = [MPIRUN, "-n", "3", sys.executable, str(tmp_path / "between.py"), str(TIMEOUT)]
    done = run_to_end(command, tmp_path, SOON)
    assert done.returncode != 0
    assert f"mfpar: error: the ranks did not begin together within {3 * TIMEOUT} s; the job is ended\n" in done.stderr


@pytest.mark.skipif(expected_size()[0] > 1 or not knows_ulfm(), reason="this MPI does not know ULFM")
@pytest.mark.parametrize(
    ("scene", "lost"), [("one_is_stopped_while_others_wait", 1), ("one_reads_from_a_dead_disk", 2)]
)
def test_the_rest_go_on_without_a_rank_that_hangs(tmp_path, scene, lost):
    done, ends = play(tmp_path, scene, "--with-ft", "ulfm")
    rest = [rank for rank in range(3) if rank != lost]
    assert ends == {rank: f"{rest} go on: {accusation(tmp_path, lost)}" for rank in rest}, done.stderr


def test_nobody_is_accused_who_waits_or_has_ended(tmp_path):
    done, ends = play(tmp_path, "all_end_at_different_times")
    assert (done.returncode, ends) == (0, dict.fromkeys(range(3), "well")), done.stderr


def test_who_fails_is_not_said_to_hang(tmp_path):
    done, ends = play(tmp_path, "one_fails_while_others_work")
    assert done.returncode != 0
    assert ends == {0: "RankError: rank 1 failed: KeyError: 'lost'", 1: "KeyError", 2: ends[0]}


def test_a_rank_alone_is_watched_by_nobody():
    with Serial().watch(1.0):
        pass


def test_a_process_is_killed_but_no_other_that_has_its_number():
    code = "import json; from mfpar.parallel.processes import Process\n"
    code += "print(json.dumps(Process.own().as_dict()), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        said = json.loads(child.stdout.readline())
        assert said["pid"] == child.pid
        assert Process(**said).near(Process.own())
        assert not Process(**{**said, "place": "elsewhere"}).near(Process.own())
        Process(**{**said, "born": said["born"] - 1}).kill()
        Process(**{**said, "born": -1}).kill()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.2)
        Process(**said).kill()
        assert child.wait(SOON) == -signal.SIGKILL
    Process(**said).kill()  # who is gone already does no harm


def test_activity_is_told_from_naps():
    activity = Activity(10.0)
    assert activity.idle(1.0, 5.0) == 0.0
    naps = LEAST / 2  # seconds of CPU time each second
    assert [activity.idle(1.0 + time, 5.0 + naps * time) for time in (1.0, 9.0, 100.0)] == [1.0, 9.0, 100.0]
    assert activity.idle(102.0, 6.0) == 0.0
    assert activity.idle(103.0, 6.0) == 1.0


def test_a_wait_counts_what_its_looks_use():
    waits = Waits()
    before = waits.look(None)
    until = time.thread_time() + 0.02
    while time.thread_time() < until:
        pass
    waits.look(before)
    assert waits.looks == 2
    assert 0.02 <= waits.used <= time.thread_time()
