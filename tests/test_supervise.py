"""The supervisor, with a stand-in for mpirun, so that everything can go wrong in a second."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakempi import HERE, PERIOD, FakeMpi

from mfpar import errors
from mfpar.parallel.processes import Process
from mfpar.supervise import folder as folders
from mfpar.supervise import hosts, supervisor, watch
from mfpar.supervise.folder import RunFolder, remove_abandoned
from mfpar.supervise.heartbeat import FOLDER
from mfpar.supervise.hosts import Host, parse_hosts
from mfpar.supervise.job import Job
from mfpar.supervise.supervisor import Supervisor

HANG = 1.0  # seconds: twice that is the limit
WORK = "start()\nif rank == 0: say('run'); say('epoch', epoch=1)\n"
SAVE = "if rank == 0: output.write_text('model'); say('saved')\n"
GOOD = {"rank": WORK + SAVE}
STUCK = "time.sleep(1000)\n"
BUSY = "while True: pass\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for module, name, value in (
        (folders, "PERIOD", PERIOD),
        (watch, "PERIOD", PERIOD),
        (watch, "GONE", 1.0),
        (watch, "MOURNING", 1.5),
        (supervisor, "LOOK", PERIOD),
        (supervisor, "FAREWELL", 1.0),
        (hosts, "ANSWER", 3.0),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def supervise(tmp_path, monkeypatch):
    """A function that supervises a fake job; returns it, and the events that were told."""

    def run(*attempts, restarts=1, ranks=2, several=None, listen=None, **settings):
        fake = FakeMpi(tmp_path, *attempts)
        monkeypatch.setenv("MFPAR_MPIRUN", str(fake.mpirun))
        monkeypatch.setenv("PRTE_MCA_plm_ssh_agent", str(fake.agent))
        events = []

        def arguments(resume, again):
            return ["train", *["--resume"] * resume, *["--force"] * again]

        def tell(event):
            events.append(event)
            if listen:
                listen(fake, event)

        supervising = Supervisor(
            arguments, fake.output, tell, ranks=ranks, hosts=several, restarts=restarts,
            **{"hang_timeout": HANG, **settings},
        )  # fmt: skip
        try:
            supervising.run()
        finally:
            # Whatever has happened, nothing of it is left.
            assert not list(tmp_path.glob(".*.run")) + list(tmp_path.glob(".*.over"))
            wait_for(lambda: not any(map(is_running, fake.pids)))
        return fake, events

    return run


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def kinds(events) -> list[str]:
    return [event["kind"] for event in events]


def test_a_job_that_succeeds_runs_once(supervise):
    fake, events = supervise(GOOD)
    assert kinds(events) == ["run", "epoch", "saved"]
    assert fake.starts == [["-n", "2", sys.executable, "-m", "mfpar", "train"]]


FAULTS = {
    "ends with 0 and no model": ({"rank": WORK}, "exit code 0"),
    "a rank fails": ({"rank": WORK + "if rank: sys.exit(3)\n" + BUSY}, "a rank has failed"),
    "a rank is killed": ({"rank": WORK + "if rank: os.kill(os.getpid(), 9)\n" + BUSY}, "a rank has failed"),
    "mpirun is killed": ({"rank": WORK + BUSY, "mpirun": "time.sleep(1); os.kill(os.getpid(), 9)"}, "exit code -9"),
    "mpirun is killed before its ranks have begun": (
        {"rank": "time.sleep(2); start()\n" + BUSY, "mpirun": "os.kill(os.getpid(), 9)"}, "exit code -9"
    ),
    "a rank is stopped": (
        {"rank": WORK + "if rank: os.kill(os.getpid(), signal.SIGSTOP)\n" + BUSY}, "has given no sign of life for 2 s"
    ),
    "a rank does nothing": ({"rank": WORK + f"if rank: {STUCK}" + BUSY}, "has done nothing for 2 s"),
    "a rank does not begin": ({"rank": f"if rank: {STUCK}" + WORK + BUSY}, "1 of 2 ranks have started within 4 s"),
    "mpirun does not end": ({"rank": WORK, "mpirun": STUCK}, "none of the ranks is there any more"),
    "mpirun is stopped": (
        {"rank": WORK, "mpirun": "os.kill(os.getpid(), 19)"}, "none of the ranks is there any more"
    ),
    "mpirun does not end after an error": (
        {"rank": WORK + "if rank == 0: say('error', error='RankError', message='so it is')\n" + BUSY, "mpirun": STUCK},
        "so it is",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("plan", "sentence"), FAULTS.values(), ids=FAULTS.keys())
def test_a_job_that_fails_is_started_again(supervise, plan, sentence):
    fake, events = supervise(plan, GOOD)
    restart = next(event for event in events if event["kind"] == "restart")
    assert sentence in restart["message"]
    assert (restart["attempt"], restart["of"], restart["hosts"]) == (1, 1, None)
    assert kinds(events)[-3:] == ["run", "epoch", "saved"]
    assert [start[-1] for start in fake.starts] == ["train", "--force"]


@pytest.mark.parametrize("restarts", [0, 2])
def test_it_is_not_started_for_ever(supervise, tmp_path, restarts):
    with pytest.raises(errors.RankError, match="the ranks ended with exit code 7: a rank"):
        supervise({"rank": WORK, "mpirun": "print('a rank', file=sys.stderr); sys.exit(7)"}, restarts=restarts)
    assert len((tmp_path / "starts").read_text().splitlines()) == 1 + restarts


@pytest.mark.parametrize(
    "mpirun",
    ["sys.exit(9)", "[process.wait() for process in ranks]; sys.exit(9)", STUCK],
    ids=["quick", "bad", "hangs"],
)
def test_what_is_saved_is_done_whatever_mpirun_says(supervise, mpirun):
    _, events = supervise({"rank": WORK + SAVE, "mpirun": f"ranks[0].wait(); {mpirun}"})
    assert kinds(events) == ["run", "epoch", "saved"]


def test_a_new_model_is_a_success_if_nothing_was_said(supervise, tmp_path):
    (tmp_path / "model.h5").write_text("an old one")
    write = "if rank == 0: output.unlink(); output.write_text('model'); sys.exit(1)\n" + BUSY
    fake, _ = supervise({"rank": WORK}, {"rank": WORK + write})
    assert len(fake.starts) == 2


@pytest.mark.parametrize("kind", ["ConfigError", "OutputExistsError", "FormatError", "RatingsError", "DivergedError"])
def test_what_a_restart_cannot_mend_is_raised(supervise, tmp_path, kind):
    fail = f"if rank == 0: say('error', error='{kind}', message='so it is'); sys.exit(1)\n" + BUSY
    with pytest.raises(getattr(errors, kind), match="so it is"):
        supervise({"rank": WORK + fail}, GOOD)
    assert len((tmp_path / "starts").read_text().splitlines()) == 1


@pytest.mark.parametrize("kind", ["RankError", "RankLostError", "StorageError", "MfparError.mro", "__name__"])
def test_what_may_be_otherwise_the_next_time_is_tried_again(supervise, kind):
    fail = f"if rank == 0: say('error', error='{kind}', message='so it is'); sys.exit(1)\n" + BUSY
    _, events = supervise({"rank": WORK + fail}, GOOD)
    assert "so it is; restart 1 of 1" in [event.get("message") for event in events]


def test_it_goes_on_from_a_checkpoint_of_its_own(supervise):
    fake, _ = supervise(
        {"rank": WORK},
        {"rank": WORK + "if rank == 0: say('checkpoint', epoch=1)\n"},
        GOOD,
        restarts=2,
        checkpoints=True,
    )
    assert ["--resume" in start for start in fake.starts] == [False, False, True]


def test_hosts_that_do_not_answer_are_left_out(supervise):
    """One refuses, one hangs; the second is back at the next restart."""

    def listen(fake, event):
        if event["kind"] == "restart" and event["attempt"] == 1:
            (fake.folder / "silent-three").unlink()

    fake, events = None, []
    several = parse_hosts("one,two:2,three:3")
    silence = "import pathlib\nfor n, how in (('two', 'exit 255'), ('three', 'sleep 1000')):\n"
    silence += "    pathlib.Path(os.environ['FAKE'], f'silent-{n}').write_text(how)\n"
    plan = {"rank": WORK + "if rank == 0:\n    " + silence.replace("\n", "\n    ") + "\n"}
    fake, events = supervise(plan, {"rank": WORK}, GOOD, several=several, restarts=2, listen=listen)
    named = [start[start.index("--host") + 1] for start in fake.starts]
    assert named == ["one:1,two:2,three:3", "one:1", "one:1,three:3"]
    assert [start[start.index("-n") + 1] for start in fake.starts] == ["6", "1", "4"]
    assert all(FOLDER in start for start in fake.starts)
    messages = [event["message"] for event in events if event["kind"] == "restart"]
    assert messages[0].endswith("restart 1 of 2, on 1 of 6 ranks, as two, three do not answer")
    assert messages[1].endswith("restart 2 of 2, on 4 of 6 ranks, as two does not answer")


def test_no_host_answers(supervise, tmp_path):
    FakeMpi(tmp_path).silence("one")
    with pytest.raises(errors.RankLostError, match="none of the hosts answers: one"):
        supervise({"rank": WORK}, several=[Host("one")], restarts=2)
    assert len((tmp_path / "starts").read_text().splitlines()) == 1


STOPPABLE = """
def stop(*_):
    if rank: time.sleep(1000)  # no rank ends before the first has spoken
    say('stopped', message='there is a checkpoint')
    sys.exit(75)
