"""A training run: epochs of updates, scored on the held-out part, on any number of ranks and threads."""

import math
import socket
import time
from collections.abc import Callable, Iterator

import numpy as np

from mfpar.blockfile import SIDES, BlockedFile, Strip
from mfpar.config import ModelConfig, TrainConfig
from mfpar.engine.centre import Averages, weighted_sum
from mfpar.engine.crew import Crew
from mfpar.engine.report import EpochReport
from mfpar.engine.rotation import Rotation
from mfpar.errors import ConfigError, DivergedError
from mfpar.grid import span
from mfpar.kernels import score_kernel, update_kernel
from mfpar.metrics import mae, rmse
from mfpar.parallel.comm import Communicator
from mfpar.schedule import ring
from mfpar.shards import Layout, Slots, start_block


def unit_of(deviation: float) -> float:
    """The power of 4 near the ratings' standard deviation, in whose multiples a run computes.

    Learning rates then mean the same on any scale. Dividing by it, and multiplying factors by its root, are exact.

    >>> [unit_of(deviation) for deviation in (0.0, 0.5, 1.1, 1.9, 2.0, 29.0)]
    [1.0, 1.0, 1.0, 1.0, 4.0, 16.0]
    """
    return 4.0 ** (math.frexp(deviation)[1] // 2) if deviation > 0 else 1.0


def require_places(grid: int, ranks: int) -> None:
    """Raise ConfigError where there are more ranks than row-blocks."""
    if ranks > grid:
        raise ConfigError(
            f"{ranks} ranks for a grid of {grid}: at most {grid} can take part; "
            f"use fewer, or convert with --grid {4 * ranks}"
        )


class Training:
    """The state of a run on one rank: its ratings, its slice of P, and the column-blocks that pass. Collective.

    Parameters
    ----------
    file : BlockedFile
    model, train : ModelConfig, TrainConfig
    comm : Communicator

    Raises
    ------
    ConfigError
        More ranks than the grid has blocks.
    """

    def __init__(self, file: BlockedFile, model: ModelConfig, train: TrainConfig, comm: Communicator):
        grid = file.grid
        require_places(grid.size, comm.size)
        self.first, self.last = span(grid.size, comm.size, comm.rank)
        self.layout = Layout.of(model, train)
        self._train, self._comm, self._grid, self._header = train, comm, grid, file.header
        self._unit = unit_of(file.header.deviation)
        self._mean = file.header.mean / self._unit
        lift = model.lift * file.header.deviation / self._unit if model.biases else 0.0
        self._base, self._offset = np.float32(self._mean - lift), 0.0
        self._reg = np.float32(model.reg)
        self._ratings = self._scaled(file.strip("train", self.first, self.last))
        self._heldout = self._scaled(file.strip("test", self.first, self.last)) if file.header.test_ratings else None
        self._counts = {  # for the averages that a model with biases is centred on
            side: [file.ratings_of(side, index, index + 1) for index in range(self.first, self.last)]
            for side in SIDES
            if model.biases
        }
        self._row_sizes = grid.row_sizes[self.first : self.last]
        self._slots = Slots([self.layout.floats(int(size)) for size in self._row_sizes])
        for place, size in enumerate(self._row_sizes):
            start_block(self._slots[place], self.layout, int(size), train.seed, "rows", self.first + place)
        self._rotation = Rotation(grid, self.layout, comm, train.seed)
        self._crew = Crew(train.threads)
        self._compile(model)

    def run(self, on_epoch: Callable[[EpochReport], None]) -> None:
        """Train for all epochs; each rank calls `on_epoch` with the same report. Collective.

        Raises
        ------
        DivergedError
            The errors became infinite or undefined.
        """
        lr = self._train.rate
        for epoch in range(1, self._train.epochs + 1):
            report = self._epoch(epoch, lr)
            if not math.isfinite(report.train_rmse):
                raise DivergedError(f"training diverged in epoch {epoch} at learning rate {lr:g}: use a smaller --lr")
            on_epoch(report)
            lr *= self._train.lr_decay  # by repeated products, which round alike everywhere; powers need not
        self._rotation.home()
        averages = self._averages() if self.layout.biases else None
        for side, _, block, size in self._blocks():
            factors, bias = self.layout.rows(block, size), self.layout.bias(block, size)
            if averages:
                averages.centre(factors, bias, side)
            factors *= np.float32(math.sqrt(self._unit))
            bias *= np.float32(self._unit)

    def row_block(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Factors float32[rows, k] and biases float32[rows] of row-block i of this rank; views."""
        block, size = self._slots[i - self.first], int(self._grid.row_sizes[i])
        return self.layout.rows(block, size), self.layout.bias(block, size)

    def col_block(self, j: int) -> tuple[np.ndarray, np.ndarray]:
        """The same of column-block j (first ≤ j < last); after `run`."""
        block, size = self._rotation.block(j), int(self._grid.col_sizes[j])
        return self.layout.rows(block, size), self.layout.bias(block, size)

    def _epoch(self, epoch: int, lr: float) -> EpochReport:
        order = ring(self._grid.size, self._train.seed, epoch)
        errors = np.zeros((self.last - self.first, 2))
        waited, sent, started = self._comm.seconds_waiting, self._comm.bytes_sent, time.perf_counter()
        self._visit_all(order, self._ratings, self._update, (self._base, np.float32(lr), self._reg, errors))
        waited, sent, trained = self._comm.seconds_waiting - waited, self._comm.bytes_sent - sent, time.perf_counter()
        ranks = self._comm.gather([errors.tolist(), trained - started, waited, sent])
        # Sums of row-blocks, exact and so the same whatever rank they come from.
        squares, total = (math.fsum(sums[part] for rank in ranks for sums in rank[0]) for part in (0, 1))
        seconds, count = max(rank[1] for rank in ranks), self._header.ratings
        self._offset = total / count if self.layout.biases else 0.0
        loss = max(squares / count - self._offset**2, 0.0) / 2 * self._unit**2
        test_rmse, test_mae, evaluated = self._evaluate(self._heldout) if self._heldout else (None, None, 0.0)
        return EpochReport(
            epoch=epoch,
            seconds=seconds,
            seconds_evaluate=evaluated,
            train_loss=loss,
            train_rmse=math.sqrt(2 * loss),
            test_rmse=test_rmse,
            test_mae=test_mae,
            updates_per_second=count / seconds,
            lr=lr,
            seconds_waiting=sum(rank[2] for rank in ranks) / len(ranks),
            bytes_sent=sum(rank[3] for rank in ranks),
        )

    def _evaluate(self, heldout: Strip) -> tuple[float, float, float]:
        """RMSE and MAE on the held-out part, as the saved model will have them, and the seconds that took."""
        started = time.perf_counter()
        if self._header.test_unknown and self.layout.biases:
            self._rotation.home()
            averages = self._averages()
            for side, _, block, size in self._blocks():
                averages.seat_stranger(*self.layout.stranger(block, size), side)
        scores = np.zeros((self.last - self.first, 2))
        base = np.float32(self._base + self._offset)
        self._visit_all(np.arange(self._grid.size), heldout, self._score, (base, scores))
        ranks = self._comm.gather([scores.tolist(), time.perf_counter() - started])
        squares, absolutes = (math.fsum(sums[part] for rank in ranks for sums in rank[0]) for part in (0, 1))
        count = self._header.test_ratings
        seconds = max(rank[1] for rank in ranks)
        return rmse(squares, count) * self._unit, mae(absolutes, count) * self._unit, seconds

    def _blocks(self) -> Iterator[tuple[str, int, np.ndarray, int]]:
        """Side, index, buffer and number of rows of each block that this rank owns, column-blocks at home."""
        for index in range(self.first, self.last):
            yield "rows", index, self._slots[index - self.first], int(self._grid.row_sizes[index])
        for index in range(self.first, self.last):
            yield "cols", index, self._rotation.block(index), int(self._grid.col_sizes[index])

    def _averages(self) -> Averages:
        """The average row and column of all ranks, column-blocks at home. Collective."""
        sums: dict[str, list[list[float]]] = {side: [] for side in SIDES}
        for side, index, block, size in self._blocks():
            counts = self._counts[side][index - self.first]
            sums[side].append(
                weighted_sum(self.layout.rows(block, size), self.layout.bias(block, size), counts).tolist()
            )
        ranks = self._comm.gather(sums)
        everybody = {side: [total for rank in ranks for total in rank[side]] for side in SIDES}
        return Averages.of(everybody, self._header.ratings, float(self._base) + self._offset - self._mean)

    def _scaled(self, strip: Strip) -> Strip:
        """The strip in the run's unit; in place."""
        strip.values[:] *= np.float32(1 / self._unit)
        return strip

    def _visit_all(
        self, order: np.ndarray, strip: Strip, kernel: Callable[..., None], rest: tuple[object, ...]
    ) -> None:
        """Let the kernel visit every block of a strip once, in the order of the ring."""
        row_counts, places = self._row_sizes + 1, np.arange(self.last - self.first)

        def visit(first: int, last: int, met: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> None:
            def call(a: int, b: int) -> None:
                kernel(
                    *(a, b, met, strip.offsets, strip.rows, strip.cols, strip.values),
                    *(self._slots.buffer, self._slots.starts, row_counts),
                    *(self._rotation.slots.buffer, starts, counts, *rest),
                )

            work = strip.offsets[places, met + 1] - strip.offsets[places, met]
            self._crew.run((first, last), work, call)

        self._rotation.epoch(order, visit)

    def _compile(self, model: ModelConfig) -> None:
        """Compile, or load from the cache: the first rank of each node before the others, which then find it there."""
        dtypes = self._ratings.rows.dtype.name, self._ratings.cols.dtype.name
        hosts = self._comm.gather(socket.gethostname())
        first_here = hosts.index(hosts[self._comm.rank])
        for turn in (True, False):
            if turn == (self._comm.rank == first_here):
                adagrad = self._train.optimizer == "adagrad"
                self._update = update_kernel(self.layout.stride, model.factors, model.biases, adagrad, *dtypes)
                self._score = score_kernel(self.layout.stride, model.biases, *dtypes)
            self._comm.gather(None)
