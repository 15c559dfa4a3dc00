"""What a run does with its tables and ratings: epochs of updates, scores of held-out parts."""

import functools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mfpar.blockfile import BlockedFile
from mfpar.config import ModelConfig, SafetyConfig, TrainConfig
from mfpar.engine.balance import step_balance
from mfpar.engine.feed import Call
from mfpar.engine.objective import Objective, check_ratings
from mfpar.engine.parts import needs as needs_of_run
from mfpar.engine.parts import read_parts
from mfpar.engine.report import Measures, Pass
from mfpar.engine.steps import Steps
from mfpar.engine.tables import Tables, require_places
from mfpar.engine.tally import Totals
from mfpar.engine.trace import Trace
from mfpar.errors import ConfigError
from mfpar.kernels import ABSOLUTES, COUNTED, DESCENT, LOSS, REFUSED, RIGHT, SCORES, SQUARES, SUMS, VALUE, Knobs
from mfpar.losses import Loss
from mfpar.metrics import from_sums, mean
from mfpar.parallel.comm import Communicator
from mfpar.parallel.limits import peak_memory
from mfpar.schedule import ring, sample_key
from mfpar.shards import Layout

RINGS = 32  # found at once
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Begun:
    """What is done of an epoch: some steps, and what they amount to; the same on every rank."""

    step: int = 0
    totals: Totals | None = None  # of width SUMS


NOT_BEGUN = Begun()
# Says how many steps to take next, at least 1, of an epoch that has begun. Collective.
Pause = Callable[[Begun], int]


