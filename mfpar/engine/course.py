"""The course of a run: its epochs, and what to do when one of them goes wrong or no longer helps.

Decisions are taken on sums that are the same on any number of ranks and threads, so all take the same, and bits stay.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mfpar.engine.beginning import Standing, begin
from mfpar.engine.cut import Block, Breaks, Cut, StopRun
from mfpar.engine.foreign import require_cut
from mfpar.engine.history import History
from mfpar.engine.rates import Rates
from mfpar.engine.report import EpochReport, Measures, Pass
from mfpar.engine.tally import Totals
from mfpar.engine.training import NOT_BEGUN, Begun, Training
from mfpar.errors import ConfigError, DivergedError
from mfpar.losses import is_builtin
from mfpar.metrics import more_is_better

EXPLODED = 3.0  # times the loss of the starting values, beyond which training has diverged though all is finite still
LOST = 0.5  # from the third epoch on, share of what training has gained, with whose loss it has diverged too; at least
BEYOND = 0.25  # this share of the loss of the starting values
RETREATS = 3  # of a run
ENOUGH = 6  # repairs in a row, after which it is the state to begin with that is held for spoilt
REPAIRS = 12  # in a row, each two with more halvings of the rate than the two before: 42 in all
NEAR = 10.0  # deviations from the mean, or scores, within which a loss of one's own must have finite gradients
REJECTIONS = 10  # of the bold driver in a row: a step a thousand times smaller that does not help either

Notify = Callable[[str, dict[str, Any]], None]  # kind of event, and what it says


class Course:
    """Runs the epochs of a training; a context manager. Collective.

    Parameters
    ----------
    training : Training
    beside : Path
        Where copies go that do not fit the memory: the output of the run.
    on_epoch : called on each rank after every epoch that stands, with the same report but for the seconds of evaluation
    notify : called on each rank with "retry" and {"epoch", "lr", "message"} when an epoch is undone, with "warning" and
        {"message"} when there is something to know
    breaks : Breaks, optional
        Where the run may be interrupted.
    """

    def __init__(
        self,
        training: Training,
        beside: Path,
        on_epoch: Callable[[EpochReport], None],
        notify: Notify,
        breaks: Breaks | None = None,
    ):
        self._training, self._train = training, training.train
        self._on_epoch, self._notify, self._breaks = on_epoch, notify, breaks
        self._history = History(training, beside)
        self._rates = Rates(self._train, 0.0)
        self._at: Standing | None = None
        self._laid_out = False
        self._begun = NOT_BEGUN  # of the first epoch of a run that goes on from a cut

    def __enter__(self) -> "Course":
        return self

    def __exit__(self, *error: Any) -> None:
        self._history.__exit__(*error)

    def lay_out(self, content: dict[str, Any]) -> Iterator[Block]:
        """The blocks of a cut with this content, to be written to for `resume`; else FormatError. Collective."""
        require_cut(content, len(self._training.position[0]))
        self._laid_out = True
        order, offset = content["now"]
        self._training.reposition((np.array(order), offset))

        def blocks() -> Iterator[Block]:
            yield from self._now(change=True)
            yield from self._history.incoming(content["copies"])

        return blocks()

    def sizes(self, content: dict[str, Any]) -> dict[str, int]:
        """Numbers of each block that `lay_out` goes through here, by name. Local."""
        orders = {"now": content["now"][0]} | {role: order for role, (order, _) in content["copies"].items()}
        return dict(pair for role, order in orders.items() for pair in self._training.named(np.array(order), role))

    def resume(self, content: dict[str, Any]) -> None:
        """Go on from a cut with this content, whose blocks have been written. Collective."""
        memory = content["course"]
        self._history.remember(memory["history"], content["epoch"], content["step"])
        self._at, self._rates.memory = Standing(**memory["standing"]), memory["rates"]
        if content["totals"]:
            self._begun = Begun(content["step"], Totals.of(content["totals"]))

    def run(self) -> bool:
        """Run all epochs that are left, and finish the training. False where a break has ended the run before.

        Raises
        ------
        DivergedError
            An epoch diverged at whatever rate.
        ConfigError
            The loss's own code yields something that is not a number.
        """
        if self._at is None:
            if self._laid_out:  # in vain
                self._training.restart()
                self._history.forget()
            self._at, self._rates = begin(self._training)
        try:
            self._run_epochs(self._at)
        except StopRun:
            return False
        if self._train.patience is not None and self._at.best_epoch:
            self._history.go_back("best")
        self._training.finish()
        return True

    def _run_epochs(self, at: Standing) -> None:
        while at.epoch <= self._train.epochs:
            done = self._sound_pass(at)
            if done is None:  # what it began with was spoilt already
                self._retreat(at)
                continue
            epoch = at.epoch
            if self._rates.bold and not done.loss < at.loss and epoch > 1:
                at.rejected += 1
                self._undo(epoch, 1, f"epoch {epoch} did not lower the loss ({at.loss:.6g} → {done.loss:.6g})")
                if at.rejected == REJECTIONS:
                    self._notify("warning", {"message": f"no step lowers the loss any more: ends in epoch {epoch}"})
                    return
                continue
            at.rejected, at.loss, at.least = 0, done.loss, min(at.least, done.loss)
            improved = self._improves(self._report(epoch, done), at)
            if self._train.patience is not None and epoch - at.best_epoch >= self._train.patience:
                return
            best = improved and self._train.patience is not None
            if best or (self._is_due(epoch) and epoch < self._train.epochs):
                self._history.keep(epoch, best)
            self._rates.advance(epoch)
            at.epoch += 1
            if self._breaks and at.epoch <= self._train.epochs:
                self._breaks.take(self._cut(at, NOT_BEGUN))

    def _sound_pass(self, at: Standing) -> Pass | None:
        """One pass that did not diverge, at as small a rate as that takes.

        None where no rate seems to help, but there is an earlier state to go back to.
        """
        epoch, start = at.epoch, at.start_loss
        most = start + (EXPLODED - 1) * abs(start)
        if epoch > 2 and math.isfinite(start):  # the first two may have begun with a step too far
            most = min(most, at.least + max(LOST * (start - at.least), BEYOND * abs(start)))
        while True:
            done = self._pass(at)
            if done.loss <= most + self._training.objective.negligible:
                at.attempt = 0
                return done
            if not math.isfinite(done.loss) and not is_builtin(self._training.objective.loss):
                self._blame(epoch, at.attempt == REPAIRS)
            rate = self._rates.now
            at.attempt += 1
            if at.attempt > REPAIRS:
                raise DivergedError(
                    f"training diverged in epoch {epoch} even at learning rate {rate:g}: use a smaller --lr"
                )
            self._undo(epoch, (at.attempt + 1) // 2, f"epoch {epoch} diverged at learning rate {rate:g}")
            if at.attempt == ENOUGH and epoch > 1 and at.retreats < RETREATS:
                at.attempt = 0
                return None

    def _pass(self, at: Standing) -> Pass:
        """One attempt at an epoch, or the rest of one that was interrupted, with the breaks that are wanted."""
        begun, self._begun = self._begun, NOT_BEGUN
        self._history.used[at.epoch] = self._rates.now, self._rates.share

        def pause(so_far: Begun) -> int:
            if so_far.step > begun.step:
                self._breaks.take(self._cut(at, so_far))  # type: ignore[union-attr]
            return self._breaks.steps(at.epoch, so_far.step, self._training.pace)  # type: ignore[union-attr]

        return self._training.run_epoch(
            at.epoch,
            self._training.knobs(*self._history.used[at.epoch]),
            inspect=self._is_inspected(at.epoch),
            begun=begun,
            pause=pause if self._breaks else None,
        )

    def _cut(self, at: Standing, begun: Begun) -> Cut:
        """The state of now."""
        order, offset = self._training.position
        roles = self._history.brought(self._wanted, at.epoch, begun.step)

        def content() -> dict[str, Any]:
            return {
                "epoch": at.epoch,
                "step": begun.step,
                "totals": begun.totals.as_dict() if begun.totals else None,
                "now": [order.tolist(), offset],
                "copies": self._history.positions(roles),
                "course": {"standing": asdict(at), "rates": self._rates.memory, "history": self._history.memory()},
            }

        def blocks() -> Iterator[Block]:
            yield from self._now()
            yield from self._history.blocks(roles)

        return Cut(at.epoch, begun.step, content, blocks)

    def _now(self, change: bool = False) -> Iterator[Block]:
        """The blocks here of the state of now."""
        order, _ = self._training.position
        names = (name for name, _ in self._training.named(order, "now"))
        return zip(names, self._training.state(change), strict=True)

    @property
    def _wanted(self) -> set[str]:
        """Copies that a cut needs, as going back to them is no exception."""
        wanted = {"best": self._train.patience is not None, "last": self._rates.bold}
        return {role for role, is_wanted in wanted.items() if is_wanted}

    def _retreat(self, at: Standing) -> None:
        """Go back beyond the end of the last epoch."""
        spoilt = at.epoch
        at.retreats += 1
        at.epoch = self._history.retreat(spoilt)
        at.loss = at.least = at.start_loss
        back = f"the end of epoch {at.epoch - 1}" if at.epoch > 1 else "the start"
        message = f"no rate helps in epoch {spoilt}, so the one before did harm: back to {back}"
        self._notify("retry", {"epoch": at.epoch, "lr": self._rates.now, "message": message})

    def _blame(self, epoch: int, whatever: bool) -> None:
        """Raise ConfigError if it is the loss that returned something not finite, for a score that was.

        Unless `whatever`, for a score near the ratings only: far off, a smaller rate may be what it needs.
        """
        self._history.restore(epoch)
        done, loss = (
            self._training.run_epoch(epoch, self._training.knobs(self._rates.now, self._rates.share), checked=True),
            self._training.objective.loss,
        )
        near = NEAR * max(self._training.header.deviation, 1.0)
        if done.refused and abs(done.refused[1] - self._training.objective.level) < (math.inf if whatever else near):
            r, z = done.refused
            raise ConfigError(
                f"{loss.where()}: its gradient is not a finite number for rating {r:g} and score {z:g} (epoch {epoch})"
            )
        if not done.refused and done.finite and not math.isfinite(done.loss):
            raise ConfigError(
                f"{loss.where('value')}: its value is not a finite number for some rating and score (epoch {epoch})"
            )

    def _undo(self, epoch: int, halvings: int, why: str) -> None:
        """Go back to the end of the epoch before, with a smaller rate, and say so."""
        self._history.restore(epoch)
        self._rates.cut(halvings)
        back = f"the end of epoch {epoch - 1}" if epoch > 1 else "the start"
        message = f"{why}: back to {back}, with learning rate {self._rates.now:g}"
        self._notify("retry", {"epoch": epoch, "lr": self._rates.now, "message": message})

    def _is_due(self, epoch: int) -> bool:
        """Whether to copy the state at the end of an epoch.

        A copy takes about as long as ten updates of each row. Where going back is the exception, there are fewer of
        them the longer the run; what lies behind a copy takes no more than half as long as what lies before it.
        """
        last = self._history.last
        return self._rates.bold or epoch - last >= max(1, last // 2)

    def _is_inspected(self, epoch: int) -> bool:
        """Whether to look at every number of the state after an epoch: before a copy of it is taken, and at the end."""
        return self._is_due(epoch) or self._train.patience is not None or epoch == self._train.epochs

    def _report(self, epoch: int, done: Pass) -> Measures | None:
        """Measure the held-out parts, tell of the epoch, and return the validation's measures."""
        training = self._training
        measured = {part: training.measure(part) for part in ("validation", "test")}
        measures = {part: found for part, (found, _) in measured.items()}
        seconds = sum(spent for _, spent in measured.values())
        squared = training.objective.loss.name == "squared"
        self._on_epoch(EpochReport.of(epoch, done, self._rates.now, training.ratings, squared, measures, seconds))
        return measures["validation"]

    def _improves(self, validation: Measures | None, at: Standing) -> bool:
        """Whether the validation's deciding measure is the best so far, which is noted."""
        if validation is None:
            return False
        name, measure = next(iter(validation.items()))
        merit = measure if more_is_better(name) else -measure
        if math.isnan(merit) or (at.best is not None and merit <= at.best):
            return False
        at.best, at.best_epoch = merit, at.epoch
        return True
