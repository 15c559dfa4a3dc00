"""A trace of the run: what each rank and thread did when, as a file that Perfetto and Chrome open.

The format is Chrome's JSON array of trace events (Google: Trace Event Format): times in microseconds, a process for
each rank, a row for each thread; messages, which overlap, are asynchronous events on rows of their own.
"""

import contextlib
import itertools
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from mfpar.atomic import replacing, storage_errors
from mfpar.kernels import BEGAN, CAME, ENDED
from mfpar.parallel.comm import Communicator

ROUNDS = 5  # of comparing clocks
LEAST = 1000  # nanoseconds: what is shorter is not shown as a wait
Event = list[Any]  # phase, name, thread, begin and end in nanoseconds, details


class Trace:
    """The events of a rank, handed over to the first one, which writes them; a context manager. Collective.

    Parameters
    ----------
    comm : Communicator
    path : Path or None
        None: nobody wants a trace, and nothing is noted.
    """

    def __init__(self, comm: Communicator, path: Path | None):
        self._comm, self._path = comm, path
        self._events: list[Event] = []
        self._closing = contextlib.ExitStack()
        self._file: IO[str] | None = None
        self._offset = 0

    @property
    def wanted(self) -> bool:
        """Whether anything is noted."""
        return self._path is not None

    @contextlib.contextmanager
    def span(self, name: str, **details: Any) -> Iterator[None]:
        """Note that the rank's main thread does something inside this context."""
        begun = time.monotonic_ns()
        yield
        if self.wanted:
            self._events.append(["X", name, 0, begun, time.monotonic_ns(), details])

    def message(self, name: str, column_block: int, begun: int) -> None:
        """Note that a message has arrived, or has been sent, which was started at `begun`."""
        if self.wanted:
            self._events.append(["b", name, 0, begun, time.monotonic_ns(), {"column-block": column_block}])

    def visits(
        self, name: str, marks: np.ndarray, shares: list[tuple[int, int]], order: np.ndarray, origin: int
    ) -> None:
        """Note the visits of a pass.

        Parameters
        ----------
        name : what a visit did
        marks : int64[row-blocks, steps, 3]
            See `mfpar.kernels.turns`; no steps, nothing to note.
        shares : ranges of row-blocks, one for each thread
        order : int64[G]
        origin : number of row-block 0 of this rank
        """
        for thread, (first, last) in enumerate(shares, 1):
            for i, step in itertools.product(range(first, last), range(marks.shape[1])):
                came, began, ended = (int(marks[i, step, part]) for part in (CAME, BEGAN, ENDED))
                if began - came >= LEAST:
                    self._events.append(["X", "wait", thread, came, began, {"step": step}])
                blocks = {"row-block": origin + i, "column-block": int(order[(origin + i + step) % len(order)])}
                self._events.append(["X", name, thread, began, ended, {"step": step, **blocks}])

    def flush(self) -> None:
        """Write what all ranks have noted so far. Collective."""
        if not self.wanted:
            return
        moved = [[*event[:3], event[3] - self._offset, event[4] - self._offset, event[5]] for event in self._events]
        self._events = []
        for rank, events in enumerate(self._comm.gather(moved)):
            for event in events if self._file else ():
                self._write(rank, event)

    def _write(self, rank: int, event: Event) -> None:
        phase, name, thread, begun, ended, details = event
        common = {"name": name, "pid": rank, "tid": thread, "cat": "message" if phase == "b" else "work"}
        if phase == "X":
            self._print({**common, "ph": "X", "ts": begun / 1e3, "dur": (ended - begun) / 1e3, "args": details})
        else:
            label = f"{rank}-{name}-{details['column-block']}-{begun}"
            self._print({**common, "ph": "b", "ts": begun / 1e3, "id": label, "args": details})
            self._print({**common, "ph": "e", "ts": ended / 1e3, "id": label})

    def _print(self, event: dict[str, Any], end: str = ",\n") -> None:
        if self._file and self._path:
            with storage_errors(self._path):
                self._file.write(json.dumps(event) + end)

    def _compare_clocks(self) -> int:
        """Nanoseconds that this rank's clock is ahead of the first rank's. Collective."""
        ahead = []
        for _ in range(ROUNDS):
            self._comm.gather(None)
            times = self._comm.gather(time.monotonic_ns())
            ahead.append(times[self._comm.rank] - times[0])
        hosts = self._comm.gather(socket.gethostname())
        return 0 if hosts[self._comm.rank] == hosts[0] else sorted(ahead)[ROUNDS // 2]

    def __enter__(self) -> "Trace":
        if self._path is None:
            return self
        self._offset = self._compare_clocks()
        if self._comm.rank == 0:
            temporary = self._closing.enter_context(replacing(self._path))
            self._file = self._closing.enter_context(temporary.open("w"))
            self._file.write("[\n")
            for rank in range(self._comm.size):
                self._print({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}})
        return self

    def __exit__(self, *error: Any) -> None:
        if self._file and error == (None, None, None):
            self._print({"ph": "M", "name": "thread_name", "pid": 0, "tid": 0, "args": {"name": "main"}}, "\n]\n")
        self._closing.__exit__(*error)
