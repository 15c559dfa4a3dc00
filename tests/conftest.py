"""What all tests share: the environment that MPI needs, real data, and a way to run the command line."""

import atexit
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hosts import Hosts, why_not
from processes import run_to_end

from mfpar.parallel.launch import ONE_NODE, SESSION_BASE, expected_size

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


@pytest.fixture(autouse=True)
def own_session_base(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where each mpirun of a test has its folder: one that is killed leaves it, and another with its number fails."""
    with tempfile.TemporaryDirectory(prefix="mfpar-session-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv(SESSION_BASE, folder)
        yield


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
        return run_to_end(command, tmp_path, timeout, environment)

    return run


@pytest.fixture
def make_hosts(tmp_path: Path) -> Iterator[Callable[..., Hosts]]:
    """A function that makes several hosts of this machine, see `hosts.Hosts`; skips where that may not be.

    ``make_hosts(count, memory={}, rate=None)``; what it has made ends with the test.
    """
    with contextlib.ExitStack() as closing:

        def make(count: int, memory: Mapping[int, int] | None = None, rate: str | None = None) -> Hosts:
            if reason := why_not(memory):
                pytest.skip(reason)
            return closing.enter_context(Hosts(tmp_path, count, memory, rate))

        yield make
