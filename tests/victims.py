"""Jobs that are made to suffer: a command with all processes that it starts, which are found wherever they are.

Every process of a job has a mark in its environment, which children inherit, so that none is lost sight of when its
parent dies, and no process of anybody else is ever touched.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARK = "MFPAR_CHAOS"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps it
LOOK = 0.25  # seconds between two looks at what shared memory a job uses
MPIRUN = {"mpirun", "mpiexec", "prterun", "prte"}
GLANCE = 0.002  # seconds between two looks
Event = dict[str, Any]


@dataclass(frozen=True)
class Process:
    """A process of a job; its role is "rank", "mpirun", "launcher" (the command itself) or "other"."""

    number: int
    role: str
    state: str  # as the system abbreviates it: R, S, D, T (stopped), …

    def __str__(self) -> str:
        return f"{self.role} {self.number} ({self.state})"


class Job:
    """A command under way; a context manager, at whose end all that it started is killed.

    Parameters
    ----------
    command : list of str
        `mfpar train` of one process or with --ranks, or mpirun with such; it prints events as lines of JSON.
    folder : Path
        Where it runs.
    name : str
        FOLDER/NAME.out and NAME.err get what it says.
    mark : str
        No other job on this machine has it.
    environment : dict
        What its processes find there beside the mark.

    Attributes
    ----------
    events : list of (seconds, event)
        As they came; seconds are those of `time.monotonic`.
    started : float
    shared : set of str
        Names in the folder for shared memory that its processes were seen to use.
    """

    def __init__(self, command: list[str], folder: Path, name: str, mark: str, environment: dict[str, str]):
        self.mark, self.started, self.events = mark, time.monotonic(), list[tuple[float, Event]]()
        self.shared = set[str]()
        self._errors = (folder / f"{name}.err").open("wb")
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._follow, args=(folder / f"{name}.out",), daemon=True)
        self._reader.start()
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _follow(self, path: Path) -> None:
        assert self._process.stdout
        with path.open("wb") as copy:
            for line in self._process.stdout:
                now = time.monotonic()
                copy.write(line)
                copy.flush()
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict) and "kind" in event:
                        self.events.append((now, event))

    def _watch(self) -> None:
        pattern = re.compile(rf"{SHARED_MEMORY}/([^/\s\0]+)")
        while not self._over.wait(LOOK):
            for process in self.processes():
                with contextlib.suppress(OSError):  # it has ended
                    home = Path(f"/proc/{process.number}")
                    text = (home / "maps").read_text() + (home / "environ").read_bytes().decode(errors="replace")
                    self.shared |= set(pattern.findall(text))

    @property
    def code(self) -> int | None:
        """Exit code as a shell says it (137 for a process that was killed by signal 9); None while it runs."""
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    @property
    def epoch(self) -> int:
        """The last one that was done, from 1; 0 before."""
        return next((event["epoch"] for _, event in reversed(self.events) if event["kind"] == "epoch"), 0)

    def wait(self, seconds: float) -> int | None:
        """The exit code, when it has ended and all that it said is in `events`; None after so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            self._reader.join(1)  # what was left behind may hold the pipe open
        return self.code

    def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until something is so, the job ends, or time is up; whether it was so."""
        end = time.monotonic() + seconds
        while not condition():
            if self.code is not None or time.monotonic() > end:
                return False
            time.sleep(GLANCE)
        return True

    def after(self, moment: float, *kinds: str) -> Iterator[tuple[float, Event]]:
        """Events of these kinds that came after a moment."""
        return ((when, event) for when, event in list(self.events) if when > moment and event["kind"] in kinds)

    def processes(self) -> list[Process]:
        """Those that live (and are not just waiting for somebody to note their end)."""
        found = []
        wanted = f"{MARK}={self.mark}".encode()
        for entry in os.scandir("/proc"):
            if not entry.name.isdecimal():
                continue
            # One that is not ours, or has just ended, can't be read, or has nothing to be read.
            with contextlib.suppress(OSError, IndexError):
                home = Path(entry.path)
                variables = (home / "environ").read_bytes().split(b"\0")
                if wanted not in variables:
                    continue
                state = (home / "stat").read_text().rpartition(")")[2].split()[0]
                words = (home / "cmdline").read_bytes().decode(errors="replace").split("\0")
                # A rank's children, which have its environment, are not Python.
                ranked = "python" in Path(words[0]).name and any(one.startswith(b"PMIX_RANK=") for one in variables)
                number = int(entry.name)
                role = "launcher" if number == self._process.pid else "rank" if ranked else "other"
                if Path(words[0]).name in MPIRUN:
                    role = "mpirun"
                if state not in "ZX":
                    found.append(Process(number, role, state))
        return found

    def strays(self, seconds: float) -> list[Process]:
        """Processes that are still there so many seconds after the end of the job."""
        end = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.05)
        return left

    def signal(self, process: Process, number: signal.Signals) -> bool:
        """Send a signal to a process of this job; whether it was still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.number, number)
            return True
        return False

    def end(self) -> None:
        """Kill whatever is left of it."""
        self._over.set()
        self._watcher.join()
        while left := self.processes():
            for process in left:
                self.signal(process, signal.SIGKILL)
            time.sleep(0.02)
        self._process.wait()
        self._reader.join(5)
        if self._process.stdout:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