class Training(Tables):
    """A run on one rank: its ratings, and the kernels that go over them and its tables. Collective.

    Parameters
    ----------
    file : BlockedFile
    model, train : ModelConfig, TrainConfig
        Resolved.
    loss : Loss
    comm : Communicator
    trace : Trace or None
    safety : SafetyConfig, optional
        What else there has to be memory for.

    Raises
    ------
    ConfigError
        More ranks than the grid has blocks; ratings or functions that do not suit the loss.
    """

    def __init__(
        self,
        file: BlockedFile,
        model: ModelConfig,
        loss: Loss,
        train: TrainConfig,
        comm: Communicator,
        trace: Trace | None = None,
        safety: SafetyConfig | None = None,
    ):
        self.trace = trace or Trace(comm, None)
        require_places(file.grid.size, comm.size)
        kept = safety or SafetyConfig()
        needs = needs_of_run(file, Layout.of(model, train), train, comm, kept.replicas, kept.checkpoint is not None)
        with self.trace.span("start"):
            objective = Objective.of(model, loss, file.header, file.path)
            super().__init__(file, objective, train, comm, self.trace, needs)
        with self.trace.span("read"):
            check = functools.partial(check_ratings, loss, path=file.path)
            self._parts = read_parts(file, self.first, self.last, train, needs, check, comm)
        self._rings: dict[int, np.ndarray] = {}
        self._peak_memory: list[int] = []
        self.pace: float | None = None  # seconds that a step took last, the same on all ranks
        self._block_counts = file.counts("train") if comm.rank == 0 else None
        self._steps = Steps(self.objective, self.layout, train, file, comm)
        self._sizes = {name: sum(comm.gather(int(part.counts.sum()))) for name, part in self._parts.items()}
        self.ratings = self._sizes["train"]
        weights = comm.gather(self._parts["train"].weights) if file.header.weighted else None
        self._weight = self.ratings if weights is None else math.fsum(weight for rank in weights for weight in rank)
        if not self._weight:
            raise ConfigError(f"{file.path}: all training ratings have the weight 0, so there is nothing to learn")
        held = int(self._parts["train"].counts.sum())
        LOG.debug("row-blocks %d to %d of %d, %d ratings, %s", self.first, self.last - 1, self._grid.size, held, needs)

    def run_epoch(
        self,
        epoch: int,
        knobs: Knobs,
        checked: bool = False,
        inspect: bool = True,
        begun: Begun = NOT_BEGUN,
        pause: Pause | None = None,
    ) -> Pass:
        """Visit every training rating once. Collective.

        A `checked` pass refuses steps that are not finite; without `inspect` only the loss tells whether all is finite.
        An epoch that has `begun` is gone on with; `pause` may interrupt it. Neither changes a bit.
        """
        order = self._ring(epoch)
        kernel = self._steps.checked() if checked else self._steps.update
        totals = self._go_round(order, self._updating(kernel, knobs, epoch), begun, pause)
        with self.trace.span("inspect"):
            looks = self.comm.gather([self.finite, peak_memory()]) if inspect else []
            self._peak_memory = [peak for _, peak in looks] or self._peak_memory
        finite = all(sound for sound, _ in looks)
        value, counted, descent, refused = _added(totals.sums, (VALUE, COUNTED, DESCENT, REFUSED))
        if not counted and not refused and finite:
            raise ConfigError(
                f"{self.objective.path}: no positive has a cell without a rating in its block to be set against; "
                "convert with a smaller --grid, or choose another loss"
            )
        curvature = self.objective.loss.curvature * self._weight
        self._offset = descent / curvature if self.objective.lifted else 0.0
        loss = mean(value, counted) - curvature / self.ratings * self._offset**2 / 2
        LOG.debug("epoch %d: loss %r, %.6f s, waiting %.6f s", epoch, loss, totals.seconds, totals.waited)
        counts = self._block_counts
        first = next((row[REFUSED + 1 : REFUSED + 3].tolist() for row in totals.sums if row[REFUSED]), [0.0, 0.0])
        return Pass(
            loss=loss if finite else math.nan,
            finite=finite,
            seconds=totals.seconds,
            seconds_waiting=totals.waited,
            seconds_working=totals.worked,
            seconds_exchange=totals.exchanged,
            bytes_sent=totals.bytes_sent,
            peak_memory=self._peak_memory,
            step_balance=[] if counts is None else step_balance(counts, order, self.comm.size),
            refused=(first[0], first[1]) if refused else None,
        )

    def _go_round(self, order: np.ndarray, call: Call, begun: Begun, pause: Pause | None) -> Totals:
        """The steps of an epoch that are left."""
        size, step, totals = self._grid.size, begun.step, begun.totals
        while totals is None or step < size:
            steps = min(size - step, pause(Begun(step, totals))) if pause else size - step
            so_far = None if totals is None else totals.sums
            part = self._visit(np.roll(order, -step), call, SUMS, "compute", steps, so_far)
            step, totals, self.pace = step + steps, part.after(totals), part.seconds / steps
        return totals

    def _ring(self, epoch: int) -> np.ndarray:
        """The epoch's order of column-blocks; several are found at once: cold code takes ten times as long."""
        if epoch not in self._rings:
            upcoming = range(epoch, epoch + RINGS)
            self._rings = {later: ring(self._grid.size, self.train.seed, later) for later in upcoming}
        return self._rings[epoch]

    def _key(self, epoch: int) -> np.uint64:
        """Key of the epoch's samples; of no use, and 0, where nothing is drawn."""
        return np.uint64(0) if self.objective.cells == "rated" else sample_key(self.train.seed, epoch)

    def sample_step(self, knobs: Knobs) -> None:
        """Update with the ratings of the blocks on the diagonal alone, column-blocks at home. Collective."""
        self._visit_home(self._updating(self._steps.update, knobs, 0), SUMS)

    def _updating(self, kernel: Callable[..., None], knobs: Knobs, epoch: int) -> Call:
        """A kernel that changes the model."""
        return Call(kernel, [self._parts["train"]], (knobs, self._key(epoch)), changes=True)

    def sample_loss(self) -> float:
        """The mean loss of the blocks on the diagonal, column-blocks at home. Collective.

        Not a number where they hold no ratings.
        """
        totals = self._visit_home(self._scoring("train", self.objective.base), SCORES)
        value, pairs = _added(totals.sums, (LOSS, SQUARES))
        count = sum(self.comm.gather(int(self._parts["train"].counts.diagonal(self.first).sum())))
        return mean(value, pairs if self._steps.contrast else count)

    def knobs(self, rate: float, share: float) -> Knobs:
        """The constants of an epoch at a learning rate, which is this share of the first one."""
        given = self.train.lr_row_bias, self.train.lr_col_bias
        return self.objective.knobs(rate, *(rate if own is None else own * share for own in given))

    def measure(self, part: str) -> tuple[Measures | None, float]:
        """Measures of a held-out part, "test" or "validation", as the saved model will have them; None without one.

        Also the seconds that took on this rank. Collective.
        """
        if part not in self._parts:
            return None, 0.0
        started = time.perf_counter()
        if part == "test" and self.header.test_unknown:
            self.seat_strangers()
        base = np.float32(self.objective.base + self._offset)
        size = self._grid.size
        totals = self._visit(np.arange(size), self._scoring(part, base), SCORES, "evaluate", size)
        loss, squares, absolutes, right = _added(totals.sums, (LOSS, SQUARES, ABSOLUTES, RIGHT))
        count = squares if self._steps.contrast else self._sizes[part]
        measures = from_sums(self.objective.loss.metrics, loss, squares, absolutes, right, count)
        return measures, time.perf_counter() - started

    def _scoring(self, part: str, base: np.float32) -> Call:
        """The kernel that measures a part."""
        model, header = self.objective.model, self.header
        if self._steps.contrast:
            negatives = np.float32(model.negative_weight), np.float32(model.negative_target)
            rest = (base, *negatives, sample_key(self.train.seed, 0))
            return Call(self._steps.contrast, [self._parts[part], self._parts["train"]], rest)
        low, high = (header.minimum, header.maximum) if model.clip else (-math.inf, math.inf)
        return Call(self._steps.score, [self._parts[part]], (base, np.float32(low), np.float32(high)))


def _added(sums: np.ndarray, parts: tuple[int, ...]) -> list[float]:
    """Some columns of sums, each added over all row-blocks: exactly; NaN if one is not finite."""
    columns = sums.T[list(parts)].tolist()
    return [math.fsum(column) if all(map(math.isfinite, column)) else math.nan for column in columns]
