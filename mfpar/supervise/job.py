"""One mpirun with its ranks: started, listened to, and ended with all that it has started."""

import contextlib
import queue
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO, Self

from mfpar.errors import LaunchError
from mfpar.parallel import launch
from mfpar.supervise.folder import RunFolder, shared_folder
from mfpar.supervise.heartbeat import FOLDER
from mfpar.supervise.hosts import Host, agent, passed_on, run_on

TERM = 3.0  # seconds for mpirun to end its ranks by itself
REST = 1.0  # seconds for the rest of what mpirun has said to come, once it has ended
KEPT = 200  # lines of complaints


class Job:
    """A context manager, which starts it and leaves nothing of it. Local.

    Parameters
    ----------
    arguments : of `mfpar`, on every rank
    ranks : int
    hosts : sequence of Hosts; None: this machine
    folder : RunFolder
    tolerant : whether ranks may outlive each other, where MPI can do that

    Raises
    ------
    LaunchError
        There is no mpirun, it can't be started, or this process is itself a rank.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        ranks: int,
        hosts: Sequence[Host] | None,
        folder: RunFolder,
        tolerant: bool = False,
    ):
        tolerant = tolerant and launch.knows_ulfm()
        self._hosts, self._folder = hosts, folder
        # Open MPI leaves its shared memory behind where ranks end by an error, and an mpirun that is killed its own
        # folder, where one with the same process id fails to start later. Both get a folder that goes with the job.
        self._shared = str(shared_folder(folder.token))
        environment = launch.environment_of(hosts is not None, tolerant)
        environment |= {FOLDER: str(folder.path)}
        environment |= dict.fromkeys((launch.SHARED_FOLDER, launch.SESSION_BASE), self._shared)
        if hosts is None:
            start = launch.on_this_machine(ranks, tolerant)
        else:
            slots = [(host.name, host.slots) for host in hosts]
            start = launch.on_hosts(slots, agent(), passed_on(environment), tolerant)
        self._command, self._environment = [*start, sys.executable, "-m", "mfpar", *arguments], environment
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._complaints: list[str] = []
        self._threads: list[threading.Thread] = []
        self._over = False  # all that mpirun has to say was read
        self._ended: float | None = None  # when mpirun was seen to have ended

    def __enter__(self) -> Self:
        try:
            self._process = subprocess.Popen(
                self._command, env=self._environment, text=True, errors="replace", start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            raise LaunchError(f"{self._command[0]}: can't be started: {error.strerror}") from error
        for task, stream in ((self._listen, self._process.stdout), (self._collect, self._process.stderr)):
            self._threads.append(threading.Thread(target=task, args=(stream,), daemon=True))
            self._threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def line(self, seconds: float) -> str | None:
        """The next line of the ranks' standard output; None if there is none within so many seconds."""
        if self._over:
            return None
        with contextlib.suppress(queue.Empty):
            line = self._lines.get(timeout=seconds)
            self._over = line is None
            return line
        if self._process.poll() is not None:
            self._ended = self._ended or time.monotonic()
            self._over = time.monotonic() - self._ended > REST  # somebody else holds the other end of the pipe
        return None

    @property
    def over(self) -> bool:
        """Whether mpirun has ended, and all that it has said was read."""
        return self._process.poll() is not None and self._over

    @property
    def said(self) -> tuple[int, str]:
        """Exit code of mpirun, negative for a signal, and what was written to standard error; once it is over."""
        self._threads[1].join(REST)
        return self._process.wait(), "".join(self._complaints)

    def _listen(self, stream: IO[str]) -> None:
        with contextlib.suppress(ValueError, OSError), stream:
            for line in stream:
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _collect(self, stream: IO[str]) -> None:
        with contextlib.suppress(ValueError, OSError), stream:
            for line in stream:  # also those that are of no use: the pipe must not fill up
                if len(self._complaints) < KEPT and not line.startswith(launch.CHATTER):
                    self._complaints.append(line)

    def _end(self) -> None:
        """End what is left of it: at once here, within seconds on hosts that answer; ranks on others end themselves."""
        done = self._process.poll() == 0
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(TERM)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._folder.remove()
        # A rank that hung, and that others went on without, is there also where all went well.
        run_on([Host("localhost"), *((self._hosts or ()) if not done else ())], self._sweep())
        shutil.rmtree(self._shared, ignore_errors=True)
        for thread in self._threads:
            thread.join(REST)

    def _sweep(self) -> str:
        """A script of sh that kills this job's processes on a host, with the daemons of mpirun that have started them.

        They are known by their environment, which names the job's folder; no other process has that. A pattern of
        the whole path might be several, if there is a line break in it, of which one is in everybody's.
        """
        return _SWEEP.format(mark=f".{self._folder.token}.run", shared=shlex.quote(self._shared))


_SWEEP = """
for file in $(grep -lsF {mark} /proc/[0-9]*/environ); do
    pid=${{file#/proc/}}
    pid=${{pid%/environ}}
    parent=$(sed -n 's/^PPid:[^0-9]*//p' /proc/$pid/status)
    case $(cat /proc/$parent/comm) in
        mpirun* | mpiexec* | prte* | orte* | hydra_*)
            kill -9 $parent
            rm -rf "${{TMPDIR:-/tmp}}/ompi.$parent"
            ;;
    esac
    kill -9 $pid
done
rm -rf {shared}
"""
