"""The supervisor over the real mpirun: whatever happens, the model in the end is that of an undisturbed run."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from hosts import BIN, OPEN_MPI
from planted import Planted, plant

from mfpar.api import load
from mfpar.parallel.launch import SESSION_BASE

SOON = 90  # seconds: any of these jobs takes ten, more on a machine that has other things to do
SETTINGS = ("--factors", 8, "--epochs", 4)

# Runs in every process before anything else: on one rank, something happens in the second epoch, once.
SABOTAGE = """
import os, signal, time
from mfpar.parallel.launch import launched_rank
if launched_rank() == {rank}:
    from mfpar.engine.training import Training
    original = Training.run_epoch
    def epoch(self, number, *rest, **named):
        if number == 2 and not os.path.exists({once!r}):
            open({once!r}, "w").close()
            {deed}
        return original(self, number, *rest, **named)
    Training.run_epoch = epoch
"""
DEEDS = {
    "a rank is killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "mpirun is killed": "os.kill(os.getppid(), signal.SIGKILL); time.sleep(1000)",
    "a rank is stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Planted:
    return plant(tmp_path_factory.mktemp("data") / "ratings.h5")


@pytest.fixture(scope="module")
def fingerprint(data, tmp_path_factory) -> str:
    """Of the model of an undisturbed run."""
    from mfpar import factorize

    output = tmp_path_factory.mktemp("serial") / "model.h5"
    return factorize(data.path, factors=8, epochs=4, output=output).fingerprint


def sabotage(folder: Path, rank: int, deed: str) -> dict[str, str]:
    """The environment of processes to one of which something happens, and the file that is there from then on."""
    (folder / "sabotage").mkdir()
    once = str(folder / "happened")
    (folder / "sabotage" / "sitecustomize.py").write_text(SABOTAGE.format(rank=rank, deed=deed, once=once))
    return {"PYTHONPATH": f"{folder / 'sabotage'}{os.pathsep}{os.environ['PYTHONPATH']}"}


def ranks_of(folder: Path) -> list[str]:
    """Processes that belong to a job with its output in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += [path.parent.name] * (f"MFPAR_HEARTBEAT={folder}/".encode() in path.read_bytes())
        except OSError:
            continue
    return found


@pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS.keys())
def test_the_job_is_done_whatever_happens_to_it(data, fingerprint, run_cli, tmp_path, monkeypatch, deed):
    bad = sabotage(tmp_path, 1, deed)
    (temporary := tmp_path / "tmp").mkdir()
    monkeypatch.delenv(SESSION_BASE)
    done = run_cli(
        "train", data.path, "-o", "model.h5", *SETTINGS, "--ranks", 3, "--restarts", 1, "--hang-timeout", 4,
        "--progress", "json", "--log", "run.jsonl", environment=bad | {"TMPDIR": str(temporary)}, timeout=SOON,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    # Where an mpirun leaves its folder, another one that happens to have the same process id fails to start.
    assert not list(temporary.glob("ompi.*"))
    assert load(tmp_path / "model.h5").fingerprint == fingerprint
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["attempt"] for event in events if event["kind"] == "restart"] == [1]
    assert events == [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert not ranks_of(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"happened", "model.h5", "run.jsonl"}


def test_without_a_restart_left_it_says_what_has_happened(data, run_cli, tmp_path):
    bad = sabotage(tmp_path, 1, DEEDS["a rank is killed"])
    done = run_cli(
        "train", data.path, "-o", "model.h5", *SETTINGS, "--ranks", 3, "--progress", "none", environment=bad,
        timeout=SOON,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("mfpar: error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "model.h5").exists()


@pytest.mark.skipif(not OPEN_MPI, reason="the example is one of Open MPI")
@pytest.mark.parametrize("fate", ["cut_off", "destroy"])
def test_a_lost_host_is_done_without(data, fingerprint, make_hosts, tmp_path, fate):
    """The example's job, started on the login node."""
    hosts = make_hosts(3)
    happened = tmp_path / "happened"

    def strike() -> None:
        until = time.monotonic() + SOON
        while not happened.exists() and time.monotonic() < until:
            time.sleep(0.05)
        getattr(hosts, fate)("mfpar1")

    shutil.copy(data.path, tmp_path / "ratings.h5")
    settings = {
        "HOSTS": ",".join(f"{name}:1" for name in hosts.names), "THREADS": "1", "NETWORK": "10.77.0.0/24",
        "BIN": str(BIN), "SHARED": str(tmp_path),
    }  # fmt: skip
    example = Path(__file__).parents[1] / "examples" / "supervised.sh"
    command = ["bash", str(example), *map(str, SETTINGS), "--hang-timeout", "4", "--progress", "json"]
    striking = threading.Thread(target=strike)
    striking.start()
    done = hosts.run_on_login(command, SOON, sabotage(tmp_path, 2, "time.sleep(1)") | settings)
    striking.join()
    assert done.returncode == 0, done.stdout + done.stderr
    assert load(tmp_path / "model.h5").fingerprint == fingerprint
    events = [json.loads(line) for line in done.stdout.splitlines()]
    restart = next(event for event in events if event["kind"] == "restart")
    assert restart["hosts"] == ["mfpar0", "mfpar2"]
    assert "on 2 of 3 ranks, as mfpar1 does not answer" in restart["message"]
    assert [event["ranks"] for event in events if event["kind"] == "run"] == [3, 2]
    for name in ("mfpar0", "mfpar2"):
        assert "-m mfpar" not in hosts.run_on(name, "ps", "-A", "-o", "args")
        assert not list((hosts.own_folder(name) / "tmp").glob("ompi.*"))
    assert not ranks_of(tmp_path)
