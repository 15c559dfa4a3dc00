"""A training run: epochs of updates, scored on the held-out part, on any number of ranks and threads."""

import math
import socket
import time
from collections.abc import Callable

import numpy as np

from mfpar.blockfile import BlockedFile, Strip
from mfpar.config import ModelConfig, TrainConfig
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
        if comm.size > grid.size:
            raise ConfigError(
                f"{comm.size} ranks for a grid of {grid.size}: at most {grid.size} can take part; "
                f"use fewer, or convert with --grid {4 * comm.size}"
            )
        self.first, self.last = span(grid.size, comm.size, comm.rank)
        self.layout = Layout.of(model, train)
        self._train, self._comm, self._grid, self._header = train, comm, grid, file.header
        self._mean, self._reg = np.float32(file.header.mean), np.float32(model.reg)
        self._ratings = file.strip("train", self.first, self.last)
        self._heldout = file.strip("test", self.first, self.last) if file.header.test_ratings else None
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

    def row_block(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Factors float32[rows, k] and biases float32[rows] of row-block i of this rank; views."""
        block, size = self._slots[i - self.first], int(self._grid.row_sizes[i])
        return self.layout.rows(block, size), self.layout.bias(block, size)

    def col_block(self, j: int) -> tuple[np.ndarray, np.ndarray]:
        """The same of column-block j (first ≤ j < last), which is at home after `run`."""
        block, size = self._rotation.block(j), int(self._grid.col_sizes[j])
        return self.layout.rows(block, size), self.layout.bias(block, size)

    def _epoch(self, epoch: int, lr: float) -> EpochReport:
        order = ring(self._grid.size, self._train.seed, epoch)
        errors, scores = np.zeros(self.last - self.first), np.zeros((self.last - self.first, 2))
        waited, sent, started = self._comm.seconds_waiting, self._comm.bytes_sent, time.perf_counter()
        self._visit_all(order, self._ratings, self._update, (np.float32(lr), self._reg, errors))
        waited, sent, trained = self._comm.seconds_waiting - waited, self._comm.bytes_sent - sent, time.perf_counter()
        if self._heldout:
            self._visit_all(order, self._heldout, self._score, (scores,))
        mine = [errors.tolist(), scores.tolist(), trained - started, time.perf_counter() - trained, waited, sent]
        ranks = self._comm.gather(mine)
        # Sums of row-blocks, added in the order of row-blocks whatever rank they come from.
        squares = math.fsum(error for rank in ranks for error in rank[0])
        test_squares, test_absolutes = (math.fsum(pair[part] for rank in ranks for pair in rank[1]) for part in (0, 1))
        seconds, seconds_evaluate = (max(rank[part] for rank in ranks) for part in (2, 3))
        count, test_count = self._header.ratings, self._header.test_ratings
        return EpochReport(
            epoch=epoch,
            seconds=seconds,
            seconds_evaluate=seconds_evaluate,
            train_loss=squares / count / 2,
            train_rmse=rmse(squares, count),
            test_rmse=rmse(test_squares, test_count) if test_count else None,
            test_mae=mae(test_absolutes, test_count) if test_count else None,
            updates_per_second=count / seconds,
            lr=lr,
            seconds_waiting=sum(rank[4] for rank in ranks) / len(ranks),
            bytes_sent=sum(rank[5] for rank in ranks),
        )

    def _visit_all(self, order: np.ndarray, strip: Strip, kernel: Callable[..., None], rest: tuple[object, ...]) -> None:
        """Let the kernel visit every block of a strip once, in the order of the ring."""
        row_counts, places = self._row_sizes + 1, np.arange(self.last - self.first)

        def visit(first: int, last: int, met: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> None:
            def call(a: int, b: int) -> None:
                kernel(
                    *(a, b, met, strip.offsets, strip.rows, strip.cols, strip.values),
                    *(self._slots.buffer, self._slots.starts, row_counts),
                    *(self._rotation.slots.buffer, starts, counts, self._mean, *rest),
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
