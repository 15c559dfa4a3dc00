"""Law 6: whatever fails on one rank ends the job soon, with one sentence; and what ranks say to each other."""

import itertools
import json
import os
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from planted import Planted, plant

from mfpar.api import load
from mfpar.errors import ConfigError, RankError, RankInterruptedError, StorageError
from mfpar.parallel.comm import Message, Serial
from mfpar.parallel.launch import adopt, expected_size, launched_rank

SOON = 40  # seconds: any of these jobs takes two or three, more on a machine that has other things to do

# Runs in every process before anything else: on one rank, something goes wrong in the third epoch.
SABOTAGE = """
import os
from mfpar.parallel.launch import launched_rank
if launched_rank() == {rank}:
    from mfpar.engine.training import Training
    original = Training.run_epoch
    def epoch(self, number, *rest, **named):
        if number == 3:
            {deed}
        return original(self, number, *rest, **named)
    Training.run_epoch = epoch
"""

# Makes `python -m mfpar` a script of somebody who uses the library.
SCRIPT = """
import mfpar.cli.main
def main():
    from mpi4py import MPI
    {script}
mfpar.cli.main.main = main
"""


@pytest.fixture
def data(tmp_path) -> Planted:
    return plant(tmp_path / "ratings.h5")


@pytest.fixture
def sabotaged(tmp_path):
    """A function that gives the environment in which a rank does something stupid, and perhaps runs a script."""

    def environment(rank: int, deed: str, script: str = "") -> dict[str, str]:
        folder = tmp_path / "sabotage"
        folder.mkdir()
        text = SABOTAGE.format(rank=rank, deed=deed) + (SCRIPT.format(script=script) if script else "")
        (folder / "sitecustomize.py").write_text(text)
        return {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ['PYTHONPATH']}"}

    return environment


def assert_one_sentence(done, code: int, sentence: str) -> None:
    """The exit code, the sentence once, nothing else of mfpar's or Python's."""
    everything = done.stdout + done.stderr
    assert done.returncode == code, everything
    assert everything.count(sentence) == 1, everything
    assert everything.count("mfpar: error: ") == 1, everything
    assert "Traceback" not in everything


