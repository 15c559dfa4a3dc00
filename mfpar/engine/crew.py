"""The threads of a rank, which share out its row-blocks."""

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue

from mfpar.grid import span


class Job:
    """What the threads do for one pass: call(first, last) for each share of the row-blocks.

    Attributes
    ----------
    error : BaseException or None
        What one of them has failed with.
    """

    def __init__(self, call: Callable[[int, int], None], shares: list[tuple[int, int]]):
        self._call, self._count = call, len(shares)
        self._done: SimpleQueue[None] = SimpleQueue()
        self.error: BaseException | None = None

    def do(self, first: int, last: int) -> None:
        """Do one share, in a thread of the crew."""
        try:
            self._call(first, last)
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits
            self.error = error
        self._done.put(None)

    def join(self) -> None:
        """Wait, once, until all have done or failed."""
        for _ in range(self._count):
            self._done.get()


Task = tuple[Job, int, int] | None  # None: go home
Tasks = SimpleQueue[Task]


class Crew:
    """Threads that run compiled code without the GIL, each on a contiguous share of a rank's row-blocks.

    A pool of the standard library would do the same, at a tenth of a millisecond for each pass, which ranks that
    outnumber the cores feel: between two passes hands a thread nothing but a word.
    """

    def __init__(self, threads: int):
        self._tasks: list[Tasks] = [SimpleQueue() for _ in range(threads)]
        self._started = 0
        weakref.finalize(self, _send_home, self._tasks)

    def shares(self, held: int) -> list[tuple[int, int]]:
        """Ranges [first, last) of `held` row-blocks, one for each thread that gets any."""
        count = min(len(self._tasks), held)
        return [span(held, count, part) for part in range(count)]

    def start(self, held: int, call: Callable[[int, int], None]) -> Job:
        """Have call(first, last) run for every share, all at a time."""
        shares = self.shares(held)
        job = Job(call, shares)
        for tasks in self._tasks[self._started : len(shares)]:
            threading.Thread(target=_work, args=(tasks,), name="mfpar-crew", daemon=True).start()
            self._started += 1
        for tasks, (first, last) in zip(self._tasks, shares, strict=False):
            tasks.put((job, first, last))
        return job


def _work(tasks: Tasks) -> None:
    while task := tasks.get():
        job, first, last = task
        job.do(first, last)
        del job, task  # what they hold is not for the threads to keep


def _send_home(crew: list[Tasks]) -> None:
    for tasks in crew:
        tasks.put(None)
