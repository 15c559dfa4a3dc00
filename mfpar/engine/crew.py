"""The threads of a rank, which share out its row-blocks."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from mfpar.grid import span


class Job:
    """What the threads do for one pass.

    Attributes
    ----------
    ended : threading.Event
        Set when all have done, or one has failed.
    failed : bool
    """

    def __init__(self, futures: list[Future[None]]):
        self._futures, self._left, self._lock = futures, len(futures), threading.Lock()
        self.ended, self.failed = threading.Event(), False
        for future in futures:
            future.add_done_callback(self._count)

    def _count(self, future: Future[None]) -> None:
        with self._lock:
            self._left -= 1
            self.failed = self.failed or future.exception() is not None
            if not self._left or self.failed:
                self.ended.set()

    def check(self) -> None:
        """Raise what one of them has failed with."""
        for future in self._futures:
            if future.done():
                future.result()

    def join(self) -> None:
        """Wait until all have done or failed."""
        wait(self._futures)


class Crew:
    """Threads that run compiled code without the GIL, each on a contiguous share of a rank's row-blocks."""

    def __init__(self, threads: int):
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "mfpar-crew")

    def shares(self, held: int) -> list[tuple[int, int]]:
        """Ranges [first, last) of `held` row-blocks, one for each thread that gets any."""
        count = min(self._threads, held)
        return [span(held, count, part) for part in range(count)]

    def start(self, held: int, call: Callable[[int, int], None]) -> Job:
        """Have call(first, last) run for every share, all at a time."""
        return Job([self._pool.submit(call, first, last) for first, last in self.shares(held)])