def left_in(folder: Path) -> list[str]:
    """Names of all files below a folder, but for those of the test itself."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and "sabotage" not in path.parts)


def test_what_a_launcher_says():
    assert expected_size({}) == (1, "")
    assert expected_size({"OMPI_COMM_WORLD_SIZE": "4", "SLURM_NTASKS": "8"}) == (4, "OMPI_COMM_WORLD_SIZE")
    assert expected_size({"PMI_SIZE": "3"}) == (3, "PMI_SIZE")
    assert expected_size({"PMI_SIZE": "1"}) == (1, "PMI_SIZE")
    assert expected_size({"PMI_SIZE": "(null)"}) == (1, "")
    # A batch script runs once, the tasks of srun's steps as often as it says.
    assert expected_size({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}) == (1, "")
    assert expected_size({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}) == (4, "SLURM_NTASKS")
    assert launched_rank({}) == 0
    assert launched_rank({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}) == 2
    assert launched_rank({"PMI_SIZE": "4", "PMI_RANK": "3"}) == 3
    assert launched_rank({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1"}) == 1
    assert launched_rank({"SLURM_PROCID": "1"}) == 0


def test_one_rank_alone():
    comm = adopt(None)
    assert isinstance(comm, Serial)
    assert (comm.rank, comm.size, comm.gather(5)) == (0, 1, [5])
    with pytest.raises(KeyError), comm.guard():
        raise KeyError


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"])
def test_a_launcher_of_another_library_is_told_apart(data, run_cli, variable, tmp_path):
    done = run_cli("train", data.path, "-o", "model.h5", environment={variable: "3"}, timeout=SOON)
    assert_one_sentence(done, 2, f"the launcher started 3 ranks ({variable}=3) but MPI (")
    assert "sees 1: " in done.stderr
    assert left_in(tmp_path) == ["ratings.h5"]


@pytest.mark.parametrize("variable", ["PMI_SIZE", "SLURM_NTASKS"])
def test_a_launcher_of_one_is_no_obstacle(data, run_cli, variable):
    done = run_cli("train", data.path, "-o", "model.h5", "--epochs", 1, environment={variable: "1"}, timeout=SOON)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parallel(nprocs=3)
def test_ranks_exchange_messages_and_fail_together(tmp_path):
    from mpi4py import MPI

    from mfpar.parallel.mpi import Mpi

    comm = Mpi(MPI.COMM_WORLD)
    with comm.guard():
        assert (comm.rank, comm.size) == (MPI.COMM_WORLD.rank, 3)
        assert comm.gather({"rank": comm.rank, "text": "ü" * comm.rank}) == [
            {"rank": rank, "text": "ü" * rank} for rank in range(3)
        ]
        above, below = (comm.rank - 1) % 3, (comm.rank + 1) % 3
        # Longer than what MPI sends without asking the receiver; two with one tag, which keep their order.
        sent = [np.full(1 << 20, 10 * comm.rank + k, np.float32) for k in range(3)]
        got = [np.zeros(1 << 20, np.float32) for _ in range(3)]
        tags = (0, 0, 7)
        flights = [
            comm.start([Message(s, above, tag)], [Message(g, below, tag)])
            for s, g, tag in zip(sent, got, tags, strict=True)
        ]
        for k, (flight, array) in enumerate(zip(flights, got, strict=True)):
            flight.wait()
            assert flight.arrived()
            assert (array == 10 * below + k).all()
        assert comm.bytes_sent == 3 * (4 << 20)
        polls = itertools.count()
        comm.wait_until(lambda: next(polls) == 9)
        _a_team_sees_one_memory(comm, [0, 0, 0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "far" if MPI.COMM_WORLD.rank == 2 else "near")
        comm = Mpi(MPI.COMM_WORLD)
        with comm.guard():
            _a_team_sees_one_memory(comm, [0, 0, 2])
        patch.setattr("mfpar.parallel.mpi.Address.map", lambda self, size: None)
        comm = Mpi(MPI.COMM_WORLD)
        with comm.guard():
            _a_team_sees_one_memory(comm, [0, 1, 2])
        patch.setattr("mfpar.parallel.flight.PIECE", 1000)
        _what_is_too_long_for_mpi_goes_in_pieces(Mpi(MPI.COMM_WORLD))
    _a_known_error_reaches_those_who_wait_in_a_gather(Mpi(MPI.COMM_WORLD))
    _an_unknown_error_reaches_those_who_wait_for_a_message(Mpi(MPI.COMM_WORLD))
    _an_interrupt_is_no_failure(Mpi(MPI.COMM_WORLD))
    _an_error_reaches_those_who_are_done(Mpi(MPI.COMM_WORLD))
    _several_errors_at_once_are_each_ones_own(Mpi(MPI.COMM_WORLD))
    _nobody_leaves_before_all_have_cleaned_up(Mpi(MPI.COMM_WORLD), MPI.COMM_WORLD.bcast(tmp_path / "cleaned"))
    with Mpi(MPI.COMM_WORLD).guard():
        pass


def _a_team_sees_one_memory(comm, leaders):
    assert comm.leaders == leaders
    memory = comm.share(1000)
    assert (len(memory), memory.ctypes.data % 64) == (1000, 0)
    assert not memory.any()
    comm.gather(None)
    memory[comm.rank] = 1 + comm.rank
    comm.gather(None)
    assert memory[:3].tolist() == [1 + rank if leaders[rank] == leaders[comm.rank] else 0 for rank in range(3)]


def _what_is_too_long_for_mpi_goes_in_pieces(comm):
    """Of 1000 bytes here: messages, two of which have one tag, and what ranks say, long and short by turns."""
    above, below = (comm.rank - 1) % 3, (comm.rank + 1) % 3
    with comm.guard():
        for sizes in ((0, 1), (250, 251), (5000, 3), (1000, 7777)):
            sent = [np.arange(size, dtype=np.float32) * (1 + comm.rank) for size in sizes]
            got = [np.zeros(size, np.float32) for size in sizes]
            flight = comm.start(
                [Message(array, above, 5) for array in sent], [Message(array, below, 5) for array in got]
            )
            flight.wait()
            for array in got:
                np.testing.assert_array_equal(array, np.arange(len(array), dtype=np.float32) * (1 + below))
        for length in (1, 100, 5000, 0, 333, 20_000, 20_000, 1):
            texts = [f"{rank}" * length * rank for rank in range(3)]
            assert comm.gather(texts[comm.rank]) == texts


def _guarded(comm, body):
    with comm.guard():
        body()


def _a_known_error_reaches_those_who_wait_in_a_gather(comm):
    def body():
        if comm.rank == 1:
            raise StorageError("disk 1 is full")
        comm.gather(None)

    with pytest.raises(StorageError, match=r"^disk 1 is full$"):
        _guarded(comm, body)


def _an_unknown_error_reaches_those_who_wait_for_a_message(comm):
    def body():
        if comm.rank == 2:
            raise ValueError("boom")
        comm.start([], [Message(np.zeros(5, np.float32), 2, 0)]).wait()

    expected = (ValueError, "^boom$") if comm.rank == 2 else (RankError, "^rank 2 failed: ValueError: boom$")
    with pytest.raises(expected[0], match=expected[1]):
        _guarded(comm, body)


def _an_interrupt_is_no_failure(comm):
    def body():
        if comm.rank == 1:
            raise KeyboardInterrupt
        comm.gather(None)

    expected = KeyboardInterrupt if comm.rank == 1 else RankInterruptedError
    with pytest.raises(expected, match="^$" if comm.rank == 1 else "^rank 1 was interrupted$"):
        _guarded(comm, body)


def _an_error_reaches_those_who_are_done(comm):
    def body():
        if comm.rank == 0:
            time.sleep(0.2)
            raise ConfigError("late")

    with pytest.raises(ConfigError, match=r"^late$"):
        _guarded(comm, body)


def _several_errors_at_once_are_each_ones_own(comm):
    def body():
        if comm.rank:
            raise ConfigError(f"from {comm.rank}")
        comm.gather(None)

    with pytest.raises(ConfigError, match=f"^from {comm.rank}$" if comm.rank else "^from [12]$"):
        _guarded(comm, body)


def _nobody_leaves_before_all_have_cleaned_up(comm, cleaned):
    """Whoever leaves may end the job, and with it the others."""

    def body():
        if comm.rank == 1:
            raise ConfigError("at once")
        try:
            comm.gather(None)
        finally:
            if comm.rank == 2:
                time.sleep(0.5)
                cleaned.touch()

    with pytest.raises(ConfigError, match=r"^at once$"):
        _guarded(comm, body)
    assert cleaned.exists()


# Every rank a host of its own, as far as mfpar knows, so that column-blocks are sent; in pieces of a hundred bytes.
IN_PIECES = """
import socket
import mfpar.parallel.mpi
from mfpar.parallel.launch import launched_rank
socket.gethostname = lambda: f"host {launched_rank()}"
mfpar.parallel.flight.PIECE = 100
"""


def test_pieces_of_messages_change_no_bit(data, run_cli, tmp_path):
    (tmp_path / "sabotage").mkdir()
    (tmp_path / "sabotage" / "sitecustomize.py").write_text(IN_PIECES)
    patched = {"PYTHONPATH": f"{tmp_path / 'sabotage'}{os.pathsep}{os.environ['PYTHONPATH']}"}
    assert run_cli("train", data.path, "-o", "serial.h5", timeout=SOON).returncode == 0
    done = run_cli("train", data.path, "-o", "model.h5", "--log", "log", ranks=3, environment=patched, timeout=SOON)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "log").read_text().splitlines()[-2])["bytes_sent"] > 0
    assert load(tmp_path / "model.h5").fingerprint == load(tmp_path / "serial.h5").fingerprint


def test_an_error_of_one_rank_ends_the_job(data, run_cli, sabotaged, tmp_path):
    bad = sabotaged(1, 'raise ValueError("injected")')
    done = run_cli("train", data.path, "-o", "model.h5", ranks=3, environment=bad, timeout=SOON)
    assert_one_sentence(done, 1, "mfpar: error: rank 1 failed: ValueError: injected")
    assert left_in(tmp_path) == ["ratings.h5"]


def test_the_death_of_one_rank_ends_the_job(data, run_cli, sabotaged, tmp_path):
    bad = sabotaged(1, "os.kill(os.getpid(), 9)")
    done = run_cli("train", data.path, "-o", "model.h5", "--ranks", 3, environment=bad, timeout=SOON)
    assert_one_sentence(done, 1, "mfpar: error: the ranks ended with exit code ")
    assert left_in(tmp_path) == ["ratings.h5"]


def test_an_error_that_a_script_does_not_catch_ends_the_job(data, run_cli, sabotaged, tmp_path):
    script = f"mfpar.factorize({str(data.path)!r}, comm=MPI.COMM_WORLD, factors=8, output='model.h5')"
    bad = sabotaged(2, 'raise ValueError("injected")', script)
    done = run_cli(ranks=3, environment=bad, timeout=SOON)
    assert done.returncode == 1
    assert "mfpar: error" not in done.stderr
    assert done.stderr.count("\nValueError: injected\n") == 1
    assert (
        "RankError" not in done.stderr
        or "\nmfpar.errors.RankError: rank 2 failed: ValueError: injected\n" in done.stderr
    )
    assert left_in(tmp_path) == ["ratings.h5"]


# What a full disk is like, for this process: no file may grow beyond so many bytes.
FULL_DISK = """
            import resource, signal
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits files as Linux does")
@pytest.mark.parametrize(("ranks", "failing"), [(None, 0), (3, 1)])
def test_a_full_disk_of_one_rank_leaves_nothing(data, run_cli, sabotaged, tmp_path, ranks, failing):
    bad = sabotaged(failing, FULL_DISK)
    done = run_cli("train", data.path, "-o", "model.h5", ranks=ranks, environment=bad, timeout=SOON)
    assert_one_sentence(done, 1, ": could not be written: File too large; nothing was left behind")
    assert left_in(tmp_path) == ["ratings.h5"]
    assert not (tmp_path / "model.shards").exists()