signal.signal(signal.SIGUSR1, stop)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_asked_to_stop_it_lets_ranks_leave_a_checkpoint(supervise, tmp_path, number):
    def listen(_, event):
        if event["kind"] == "epoch":
            signal.raise_signal(number)

    with pytest.raises(errors.PreemptedError, match="there is a checkpoint") as raised:
        supervise({"rank": STOPPABLE + WORK + BUSY}, listen=listen, checkpoints=True)
    assert raised.value.exit_code == 75
    assert len((tmp_path / "starts").read_text().splitlines()) == 1


def test_a_rank_that_was_asked_to_stop_ends_the_job(supervise, tmp_path):
    with pytest.raises(errors.PreemptedError, match="there is a checkpoint"):
        supervise({"rank": STOPPABLE + WORK + "if rank == 0: stop()\n" + BUSY}, checkpoints=True)
    assert len((tmp_path / "starts").read_text().splitlines()) == 1


def test_ranks_that_do_not_stop_are_ended(supervise, monkeypatch):
    monkeypatch.setattr(supervisor, "GRACE", 1.0)

    def listen(_, event):
        if event["kind"] == "epoch":
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(errors.PreemptedError, match="the ranks did not stop within 1 s"):
        supervise({"rank": WORK + BUSY}, listen=listen, checkpoints=True)


