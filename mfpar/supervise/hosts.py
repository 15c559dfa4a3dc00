"""Hosts to start ranks on: how they are named, which of them answer, and commands on them, all in bounded time."""

import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mfpar.errors import ConfigError

ANSWER = 10.0  # seconds for a host to answer
TOGETHER = 64  # hosts that are asked at the same time
# Where Open MPI 5 and 4 and MPICH are told what to call in place of ssh; the launcher reads the same.
AGENTS = ("PRTE_MCA_plm_ssh_agent", "OMPI_MCA_plm_rsh_agent", "HYDRA_LAUNCHER_EXEC")


@dataclass(frozen=True)
class Host:
    """A machine, by the name that ssh knows it by, and how many ranks it takes."""

    name: str
    slots: int = 1

    @property
    def is_here(self) -> bool:
        """Whether it is this machine, which needs no agent."""
        if self.name in ("localhost", socket.gethostname()):
            return True
        try:
            address = socket.getaddrinfo(self.name, 0, type=socket.SOCK_STREAM)[0]
            with socket.socket(address[0], socket.SOCK_STREAM) as trial:
                trial.bind((address[4][0], 0))  # which only a machine's own addresses allow
        except OSError:
            return False
        return True


def parse_hosts(text: str) -> tuple[Host, ...]:
    """Hosts from "alpha:2,beta:2": names, each with the number of its ranks (default: 1).

    Raises
    ------
    ConfigError
        The text is no such list, or names a host twice.

    >>> parse_hosts("alpha:2,beta")
    (Host(name='alpha', slots=2), Host(name='beta', slots=1))
    """
    hosts = []
    for part in text.split(","):
        found = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?::([1-9]\d{0,5}))?", part.strip())
        if not found:
            raise ConfigError(f"hosts={text!r}: {part!r} is no host; expected NAME or NAME:RANKS, separated by commas")
        hosts.append(Host(found[1], int(found[2] or 1)))
    names = [host.name for host in hosts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"hosts={text!r}: {twice} is named twice; write {twice}:2 for two ranks")
    return tuple(hosts)


def agent() -> list[str]:
    """The command that runs another one on a host, which mpirun calls too: ssh, or what its variables name."""
    for variable in AGENTS:
        if words := os.environ.get(variable, "").partition(":")[0].split():
            return words
    return ["ssh", "-x", "-o", "BatchMode=yes"]


def answering(hosts: Sequence[Host]) -> list[Host]:
    """Those of the hosts that run a command within some seconds; they are asked at the same time. Local."""
    answers = run_on(hosts, "true\n")
    return [host for host, answer in zip(hosts, answers, strict=True) if answer]


def run_on(hosts: Sequence[Host], script: str) -> list[bool]:
    """Run a script of sh on hosts, at the same time, for some seconds at most; whether it succeeded on each. Local."""
    if not hosts:
        return []
    with ThreadPoolExecutor(min(len(hosts), TOGETHER)) as pool:
        return list(pool.map(lambda host: _run(host, script), hosts))


def _run(host: Host, script: str) -> bool:
    # By way of standard input nothing needs quotes, whatever the agent does with its arguments.
    command = ["sh"] if host.is_here else [*agent(), host.name, "sh"]
    try:
        process = subprocess.Popen(
            command, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError:
        return False
    try:
        process.communicate(script, timeout=ANSWER)
    except (subprocess.TimeoutExpired, OSError):
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == 0


def passed_on(names: Iterable[str]) -> list[str]:
    """Of the variables of an environment those that ranks on other hosts need, where they are set."""
    needed = re.compile(r"(PYTHON|MFPAR_|NUMBA_|OMP_|OPENBLAS_|MKL_|MPI4PY_|UCX_|HDF5_).+|LD_LIBRARY_PATH|LANG|LC_ALL")
    return sorted(name for name in names if needed.fullmatch(name))
