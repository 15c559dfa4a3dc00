"""`mfpar doctor`: what it makes of good and of bad machines."""

import copy
import json

import numpy as np
import pytest
import simulated

from mfpar.cli import doctor as verb
from mfpar.cli.main import main
from mfpar.doctor import facts as known
from mfpar.doctor import judgements, trials
from mfpar.doctor.examine import examine
from mfpar.doctor.finding import FAILED, OK, WARNING
from mfpar.errors import LaunchError
from mfpar.kernels import machine
from mfpar.parallel import launch
from mfpar.parallel.comm import Serial

MPI = {"library": "Open MPI v5", "standard": "3.1", "threads": "multiple", "revoke": True, "tolerant": False}
GOOD = {
    "host": "alpha",
    "mpi": MPI,
    "cpu": {"name": "znver5", "features": "ab"},
    "cache": "/home/me/cache",
    "cores": [0, 1, 2, 3],
    "blas": "1",
    "memory": 8 << 30,
    "shm": 1 << 30,
    "memfd": "",
    "futex": True,
    "versions": {"numpy": "2"},
}


def ranks(count=2, **changes):
    """Facts of some ranks of one host; the last one's are changed."""
    some = [copy.deepcopy(GOOD) for _ in range(count)]
    some[-1].update(changes)
    return some


def states(some, threads=1, launched=True):
    return {one.name: one.state for one in judgements.judge(some, threads, launched)}


def test_good_machines():
    assert set(states(ranks()).values()) == {OK}
    assert set(states(ranks(host="beta")).values()) == {OK}
    assert set(states(ranks(1, blas=None)).values()) == {OK}


@pytest.mark.parametrize(
    ("name", "state", "changes"),
    [
        ("MPI", FAILED, {"mpi": {**MPI, "library": "MPICH"}}),
        ("cores", WARNING, {"cores": []}),
        ("BLAS", WARNING, {"blas": None}),
        ("BLAS", WARNING, {"blas": "8"}),
        ("memory", WARNING, {"memory": 100 << 20}),
        ("shm", WARNING, {"shm": 64 << 20}),
        ("memfd", WARNING, {"memfd": "no memfd"}),
        ("futex", WARNING, {"futex": False}),
        ("CPU", FAILED, {"cpu": {"name": "skylake", "features": "ab"}}),
        ("CPU", FAILED, {"cpu": {"name": "znver5", "features": "cd"}}),
        ("Numba's cache", WARNING, {"cache": None}),
        ("versions", FAILED, {"versions": {"numpy": "1"}}),
    ],
)
def test_each_bad_rank_is_found(name, state, changes):
    some = ranks(**changes)
    assert {one: found for one, found in states(some).items() if found != OK} == {name: state}
    (bad,) = [one for one in judgements.judge(some, 1, True) if one.state != OK]
    assert bad.advice


def test_cores_against_ranks_and_threads():
    assert judgements.cores(ranks(4), 1).state == OK
    assert judgements.cores(ranks(4), 2).state == WARNING
    bound = [{**GOOD, "cores": [0]} for _ in range(2)]
    assert "2 rank(s) × 1 thread(s) on alpha share 1 core(s)" in judgements.cores(bound, 1).message
    assert "may use 1 core(s) for 2" in judgements.cores(bound, 2).message
    assert "2 rank(s) × 1 thread(s) on alpha share 1" in judgements.cores([*bound, GOOD], 1).message
    assert judgements.cores([{**GOOD, "cores": [0]}, {**GOOD, "host": "beta", "cores": [0]}], 1).state == OK


def test_mpi_that_is_missing_or_without_threads():
    none = ranks(1, mpi={"library": None, "reason": "no libmpi"})
    assert judgements.mpi(none, launched=False).state == WARNING
    assert judgements.mpi(none, launched=True).state == FAILED
    assert judgements.mpi(ranks(1, mpi={**MPI, "threads": "single"}), True).state == FAILED
    assert judgements.mpi(ranks(1, mpi={**MPI, "threads": None}), False).state == OK


def test_fault_tolerance_is_told():
    assert "not there" in judgements.fault_tolerance(ranks(1, mpi={**MPI, "revoke": False})).message
    assert "--with-ft ulfm" in judgements.fault_tolerance(ranks(1)).message
    assert "started with it" in judgements.fault_tolerance(ranks(1, mpi={**MPI, "tolerant": True})).message


