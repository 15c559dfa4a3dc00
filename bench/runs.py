"""Runs of mfpar as benchmarks see them, and contestants that take turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mfpar
from mfpar.grid import Grid, span
from mfpar.kernels import CLOCKS, SLOT, WIDTH, Turns
from mfpar.shards import Layout


@dataclass(frozen=True)
class Run:
    """What a training took, epoch by epoch."""

    epochs: list[mfpar.EpochReport]
    whole: float  # seconds of the call, start-up and compilation included
    fingerprint: str
    biases: bool

    @property
    def rate(self) -> float:
        """Million updates a second, median over the epochs but the first, which touches memory for the first time."""
        return statistics.median(epoch.updates_per_second for epoch in self.epochs[1:] or self.epochs) / 1e6

    @property
    def seconds(self) -> float:
        """Seconds of an epoch, by the same median."""
        return statistics.median(epoch.seconds for epoch in self.epochs[1:] or self.epochs)

    @property
    def waiting(self) -> float:
        """Share of an epoch that threads wait for their turns."""
        return statistics.median(epoch.seconds_waiting / epoch.seconds for epoch in self.epochs)

    @property
    def working(self) -> float:
        """Share of an epoch that threads are inside blocks."""
        return statistics.median(epoch.seconds_working / epoch.seconds for epoch in self.epochs)

    def until(self, target: float) -> tuple[int, float] | None:
        """Epochs, and seconds of training, after which the test RMSE was at most `target`; None: never."""
        return until(target, [(epoch.seconds, epoch.test_rmse) for epoch in self.epochs])


def until(target: float, curve: list[tuple[float, float]]) -> tuple[int, float] | None:
    """Epochs and seconds after which a curve of (seconds of the epoch, RMSE after it) first was at most `target`.

    >>> until(0.9, [(1.0, 1.0), (0.5, 0.9), (0.5, 0.8)]), until(0.7, [(1.0, 1.0)])
    ((2, 1.5), None)
    """
    spent = 0.0
    for epoch, (seconds, rmse) in enumerate(curve, 1):
        spent += seconds
        if rmse <= target:
            return epoch, spent
    return None


def train(file: Path, factors: int, ranks: int = 1, threads: int = 1, **settings: Any) -> Run:
    """Train on a blocked file; several ranks are started for it."""
    epochs: list[mfpar.EpochReport] = []
    started = time.perf_counter()
    model = mfpar.factorize(
        file, factors, threads=threads, ranks=ranks if ranks > 1 else None, callback=epochs.append, **settings
    )
    whole = time.perf_counter() - started
    return Run(epochs, whole, model.fingerprint, settings.get("biases", True))


def one_step(met: np.ndarray, starts: np.ndarray, held: int, origin: int = 0) -> Turns:
    """Turns of a worker alone: `held` row-blocks, the first of them `origin` in the grid, meet met[origin], …, once.

    Column-block j lies where starts[j] says. To be used again, its board has to be set back (DONE) to 0.
    """
    board = np.zeros((len(met) + 2, WIDTH), np.int32)
    board[: len(met), SLOT] = np.arange(len(met))
    clocks, marks = np.zeros((held, CLOCKS), np.int64), np.zeros((held, 0, 3), np.int64)
    return Turns(0, held, origin, 0, 1, 0, met, board, starts, clocks, marks)


def tables_of(grid: Grid, layout: Layout, ranks: int, rank: int) -> int:
    """Bytes of a rank's rows of P and of its room for column-blocks, two of them coming in (docs/architecture.md)."""
    first, last = span(grid.size, ranks, rank)
    rows = sum(layout.floats(int(size)) for size in grid.row_sizes[first:last])
    return 4 * (rows + (last - first + 2 * (ranks > 1)) * max(layout.floats(int(size)) for size in grid.col_sizes))


def alternating(contestants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """What each contestant returns, once a round, all in turn: so that none has the quiet hours for itself."""
    results: dict[str, list[Any]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            results[name].append(contestant())
    return results
