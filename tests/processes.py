"""Commands in processes of their own, which a test outlives whatever they do."""

import os
import signal
import subprocess
from pathlib import Path

import pytest


def run_to_end(
    command: list[str], folder: Path, timeout: float, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, and return what it printed and its exit code.

    The test fails if it takes longer than `timeout` seconds; then all that it started is killed.
    """
    # os.environ by name: MPI, once mpi-pytest has started it here, sets variables behind Python's back.
    with subprocess.Popen(
        command,
        cwd=folder,
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
