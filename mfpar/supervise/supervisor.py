"""Sees to it that a job on several ranks gets done: starts it, watches it, and starts it again where that can help."""

import json
import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mfpar import errors
from mfpar.supervise.folder import RunFolder
from mfpar.supervise.hosts import Host, answering
from mfpar.supervise.job import Job
from mfpar.supervise.requests import Requests
from mfpar.supervise.watch import Watch, limit_of

LOOK = 0.5  # seconds between two looks at the ranks
GRACE = 300.0  # seconds for ranks to leave a checkpoint, asked by SIGTERM or SIGUSR1; a scheduler kills earlier
FAREWELL = 30.0  # seconds for mpirun to end after the last event of a run
LONGEST = 60.0  # seconds between two attempts
# What may be otherwise the next time. A disk that is full will not mend itself, but one that was lost may come back.
MENDABLE = (errors.RankError, errors.StorageError)
LAST = ("saved", "stopped", "error")  # what ends a run
Event = dict[str, Any]


class Supervisor:
    """One job, with all its attempts.

    Parameters
    ----------
    arguments : what `mfpar` gets on every rank, by whether it shall go on from the newest checkpoint, and by whether
        this is not the first attempt
    output : Path
        What the job writes when it succeeds.
    listen : called with every event of the first rank, and of the supervisor
    ranks : how many, on this machine
    hosts : where to start ranks instead
    restarts : how often it is started again at most
    hang_timeout : seconds, see `SafetyConfig`
    checkpoints : whether the ranks leave any
    tolerant : whether ranks may outlive each other, where MPI can do that
    anew : whether those that are left start others in place of the dead
    """

    def __init__(
        self,
        arguments: Callable[[bool, bool], Sequence[str]],
        output: Path,
        listen: Callable[[Event], None],
        *,
        ranks: int = 1,
        hosts: Sequence[Host] | None = None,
        restarts: int = 0,
        hang_timeout: float = 60.0,
        checkpoints: bool = False,
        tolerant: bool = False,
        anew: bool = False,
    ):
        self._arguments, self._output, self._listen = arguments, output, listen
        self._ranks, self._hosts, self._restarts = ranks, hosts, restarts
        self._limit, self._checkpoints = limit_of(hang_timeout), checkpoints
        self._tolerant, self._anew = tolerant, anew
        self._before = _identity(output)
        self._checkpointed = False  # a checkpoint of this job has become whole
        self._last: Event = {}  # the event that has ended the run

    def run(self) -> None:
        """Return once the job is done. Local.

        Raises
        ------
        MfparError
            What the ranks have failed with, if a restart can't mend it or none is left.
        RankError
            The job has failed without saying why, or it hangs.
        PreemptedError
            It was asked to stop, by a signal.
        """
        with Requests(self._checkpoints) as requests:
            hosts, attempt = self._hosts, 0
            while failure := self._attempt(attempt, hosts, requests):
                if not isinstance(failure, MENDABLE) or attempt == self._restarts:
                    raise failure
                attempt += 1
                hosts = None if self._hosts is None else answering(self._hosts)
                self._announce(attempt, failure, hosts)
                requests.pause(min(2.0 ** (attempt - 2), LONGEST) if attempt > 1 else 0.0)

    def _attempt(self, attempt: int, hosts: Sequence[Host] | None, requests: Requests) -> errors.MfparError | None:
        """What it failed with; None if the job is done."""
        if requests.asked is not None:
            return errors.PreemptedError("stopped as asked, while no rank ran")
        ranks = self._ranks if hosts is None else sum(host.slots for host in hosts)
        if not ranks:
            return errors.RankLostError(f"none of the hosts answers: {_names(self._hosts or ())}")
        self._last = {}
        arguments = self._arguments(attempt > 0 and self._checkpointed, attempt > 0)
        with (
            RunFolder(self._output, self._limit) as folder,
            Job(arguments, ranks, hosts, folder, self._tolerant) as job,
        ):
            problem = self._follow(job, folder, Watch(folder, ranks, self._limit), requests)
            if self._is_done():
                return None
            if self._last.get("kind") == "error":
                return _error_of(self._last)
            if self._last.get("kind") == "stopped":
                return errors.PreemptedError(self._last.get("message", "stopped as asked"))
            if not problem and not folder.path.parent.is_dir():
                return errors.StorageError(f"{self._output}: could not be written: its folder is no longer there")
            problem = problem or _obituary(*job.said)
        if requests.asked is not None:
            return errors.PreemptedError(f"stopped as asked, without another checkpoint: {problem}")
        return errors.RankError(problem)

    def _follow(self, job: Job, folder: RunFolder, watch: Watch, requests: Requests) -> str:
        """Hand on events until the job is over; a sentence where it has to be ended, "" where it has ended itself."""
        looked = said = time.monotonic()
        while not job.over:
            line = job.line(LOOK)
            now = time.monotonic()
            if line is not None:
                kind, said = self._hear(line), now
                if kind == "lost":
                    watch.lost()
                elif kind == "run":  # before they have met, nobody starts anybody
                    watch.anew = self._anew
            if self._last and now - said > FAREWELL:
                return "mpirun does not end"
            if requests.asked is not None:
                folder.stop()
                if requests.urgent and now - requests.asked > GRACE:
                    return f"the ranks did not stop within {GRACE:g} s"
            if now - looked > LOOK:
                looked = now
                if problem := watch.look():
                    return f"{problem}; the job is ended"
        return ""

    def _hear(self, line: str) -> str:
        """Hand on an event, and return its kind; "" for a line of mpirun's own."""
        try:
            event = json.loads(line)
        except ValueError:
            return ""
        if not isinstance(event, dict) or "kind" not in event:
            return ""
        kind = str(event["kind"])
        if kind in LAST:
            self._last = self._last or event
        self._checkpointed = self._checkpointed or kind == "checkpoint"
        if kind != "error":
            self._listen(event)
        return kind

    def _is_done(self) -> bool:
        """Whether the job has succeeded, which no exit code tells: the first rank has said so, or the output is new."""
        if self._last:
            return bool(self._last["kind"] == "saved")
        return _identity(self._output) not in (None, self._before)

    def _announce(self, attempt: int, failure: errors.MfparError, hosts: Sequence[Host] | None) -> None:
        message, names = f"{failure}; restart {attempt} of {self._restarts}", None
        if hosts is not None and self._hosts is not None:
            names = [host.name for host in hosts]
            silent = [host.name for host in self._hosts if host not in hosts]
            left, wanted = (sum(host.slots for host in some) for some in (hosts, self._hosts))
            if silent:
                verb = "does" if len(silent) == 1 else "do"
                message += f", on {left} of {wanted} ranks, as {', '.join(silent)} {verb} not answer"
        self._listen({"kind": "restart", "attempt": attempt, "of": self._restarts, "hosts": names, "message": message})


def _identity(path: Path) -> tuple[int, int] | None:
    """Tells a file from one that takes its place."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _names(hosts: Sequence[Host]) -> str:
    return ", ".join(host.name for host in hosts)


def _error_of(event: Event) -> errors.MfparError:
    """The error that a rank has told of."""
    kind = getattr(errors, str(event.get("error")), errors.RankError)
    is_ours = isinstance(kind, type) and issubclass(kind, errors.MfparError)
    error: errors.MfparError = (kind if is_ours else errors.RankError)(event.get("message", "no message"))
    return error


def _obituary(code: int, complaints: str) -> str:
    """A sentence about ranks that have ended without one."""
    said = " ".join(line.strip() for line in complaints.splitlines() if re.search(r"[a-z]", line)).partition(". ")[0]
    killed = " (a rank was killed: out of memory?)" if code == 128 + signal.SIGKILL else ""
    return f"the ranks ended with exit code {code}{killed}: {said.rstrip('.') or 'no message'}"