def test_facts_are_plain_values(monkeypatch):
    found = known.facts()
    assert json.loads(json.dumps(found)) == found
    monkeypatch.setattr(known, "Offer", no_memory)
    monkeypatch.setattr(known, "FUTEX", {})
    found = known.facts()
    assert (found["memfd"], found["futex"]) == ("no memory", False)


def no_memory(size):
    raise OSError("no memory")


def test_cache_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(machine.SETTINGS, "CACHE_DIR", str(tmp_path / "new"))
    assert machine.cache_folder() == str(tmp_path / "new")
    (tmp_path / "file").touch()
    monkeypatch.setattr(machine.SETTINGS, "CACHE_DIR", str(tmp_path / "file" / "new"))
    assert machine.cache_folder() is None


@pytest.mark.parametrize(("size", "team"), [(2, 1), (3, 3), (4, 2)])
def test_trials_on_several_ranks(tmp_path, monkeypatch, size, team):
    monkeypatch.setattr(trials, "LARGE", 1 << 12)
    outcomes = simulated.run(size, lambda comm: trials.try_all(comm, [tmp_path]), team=team)
    assert all(outcome == outcomes[0] for outcome in outcomes)
    found = {one.name: one.state for one in outcomes[0]}
    assert found.pop("shared memory") == (OK if team == size else WARNING)
    assert set(found.values()) == {OK}
    assert not list(tmp_path.iterdir())


def test_shared_memory_that_is_not_shared(monkeypatch):
    def body(comm):
        comm.share = lambda size: np.zeros(size, np.uint8)
        return trials.shared_memory(comm)

    assert {one.state for one in simulated.run(2, body, team=2)} == {FAILED}


def test_clocks_that_differ(monkeypatch):
    clock = iter((100.0, 107.0))
    monkeypatch.setattr(trials.time, "time", lambda: next(clock))
    assert {one.state for one in simulated.run(2, trials.clocks)} == {WARNING}


def test_folders(tmp_path, monkeypatch):
    assert trials.folder(Serial(), tmp_path / "none").state == FAILED
    monkeypatch.setattr(trials, "_locks", lambda path: False)
    found = trials.folder(Serial(), tmp_path)
    assert (found.state, found.advice) == (WARNING, "set HDF5_USE_FILE_LOCKING=FALSE")


def test_folders_that_are_not_shared(tmp_path):
    def body(comm):
        (tmp_path / str(comm.rank)).mkdir()
        return trials.folder(comm, tmp_path / str(comm.rank))

    assert {one.state for one in simulated.run(2, body)} == {WARNING}


def test_without_mpi_and_with_a_folder_that_is_missing(run_cli, tmp_path):
    """A process of its own, which finds no libmpi."""
    done = run_cli("doctor", environment={"MPI4PY_LIBMPI": str(tmp_path / "none.so")})
    assert done.returncode == 0, done.stderr
    assert "warning:  MPI: there is no MPI" in done.stdout
    done = run_cli("doctor", "--json", "--folder", tmp_path / "none")
    assert done.returncode == 1
    assert [one["name"] for one in json.loads(done.stdout) if one["state"] == FAILED] == [f"folder {tmp_path}/none"]
    assert f"folder {tmp_path}/none failed" in done.stderr


def test_launcher_of_another_library(monkeypatch, capsys):
    def world():
        raise LaunchError("the launcher belongs to another MPI library")

    monkeypatch.setattr(launch, "world", world)
    assert verb._world()[1]
    assert main(["doctor"]) == 1
    assert "failed:   ranks: the launcher belongs" in capsys.readouterr().out


@pytest.mark.parallel(nprocs=2)
def test_two_ranks():
    from mpi4py import MPI

    comm = launch.adopt(MPI.COMM_WORLD)
    with comm.guard():
        found = examine(comm, [])
        same = comm.gather([[one.name, one.state, one.message] for one in found])
    comm.close()
    assert same[0] == same[1]
    seen = {one.name: one for one in found}
    assert "2 rank(s) on 1 host(s)" in seen["MPI"].message
    assert seen["shared memory"].state == OK
    assert seen["messages"].message.endswith("MB/s")
    assert not [one for one in found if one.state == FAILED]


def test_under_mpirun(run_cli):
    done = run_cli("doctor", ranks=2)
    assert done.returncode == 0, done.stderr
    assert "threads multiple, 2 rank(s) on 1 host(s)" in done.stdout
    assert done.stdout.count("shared memory:") == 1
