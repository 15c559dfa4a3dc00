"""The state of a training run: epochs of updates, scores of held-out parts, on any number of ranks and threads."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mfpar.blockfile import SIDES, BlockedFile, Strip
from mfpar.config import ModelConfig, TrainConfig
from mfpar.engine.centre import Averages, weighted_sum
from mfpar.engine.crew import Crew
from mfpar.engine.holdout import split
from mfpar.engine.objective import Objective, check_ratings
from mfpar.engine.report import Measures
from mfpar.engine.rotation import Rotation
from mfpar.engine.starting import Starter
from mfpar.engine.steps import Steps, arrays_of
from mfpar.errors import ConfigError
from mfpar.grid import span
from mfpar.kernels import (
    ABSOLUTES,
    COUNTED,
    DESCENT,
    LOSS,
    REFUSED,
    RIGHT,
    SCORES,
    SQUARES,
    SUMS,
    VALUE,
    Knobs,
)
from mfpar.losses import Loss
from mfpar.metrics import from_sums, mean
from mfpar.parallel.comm import Communicator
from mfpar.schedule import ring, sample_key
from mfpar.shards import Layout, Slots


def require_places(grid: int, ranks: int) -> None:
    """Raise ConfigError where there are more ranks than row-blocks."""
    if ranks > grid:
        raise ConfigError(
            f"{ranks} ranks for a grid of {grid}: at most {grid} can take part; "
            f"use fewer, or convert with --grid {4 * ranks}"
        )


@dataclass(frozen=True)
class Pass:
    """What one pass over the ratings did, over all ranks; the same on every rank."""

    loss: float  # mean value, of scores met on the way; not finite where training diverged
    finite: bool  # the state after it
    seconds: float  # on the slowest rank
    seconds_waiting: float  # mean over ranks
    bytes_sent: int
    refused: tuple[float, float] | None = None  # r and z of the first step that a checked pass has refused


class Training:
    """The state of a run on one rank: its ratings, its slice of P, and the column-blocks that pass. Collective.

    Parameters
    ----------
    file : BlockedFile
    model, train : ModelConfig, TrainConfig
        Resolved.
    loss : Loss
    comm : Communicator

    Raises
    ------
    ConfigError
        More ranks than the grid has blocks; ratings or functions that do not suit the loss.
    """

    def __init__(self, file: BlockedFile, model: ModelConfig, loss: Loss, train: TrainConfig, comm: Communicator):
        grid = self._grid = file.grid
        require_places(grid.size, comm.size)
        self.first, self.last = span(grid.size, comm.size, comm.rank)
        self.comm, self.train, self.header = comm, train, file.header
        self.layout = Layout.of(model, train)
        self.objective = Objective.of(model, loss, file.header, file.path)
        self._offset = 0.0  # δ of docs/method.md
        self._parts = self._read(file)
        self._counts = {  # for the averages that a model with biases is centred on
            side: [file.ratings_of(side, index, index + 1) for index in range(self.first, self.last)]
            for side in SIDES
            if self._centred
        }
        self._row_sizes = grid.row_sizes[self.first : self.last]
        self._slots = Slots([self.layout.floats(int(size)) for size in self._row_sizes])
        self._starter = Starter(file, model, self.layout, train.seed, self.objective.unit)
        self._rotation = Rotation(grid, self.layout, comm, lambda block, j: self._starter.fill(block, "cols", j))
        self._start_rows()
        self._crew = Crew(train.threads)
        self._steps = Steps(self.objective, self.layout, train, self._parts["train"], comm)
        self.ratings = sum(comm.gather(len(self._parts["train"].values)))

    def _read(self, file: BlockedFile) -> dict[str, Strip]:
        """The parts of the ratings: "train" and, where there are any, "validation" and "test"."""
        parts = {"train": file.strip("train", self.first, self.last)}
        if file.header.test_ratings:
            parts["test"] = file.strip("test", self.first, self.last)
        for strip in parts.values():
            check_ratings(self.objective.loss, strip.values, file.path)
        if self.train.validates:
            parts["train"], parts["validation"] = split(parts["train"], self.first, self._grid, self.train)
            held = sum(self.comm.gather(len(parts["validation"].values)))
            if not 0 < held < file.header.ratings:
                raise ConfigError(
                    f"{file.path}: {held} of {file.header.ratings} ratings would be held out for validation; "
                    "hold out some, not all"
                )
        return parts

    def restart(self) -> None:
        """Go back to the starting values. Local."""
        self._start_rows()
        self._rotation.restart()
        self._offset = 0.0

    def _start_rows(self) -> None:
        for place in range(self.last - self.first):
            self._starter.fill(self._slots[place], "rows", self.first + place)

    def state(self, order: np.ndarray | None = None) -> list[np.ndarray]:
        """Views of all that training changes on this rank; column-blocks as they lie, or lay in another order. Local."""
        return [self._slots.buffer, *self._rotation.held(order)]

    @property
    def position(self) -> tuple[np.ndarray, float]:
        """What else `state` needs to be put back, see `reposition`."""
        return self._rotation.order, self._offset

    def reposition(self, position: tuple[np.ndarray, float]) -> None:
        """Say that `state` has been put back to what it was when `position` was this. Local."""
        self._rotation.order, self._offset = position

    def run_epoch(self, epoch: int, knobs: Knobs, checked: bool = False) -> Pass:
        """Visit every training rating once; `checked` passes refuse steps that are not finite. Collective."""
        order = ring(self._grid.size, self.train.seed, epoch)
        sums = np.zeros((self.last - self.first, SUMS))
        waited, sent, started = self.comm.seconds_waiting, self.comm.bytes_sent, time.perf_counter()
        kernels = self._steps.checked() if checked else self._steps.update
        rest = (knobs, self.first, sample_key(self.train.seed, epoch), sums)
        self._visit_all(order, self._parts["train"], [(kernel, rest) for kernel in kernels])
        waited, sent, trained = self.comm.seconds_waiting - waited, self.comm.bytes_sent - sent, time.perf_counter()
        finite = all(math.isfinite(float(np.dot(block, block))) for block in self.state())
        ranks = self.comm.gather([_plain(sums), trained - started, waited, sent, finite])
        value, counted, descent, refused = _totals(ranks, (VALUE, COUNTED, DESCENT, REFUSED))
        self._offset = descent / self.ratings if self.objective.lifted else 0.0
        loss = mean(value, counted) - self._offset**2 / 2
        first = next((row[REFUSED + 1 : REFUSED + 3] for rank in ranks for row in rank[0] if row[REFUSED]), (0.0, 0.0))
        return Pass(
            loss=loss if all(rank[4] for rank in ranks) else math.nan,
            finite=all(rank[4] for rank in ranks),
            seconds=max(rank[1] for rank in ranks),
            seconds_waiting=sum(rank[2] for rank in ranks) / len(ranks),
            bytes_sent=sum(rank[3] for rank in ranks),
            refused=(first[0], first[1]) if refused else None,
        )

    def sample_step(self, knobs: Knobs) -> None:
        """Update with the ratings of the blocks on the diagonal alone, column-blocks at home. Local."""
        sums = np.zeros((self.last - self.first, SUMS))
        rest = (knobs, self.first, sample_key(self.train.seed, 0), sums)
        self._visit_home(self._parts["train"], [(kernel, rest) for kernel in self._steps.update])

    def sample_loss(self) -> float:
        """The mean loss of the blocks on the diagonal, column-blocks at home. Collective.

        Not a number where they hold no ratings.
        """
        objective, scores = self.objective, np.zeros((self.last - self.first, SCORES))
        strip = self._parts["train"]
        self._visit_home(strip, [self._scoring(strip, objective.base, scores)])
        value, pairs = _totals(self.comm.gather([_plain(scores)]), (LOSS, SQUARES))
        here = np.arange(self.first, self.last)
        places = here - self.first
        count = sum(self.comm.gather(int((strip.offsets[places, here + 1] - strip.offsets[places, here]).sum())))
        return mean(value, pairs if self._steps.contrast else count)

    def measure(self, part: str) -> tuple[Measures | None, float]:
        """Measures of a held-out part, "test" or "validation", as the saved model will have them; None without one.

        Also the seconds that took. Collective.
        """
        if part not in self._parts:
            return None, 0.0
        started = time.perf_counter()
        if part == "test" and self.header.test_unknown and self._centred:
            self._rotation.home()
            averages = self._averages()
            for side, _, block, size in self._blocks():
                averages.seat_stranger(*self.layout.stranger(block, size), side)
        scores = np.zeros((self.last - self.first, SCORES))
        strip = self._parts[part]
        base = np.float32(self.objective.base + self._offset)
        self._visit_all(np.arange(self._grid.size), strip, [self._scoring(strip, base, scores)])
        ranks = self.comm.gather([_plain(scores), time.perf_counter() - started, len(strip.values)])
        loss, squares, absolutes, right = _totals(ranks, (LOSS, SQUARES, ABSOLUTES, RIGHT))
        count = squares if self._steps.contrast else sum(rank[2] for rank in ranks)
        measures = from_sums(self.objective.loss.metrics, loss, squares, absolutes, right, count)
        return measures, max(rank[1] for rank in ranks)

    def finish(self) -> None:
        """Bring column-blocks home and move the model to where its average row and column are zero. Collective."""
        self._rotation.home()
        if self._centred:
            averages = self._averages()
            for side, _, block, size in self._blocks():
                averages.centre(self.layout.rows(block, size), self.layout.bias(block, size), side)

    @property
    def _centred(self) -> bool:
        """Whether the model ends where its average is zero; what L1 has made zero stays zero instead."""
        return self.layout.biases and not self.objective.l1

    @property
    def base(self) -> float:
        """Of the scores of the finished model."""
        return self.objective.level if self._centred else float(self.objective.base) + self._offset

    def row_block(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Factors float32[rows, k] and biases float32[rows] of row-block i of this rank; views."""
        block, size = self._slots[i - self.first], int(self._grid.row_sizes[i])
        return self.layout.rows(block, size), self.layout.bias(block, size)

    def col_block(self, j: int) -> tuple[np.ndarray, np.ndarray]:
        """The same of column-block j (first ≤ j < last); after `finish`."""
        block, size = self._rotation.block(j), int(self._grid.col_sizes[j])
        return self.layout.rows(block, size), self.layout.bias(block, size)

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
        ranks = self.comm.gather(sums)
        everybody = {side: [total for rank in ranks for total in rank[side]] for side in SIDES}
        level = float(self.objective.base) + self._offset - self.objective.level
        return Averages.of(everybody, self.header.ratings, level, self.objective.model.nonnegative)

    def _scoring(self, strip: Strip, base: np.float32, scores: np.ndarray) -> tuple[Callable[..., None], Any]:
        """The kernel that measures a strip, and the last of its arguments; see `_visit_all`."""
        model, header = self.objective.model, self.header
        if self._steps.contrast:
            negatives = np.float32(model.negative_weight), np.float32(model.negative_target)
            return self._steps.contrast, (base, *negatives, self.first, sample_key(self.train.seed, 0), scores)
        low, high = (header.minimum, header.maximum) if model.clip else (-math.inf, math.inf)
        return self._steps.score, (base, np.float32(low), np.float32(high), scores)

    def _visit_all(self, order: np.ndarray, strip: Strip, calls: Sequence[tuple[Callable[..., None], Any]]) -> None:
        """Let kernels visit every block of a strip once, in the order of the ring."""
        self._rotation.epoch(order, self._visitor(strip, calls))

    def _visit_home(self, strip: Strip, calls: Sequence[tuple[Callable[..., None], Any]]) -> None:
        """Let kernels visit the blocks on the diagonal."""
        held, met = self.last - self.first, np.arange(self.first, self.last)
        visit = self._visitor(strip, calls)
        starts, counts = self._rotation.starts(), self._grid.col_sizes[met] + 1
        visit(0, 1, met, starts, counts)
        if held > 1:
            visit(1, held, met, starts, counts)

    def _visitor(self, strip: Strip, calls: Sequence[tuple[Callable[..., None], Any]]) -> Callable[..., None]:
        row_counts, places = self._row_sizes + 1, np.arange(self.last - self.first)
        arrays = arrays_of(strip)

        def visit(first: int, last: int, met: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> None:
            def call(a: int, b: int) -> None:
                for kernel, rest in calls:
                    known = arrays_of(self._parts["train"]) if kernel is self._steps.contrast else ()
                    kernel(
                        *(a, b, met, *arrays, *known),
                        *(self._slots.buffer, self._slots.starts, row_counts),
                        *(self._rotation.slots.buffer, starts, counts, *rest),
                    )

            work = strip.offsets[places, met + 1] - strip.offsets[places, met]
            self._crew.run((first, last), work, call)

        return visit


def _plain(sums: np.ndarray) -> list[list[float]]:
    return [[float(part) for part in row] for row in sums]


def _totals(ranks: list[Any], parts: tuple[int, ...]) -> list[float]:
    """Sums over the row-blocks of all ranks, exact and so the same whatever rank they come from; NaN if one is not finite."""
    columns = [[row[part] for rank in ranks for row in rank[0]] for part in parts]
    return [math.fsum(column) if all(map(math.isfinite, column)) else math.nan for column in columns]
