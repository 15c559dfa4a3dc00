"""Processes of ranks: which one a rank is, and its end by force."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

BORN = 19  # which of the fields of a process, from its state on, is its start


@dataclass(frozen=True)
class Process:
    """A process that a rank is, as plain JSON values.

    Attributes
    ----------
    host : str
    pid : int
    place : str
        The same for processes that can signal each other by number; host names may be shared by machines' containers.
    born : int
        When it was started, in ticks of its machine's clock: an id that was given away again is told by it. −1 where
        the system does not say.
    """

    host: str
    pid: int
    place: str
    born: int

    @classmethod
    def own(cls) -> Self:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), _place(), _born(os.getpid()))

    def as_dict(self) -> dict[str, Any]:
        """Its attributes."""
        return asdict(self)

    def near(self, other: "Process") -> bool:
        """Whether one can signal the other."""
        return bool(self.place) and self.place == other.place

    @property
    def alive(self) -> bool:
        """Whether it has not ended; for one that is `near`."""
        if self.born < 0:
            return True
        state, *_ = fields = _fields(self.pid)
        return state not in ("", "Z", "X") and int(fields[BORN]) == self.born

    @property
    def stopped(self) -> bool:
        """Whether it is there, but was stopped by a signal; for one that is `near`."""
        state, *_ = fields = _fields(self.pid)
        return state in ("T", "t") and int(fields[BORN]) == self.born

    def kill(self) -> None:
        """End it at once, whatever it does, if it is still there; from one that is `near`."""
        with contextlib.suppress(OSError):
            # What is looked at and what is killed are the same process, even if it ends in between.
            descriptor = os.pidfd_open(self.pid)
            try:
                if self.born >= 0 and _born(self.pid) == self.born:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)


def kill_stopped(processes: Iterable[Process]) -> None:
    """End those that were stopped by a signal, of those that this process can signal."""
    own = Process.own()
    for process in processes:
        if process.near(own) and process.stopped:
            process.kill()


def _place() -> str:
    """This boot of this machine, and the space that its process ids belong to; "" where Linux does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> int:
    fields = _fields(pid)
    return int(fields[BORN]) if len(fields) > BORN else -1


def _fields(pid: int) -> list[str]:
    """What Linux says of a process, from its state on; an empty state where there is none."""
    try:
        # The name, which may hold anything, stands in brackets.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() or [""]
    except OSError:
        return [""]
