"""Ranks on several hosts, which share nothing but the files that a run reads and writes."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hosts import BIN, OPEN_MPI, remove_groups_of_the_dead
from planted import Planted, plant

from mfpar.api import load

SOON = 60  # seconds: any of these jobs takes a few, more on a machine that has other things to do

# Runs in every process before anything else: on one rank, something happens in the second epoch.
SABOTAGE = """
from mfpar.parallel.launch import launched_rank
if launched_rank() == {rank}:
    from mfpar.engine.training import Training
    original = Training.run_epoch
    def epoch(self, number, *rest, **named):
        if number == 2:
            {deed}
        return original(self, number, *rest, **named)
    Training.run_epoch = epoch
"""
SETTINGS = ("--factors", 8, "--epochs", 4)
MEMORY = 600 << 20  # bytes: enough for a rank, also while it compiles


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Planted:
    return plant(tmp_path_factory.mktemp("data") / "ratings.h5")


@pytest.mark.parametrize(("count", "each"), [(2, 2), (4, 1)])
def test_hosts_that_share_only_input_and_output_find_the_same_bits(data, make_hosts, run_cli, tmp_path, count, each):
    assert run_cli("train", data.path, "-o", "serial.h5", *SETTINGS).returncode == 0
    hosts = make_hosts(count, {1: MEMORY}, rate="100mbit")
    assert [hosts.run_on(name, "hostname").strip() for name in hosts.names] == hosts.names
    done = hosts.run(each, "train", data.path, "-o", "model.h5", *SETTINGS, "--log", "run.jsonl", timeout=SOON)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "model.h5").fingerprint == load(tmp_path / "serial.h5").fingerprint
    run, *epochs, _ = (json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines())
    assert run["ranks"] == count * each
    # Every column-block crosses every border between hosts, under the eyes of the network.
    assert all(epoch["bytes_sent"] > 0 for epoch in epochs)
    assert sum(map(hosts.sent, hosts.names)) > sum(epoch["bytes_sent"] for epoch in epochs)
    # Each host's first rank has compiled for its host.
    compiled = [{path.name for path in (hosts.own_folder(name) / "numba").rglob("*.nb?")} for name in hosts.names]
    assert any(name.startswith("update.update_") for name in compiled[0])
    assert all(names == compiled[0] for names in compiled)


@pytest.mark.skipif(not OPEN_MPI, reason="the example is one of Open MPI")
def test_the_example_runs(data, make_hosts, run_cli, tmp_path):
    shutil.copy(data.path, tmp_path / "ratings.h5")
    hosts = make_hosts(2)
    assert run_cli("train", "ratings.h5", "-o", "serial.h5", *SETTINGS).returncode == 0
    settings = {
        "HOSTS": ",".join(f"{name}:1" for name in hosts.names), "THREADS": "2", "NETWORK": "10.77.0.0/24",
        "BIN": str(BIN), "SHARED": str(tmp_path),
    }  # fmt: skip
    example = Path(__file__).parents[1] / "examples" / "hosts.sh"
    done = hosts.run_on_login(["bash", str(example), *map(str, SETTINGS)], SOON, settings)
    assert done.returncode == 0, done.stderr
    assert "2 ranks × 2 threads" in done.stdout
    assert load(tmp_path / "model.h5").fingerprint == load(tmp_path / "serial.h5").fingerprint
    assert (tmp_path / "run.jsonl").exists()


def test_an_error_on_one_host_ends_the_job_on_all(data, make_hosts, tmp_path):
    hosts = make_hosts(2)
    hosts.run_on("mfpar1", "mount", "-t", "tmpfs", "empty", str(data.path.parent))
    done = hosts.run(2, "train", data.path, "-o", "model.h5", *SETTINGS, timeout=SOON)
    everything = done.stdout + done.stderr
    assert done.returncode == 1, everything
    assert everything.count("mfpar: error: ") == 1, everything
    assert f"mfpar: error: {data.path}: no such file\n" in done.stderr
    assert not (tmp_path / "model.h5").exists()
    assert "-m mfpar" not in hosts.run_on("mfpar0", "ps", "-A", "-o", "args")


def test_a_host_without_memory_ends_the_job(data, make_hosts, tmp_path):
    hosts = make_hosts(2, {1: MEMORY})
    (tmp_path / "sabotage").mkdir()
    (tmp_path / "sabotage" / "sitecustomize.py").write_text(
        SABOTAGE.format(rank=1, deed=f"import numpy; numpy.ones({2 * MEMORY}, numpy.uint8)")
    )
    bad = {"PYTHONPATH": f"{tmp_path / 'sabotage'}{os.pathsep}{os.environ['PYTHONPATH']}"}
    done = hosts.run(1, "train", data.path, "-o", "model.h5", *SETTINGS, timeout=SOON, environment=bad)
    assert done.returncode != 0
    assert "epoch   1/4" in done.stdout
    assert "epoch   2/4" not in done.stdout
    assert hosts.killed("mfpar1") == 1
    assert not (tmp_path / "model.h5").exists()


# Makes a host, starts something on it, says where that is, and ends badly.
MAKER = """
import os, sys
from pathlib import Path
from hosts import Hosts
with Hosts(Path(sys.argv[1]), 1, {{0: 100 << 20}}) as hosts:
    hosts.run_on("mfpar0", "sh", "-c", "sleep 1000 > /dev/null 2>&1 &")
    group = hosts.groups["mfpar0"]
    print(group, *(group / "cgroup.procs").read_text().split(), flush=True)
    {end}
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "raise KeyError"])
def test_nothing_is_left_of_hosts(make_hosts, tmp_path, end):
    make_hosts(1, {0: MEMORY})
    other = tmp_path / "other"
    other.mkdir()
    command = [sys.executable, "-c", MAKER.format(end=end), str(other)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    maker = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert maker.returncode == (-9 if "kill" in end else 1), maker.stderr
    group, *processes = maker.stdout.split()
    assert processes
    until = time.monotonic() + 10
    while any(Path("/proc", process).exists() for process in processes):
        assert time.monotonic() < until, f"processes of {group} are still there"
        time.sleep(0.05)
    remove_groups_of_the_dead()
    assert not Path(group).exists()