@pytest.mark.parametrize(("checkpoints", "times"), [(True, 2), (False, 1)])
def test_an_interrupt_that_does_not_wait(supervise, checkpoints, times):
    def listen(_, event):
        if event["kind"] == "epoch":
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        supervise({"rank": STOPPABLE + WORK + BUSY}, listen=listen, checkpoints=checkpoints)


def test_nobody_is_started_again_once_it_was_asked_to_stop(supervise, tmp_path):
    def listen(_, event):
        if event["kind"] == "restart":
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(errors.PreemptedError):
        supervise({"rank": WORK}, GOOD, listen=listen, checkpoints=True)
    assert len((tmp_path / "starts").read_text().splitlines()) == 1


STOPS = "os.kill(os.getpid(), signal.SIGSTOP)\n"
DEEDS = f"if rank == 1: os.kill(os.getpid(), 9)\nif rank == 2: {STOPS}"
GO_ON = "until = time.monotonic() + 3.5\nwhile time.monotonic() < until: pass\n"


def test_a_loss_that_the_others_go_on_from_is_none(supervise):
    """One is killed and one hangs, for longer than the limit, while the first goes on."""
    tell = "time.sleep(0.5); say('lost', message='two ranks')\n"
    _, events = supervise({"rank": WORK + DEEDS + tell + GO_ON + SAVE, "mpirun": "ranks[0].wait()"}, ranks=3)
    assert kinds(events) == ["run", "epoch", "lost", "saved"]


def test_to_start_others_anew_takes_its_time(supervise):
    """Longer than ranks are missed otherwise, and longer than the limit."""
    deed = "if rank == 1: os.kill(os.getpid(), 9)\n"
    late = "until = time.monotonic() + 3\nwhile time.monotonic() < until: pass\nsay('lost', message='one')\n"
    _, events = supervise({"rank": WORK + deed + late + SAVE, "mpirun": "ranks[0].wait()"}, anew=True)
    assert kinds(events) == ["run", "epoch", "lost", "saved"]


