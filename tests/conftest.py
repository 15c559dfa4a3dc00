"""What all tests share: the environment that MPI needs, real data, and a way to run the command line."""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mfpar.parallel.launch import ONE_NODE, expected_size

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

# For every process that a test starts: this repository's mfpar; and for every mpirun, mpi-pytest's own too: found
# beside this Python, as root, on any number of cores.
os.environ.update(ONE_NODE, PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}", PYTHONPATH=str(ROOT))

# Each pytest clears old folders below its root of temporary ones; those of several ranks would trip over each other.
# The root goes when MPI has ended, so when no other rank looks into it any more.
if expected_size()[0] > 1:
    os.environ["PYTEST_DEBUG_TEMPROOT"] = tempfile.mkdtemp(prefix="mfpar-rank-")
    atexit.register(shutil.rmtree, os.environ["PYTEST_DEBUG_TEMPROOT"], ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real ratings, from MFPAR_SHARED (default: beside the repository); skips where it is missing."""
    folder = (ROOT / os.environ.get("MFPAR_SHARED", "../shared") / "data").resolve()
    if not folder.is_dir():
        pytest.skip(f"no real ratings in {folder}; name the folder that holds data/ in MFPAR_SHARED")
    return folder


@pytest.fixture
def run_cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs the command line in a process of its own, in the test's temporary folder.

    ``run_cli(*arguments, ranks=None, timeout=120, environment=None)`` runs `python -m mfpar ARGUMENTS`, under mpirun
    where `ranks` is given, and returns what it printed and its exit code. The test fails if it takes longer than
    `timeout` seconds; then all that it started is killed.
    """

    def run(
        *arguments: object, ranks: int | None = None, timeout: float = 120, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mfpar", *map(str, arguments)]
        if ranks is not None:
            command = [str(BIN / "mpirun"), "-n", str(ranks), *command]
        # os.environ by name: MPI, once mpi-pytest has started it here, sets variables behind Python's back.
        with subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, complaints = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                # A chance for mpirun to end its ranks: they are no part of its process group.
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    output, complaints = process.communicate(timeout=10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    output, complaints = process.communicate()
                pytest.fail(f"{' '.join(command)}: still running after {timeout} s\n{output}\n{complaints}")
        return subprocess.CompletedProcess(command, process.returncode, output, complaints)

    return run