@pytest.mark.parametrize("starter", ["mpirun", "--ranks"])
def test_damage_that_one_rank_meets_ends_the_job(data, run_cli, tmp_path, starter):
    with h5py.File(data.path) as file:
        values, offsets = file["train/values"], file["train/offsets"][()]
        assert values.id.get_num_chunks() == 1
        # Of the last row-block, which belongs to the last rank.
        at = values.id.get_chunk_info(0).byte_offset + 4 * int(offsets[7 * 8])
    damaged = bytearray(data.path.read_bytes())
    damaged[at] ^= 1
    data.path.write_bytes(damaged)
    how = {"ranks": 3} if starter == "mpirun" else {}
    more = [] if starter == "mpirun" else ["--ranks", 3]
    done = run_cli("train", data.path, "-o", "model.h5", *more, **how, timeout=SOON)
    sentence = f"mfpar: error: {data.path}: is damaged in the train ratings of row-block 7; convert again"
    assert_one_sentence(done, 1, sentence)
    assert left_in(tmp_path) == ["ratings.h5"]


def test_what_all_ranks_refuse_is_said_once(run_cli, tmp_path):
    plant(tmp_path / "ratings.h5", grid=2)
    done = run_cli("train", "ratings.h5", "-o", "model.h5", ranks=3, timeout=SOON)
    assert_one_sentence(done, 2, "mfpar: error: 3 ranks for a grid of 2: at most 2 can take part; ")
    assert left_in(tmp_path) == ["ratings.h5"]


def test_a_missing_file_is_said_once(run_cli, tmp_path):
    done = run_cli("train", "missing.h5", "-o", "model.h5", ranks=2, timeout=SOON)
    assert_one_sentence(done, 1, "mfpar: error: missing.h5: no such file")
    assert left_in(tmp_path) == []


def test_what_the_first_rank_refuses_is_said_once(data, run_cli, tmp_path):
    (tmp_path / "model.h5").write_text("precious")
    done = run_cli("train", data.path, "-o", "model.h5", ranks=2, timeout=SOON)
    assert_one_sentence(done, 2, "mfpar: error: model.h5: exists already; ")
    assert (tmp_path / "model.h5").read_text() == "precious"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--factors", "many"), "argument --factors: invalid int value: 'many'"),
        (("--factors", 0), "factors=0: expected "),
    ],
)
def test_a_bad_option_is_said_once(data, run_cli, options, complaint):
    done = run_cli("train", data.path, "-o", "model.h5", *options, ranks=2, timeout=SOON)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == done.stderr.count(complaint) == 1