UNTOLD = {
    "has ended, and the others have not said": "if rank == 1: os.kill(os.getpid(), 9)\n",
    "has given no sign of life for 2 s": f"if rank == 1: {STOPS}",
}


@pytest.mark.parametrize("told", ["", "say('lost', message='another'); time.sleep(0.5)\n"], ids=["first", "second"])
@pytest.mark.parametrize(("sentence", "deed"), UNTOLD.items(), ids=["dead", "stopped"])
def test_a_loss_that_nobody_tells_of_is_one(supervise, told, sentence, deed):
    plan = {"rank": WORK + f"if rank == 0: {told or 'pass'}\nelse: time.sleep(1)\n" + deed + BUSY, "mpirun": STUCK}
    _, events = supervise(plan, GOOD)
    restart = next(event for event in events if event["kind"] == "restart")
    assert sentence in restart["message"]


def test_a_rank_that_has_ended_is_missed_also_where_hangs_are_not(supervise):
    plan = {"rank": WORK + "if rank == 1: os.kill(os.getpid(), 9)\n" + BUSY, "mpirun": STUCK}
    _, events = supervise(plan, GOOD, hang_timeout=0)
    assert "(process" in next(event for event in events if event["kind"] == "restart")["message"]


RANK = f"import sys; sys.path.insert(0, {HERE!r}); import fakempi; fakempi.rank()"


@pytest.fixture
def rank_of(tmp_path):
    """A function that starts a rank of a job, which would go on for ever; it is killed in the end."""
    ranks = []

    def start(folder):
        told = {FOLDER: str(folder), "FAKE": str(tmp_path), "FAKE_CODE": "start()\n" + BUSY}
        told |= {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}
        ranks.append(subprocess.Popen([sys.executable, "-c", RANK], env={**os.environ, **told}))
        return ranks[-1]

    yield start
    for process in ranks:
        process.kill()
        process.wait()


def test_a_rank_ends_with_the_folder_of_its_job(tmp_path, rank_of):
    with RunFolder(tmp_path / "model.h5", 0) as folder:
        process = rank_of(folder.path)
        wait_for(lambda: list(folder.beats()))
        assert process.poll() is None
    assert process.wait(20) == -signal.SIGKILL
    assert rank_of(folder.path).wait(20) == -signal.SIGKILL


def test_a_rank_ends_when_its_supervisor_is_silent(tmp_path, rank_of, monkeypatch):
    with RunFolder(tmp_path / "model.h5", 2.0) as folder:
        process = rank_of(folder.path)
        wait_for(lambda: list(folder.beats()))
        monkeypatch.setattr(folder, "_tell", lambda: None)
        assert process.wait(20) == -signal.SIGKILL
        assert folder.path.exists()


def test_a_rank_ends_with_its_supervisor(tmp_path, rank_of, monkeypatch):
    with RunFolder(tmp_path / "model.h5", 0) as folder:
        process = rank_of(folder.path)
        wait_for(lambda: list(folder.beats()))
        here = Process.own()
        monkeypatch.setattr(Process, "own", lambda: dataclasses.replace(here, born=here.born - 1))
        assert process.wait(20) == -signal.SIGKILL
        assert folder.path.exists()


@pytest.mark.parametrize("where", ["mfpar.supervise.folder.SHARED_MEMORY", "tempfile.tempdir"])
def test_what_a_supervisor_that_was_killed_has_left_is_removed(tmp_path, monkeypatch, where):
    monkeypatch.setattr(where, tmp_path)
    for token in ("01234567", "76543210"):
        (tmp_path / f"mfpar-{token}").mkdir()
        (tmp_path / f"mfpar-{token}" / "sm_segment").touch()
    output = tmp_path / "model[1].h5"
    with RunFolder(output, 0) as other:
        order = json.loads((other.path / "supervisor").read_text())
        order["process"]["born"] -= 1
        abandoned = tmp_path / ".model[1].h5.01234567.run"
        abandoned.mkdir()
        (abandoned / "supervisor").write_text(json.dumps(order))
        elsewhere = tmp_path / ".model[1].h5.76543210.run"
        elsewhere.mkdir()
        order["process"]["place"] = "another machine"
        (elsewhere / "supervisor").write_text(json.dumps(order))
        with RunFolder(output, 0):
            assert not abandoned.exists()
            assert elsewhere.exists()
            assert other.path.exists()
            assert [path.name for path in tmp_path.glob("mfpar-*")] == ["mfpar-76543210"]


