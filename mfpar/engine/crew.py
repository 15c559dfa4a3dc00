"""The threads of a rank, which share out the blocks of a step.

Blocks of a step touch disjoint rows and columns, so the order in which threads take them changes no bit.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np


class Crew:
    """Runs a step's blocks 0 … B − 1 on several threads in two parts, as `Rotation.epoch` asks for them.

    The caller's thread takes block 0, which leaves first, and the last ones, of which the very last may still be on its
    way; the others take the middle and start with block 0.
    """

    def __init__(self, threads: int):
        self._helpers = threads - 1
        self._pool = ThreadPoolExecutor(self._helpers, "mfpar-crew") if self._helpers else None
        self._tail = 1
        self._running: list[Future[None]] = []

    def run(self, part: tuple[int, int], work: np.ndarray, call: Callable[[int, int], None]) -> None:
        """Run the blocks of a part: first (0, 1), then (1, B).

        Parameters
        ----------
        work : int64[B]
            Ratings of each block.
        call : runs the blocks first … last − 1; compiled and without the GIL
        """
        first, last = part
        if first == 0:
            self._tail = 1
            if self._pool:
                ends = self._middle(work)
                self._tail = ends[-1]
                self._running = [self._pool.submit(call, a, b) for a, b in itertools.pairwise(ends) if a < b]
            call(0, 1)
        else:
            call(self._tail, last)
        if last == len(work):
            for future in self._running:
                future.result()
            self._running = []

    def _middle(self, work: np.ndarray) -> list[int]:
        """Ends of the helpers' pieces of [1, B − 1): each about as much work as the caller's block 0 and tail."""
        before = np.cumsum(work)
        share = before[-1] / (self._helpers + 1)
        ends = np.searchsorted(before, before[0] + share * np.arange(1, self._helpers + 1), side="right")
        return [1, *np.clip(ends, 1, max(len(work) - 1, 1)).tolist()]