@pytest.mark.parametrize("known", [True, False])
def test_what_is_left_where_the_machine_went_down_is_removed(tmp_path, known):
    """Nobody knows whether a supervisor of another boot lives; but one that lives beats every second."""
    with RunFolder(tmp_path / "model.h5", 0):
        left = tmp_path / ".model.h5.01234567.run"
        left.mkdir()
        if known:
            elsewhere = dataclasses.asdict(dataclasses.replace(Process.own(), place="another boot"))
            order = {"process": elsewhere, "count": 7, "limit": 0, "stop": False}
            (left / "supervisor").write_text(json.dumps(order))
        remove_abandoned(tmp_path / "model.h5")
        assert left.exists()
        long_ago = time.time() - 100_000
        os.utime(left, (long_ago, long_ago))
        remove_abandoned(tmp_path / "model.h5")
        assert not left.exists()
        assert len(list(tmp_path.iterdir())) == 1


def test_where_there_is_little_shared_memory_it_lies_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "SHARED_MEMORY", tmp_path / "memory")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "disk"))
    for name in ("memory", "disk"):
        (tmp_path / name).mkdir()
    assert folders.shared_folder("0123abcd") == tmp_path / "memory" / "mfpar-0123abcd"
    monkeypatch.setattr(folders, "ROOM", 1 << 62)
    assert folders.shared_folder("0123abcd") == tmp_path / "disk" / "mfpar-0123abcd"


def test_what_is_half_removed_is_removed(tmp_path):
    half = tmp_path / ".model.h5.0123abcd.over"
    half.mkdir()
    (half / "supervisor").touch()
    folders.remove_abandoned(tmp_path / "model.h5")
    assert not half.exists()


def test_a_job_whose_path_has_line_breaks_ends_nobody_else(tmp_path, monkeypatch):
    """They would make several patterns of one, and the empty one is in everybody's environment."""
    (tmp_path / "odd\n\nname").mkdir()
    monkeypatch.setenv("MFPAR_MPIRUN", str(FakeMpi(tmp_path, {}).mpirun))
    with RunFolder(tmp_path / "odd\n\nname" / "model.h5", 5.0) as folder:
        script = Job([], 1, None, folder)._sweep().replace("kill -9", "echo")
    assert subprocess.run(["sh", "-c", script], check=True, timeout=20, stdout=subprocess.PIPE).stdout == b""


def test_a_folder_that_cannot_be_made(tmp_path):
    with pytest.raises(errors.StorageError, match="could not be written"):
        RunFolder(tmp_path / "missing" / "model.h5", 0)


def test_of_a_folder_on_a_full_disk_nothing_stays(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folders.os, "pwrite", full)
    with pytest.raises(errors.StorageError, match="no space left on the device"):
        RunFolder(tmp_path / "model.h5", 0)
    assert not list(tmp_path.iterdir())


def test_torn_beats_are_passed_over(tmp_path):
    with RunFolder(tmp_path / "model.h5", 0) as folder:
        beat = folders.Beat(0, Process.own(), 0, 1.5)
        beat.write(folder.path / "a.beat")
        for name, text in (("b", "{"), ("c", "[]"), ("d", '{"rank": 0, "process": 3}'), ("e", "")):
            (folder.path / f"{name}.beat").write_text(text)
        assert list(folder.beats()) == [("a.beat", beat)]


@pytest.mark.parametrize("text", ["", "a,", "a:0", "a:-1", "-a", "a b", "a:2,b:1,a", "a;b", "a:1000000", "a:1:1"])
def test_hosts_that_are_none(text):
    with pytest.raises(errors.ConfigError, match="hosts="):
        parse_hosts(text)


def test_hosts_as_they_are_written():
    assert parse_hosts("alpha:2, 10.0.0.1") == (Host("alpha", 2), Host("10.0.0.1", 1))
    assert Host("localhost").is_here
    assert Host("127.0.0.1").is_here
    assert not Host("192.0.2.1").is_here
