"""The course of a run: its epochs, and what to do when one of them goes wrong or no longer helps.

Every decision is taken on sums that are the same on any number of ranks and threads, so that all ranks take the same
one and the bits stay what they are.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mfpar.engine.copies import Copies
from mfpar.engine.rates import Rates
from mfpar.engine.report import EpochReport, Measures
from mfpar.engine.training import Pass, Training
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
TRIED_RATES = tuple(2.0**power for power in range(4, -7, -1))  # times the loss's own, by --lr auto

Notify = Callable[[str, dict[str, Any]], None]  # kind of event, and what it says


class Course:
    """Runs the epochs of a training. Collective.

    Parameters
    ----------
    training : Training
    beside : Path
        Where copies go that do not fit the memory: the output of the run.
    on_epoch : called on each rank after every epoch that stands, with the same report but for the seconds of evaluation
    notify : called on each rank with "retry" and {"epoch", "lr", "message"} when an epoch is undone, with "warning" and
        {"message"} when there is something to know
    """

    def __init__(self, training: Training, beside: Path, on_epoch: Callable[[EpochReport], None], notify: Notify):
        self._training, self._train = training, training.train
        self._on_epoch, self._notify, self._beside = on_epoch, notify, beside
        self._start_loss = _or_infinite(self._first_loss())
        self._rates = Rates(self._train, self._first_rate())
        self._positions: dict[str, Any] = {}  # what belongs to each copy, by its role
        self._kept: dict[str, int] = {}  # after which epoch it was taken
        self._used: dict[int, Any] = {}  # the constants of each epoch that stands
        self._best: float | None = None
        self._best_epoch = self._retreats = 0

    def run(self) -> None:
        """Run all epochs and finish the training.

        Raises
        ------
        DivergedError
            An epoch diverged at whatever rate.
        ConfigError
            The loss's own code yields something that is not a number.
        """
        with self._copying() as self._copies:
            loss = least = self._start_loss
            epoch, rejected = 1, 0
            while epoch <= self._train.epochs:
                done = self._sound_pass(epoch, least)
                if done is None:  # what it began with was spoilt already
                    epoch = self._retreat(epoch)
                    loss = least = self._start_loss
                    continue
                if self._rates.bold and not done.loss < loss and epoch > 1:
                    rejected += 1
                    self._undo(epoch, 1, f"epoch {epoch} did not lower the loss ({loss:.6g} → {done.loss:.6g})")
                    if rejected == REJECTIONS:
                        self._notify("warning", {"message": f"no step lowers the loss any more: ends in epoch {epoch}"})
                        break
                    continue
                rejected, loss, least = 0, done.loss, min(least, done.loss)
                validation = self._report(epoch, done)
                improved = self._improves(validation, epoch)
                if self._train.patience is not None and epoch - self._best_epoch >= self._train.patience:
                    break
                best = improved and self._train.patience is not None
                if best or (self._is_due(epoch) and epoch < self._train.epochs):
                    self._keep(epoch, best)
                self._rates.advance(epoch)
                epoch += 1
            if self._train.patience is not None and self._best_epoch:
                self._go_back("best")
        self._training.finish()

    def _sound_pass(self, epoch: int, least: float) -> Pass | None:
        """One pass that did not diverge, at as small a rate as that takes; `least` is the least loss so far.

        None where no rate seems to help, but there is an earlier state to go back to.
        """
        start = self._start_loss
        most = start + (EXPLODED - 1) * abs(start)
        if epoch > 2 and math.isfinite(start):  # the first two may have begun with a step too far
            most = min(most, least + max(LOST * (start - least), BEYOND * abs(start)))
        for attempt in range(REPAIRS + 1):
            self._used[epoch] = self._knobs()
            done = self._training.run_epoch(epoch, self._used[epoch], inspect=self._is_inspected(epoch))
            if done.loss <= most + self._negligible:
                return done
            if not math.isfinite(done.loss) and not is_builtin(self._training.objective.loss):
                self._blame(epoch, attempt == REPAIRS)
            rate = self._rates.now
            if attempt == REPAIRS:
                break
            self._undo(epoch, attempt // 2 + 1, f"epoch {epoch} diverged at learning rate {rate:g}")
            if attempt + 1 == ENOUGH and epoch > 1 and self._retreats < RETREATS:
                return None
        raise DivergedError(f"training diverged in epoch {epoch} even at learning rate {rate:g}: use a smaller --lr")

    def _retreat(self, epoch: int) -> int:
        """Go back beyond the end of the last epoch, and return which epoch is next."""
        self._retreats += 1
        if self._kept.get("last", 0) > epoch - 2:
            del self._positions["last"], self._kept["last"]
            if "before" in self._positions:
                self._rename("before", "last")
        after = epoch - 2 if "last" in self._positions else 0
        self._restore(after + 1)
        back = f"the end of epoch {after}" if after else "the start"
        message = f"no rate helps in epoch {epoch}, so the one before did harm: back to {back}"
        self._notify("retry", {"epoch": after + 1, "lr": self._rates.now, "message": message})
        return after + 1

    @property
    def _negligible(self) -> float:
        """A mean loss that no data can call an explosion."""
        objective = self._training.objective
        return 1e-3 * objective.unit**objective.loss.degree

    def _blame(self, epoch: int, whatever: bool) -> None:
        """Raise ConfigError if it is the loss that returned something not finite, for a score that was.

        Unless `whatever`, for a score near the ratings only: far off, a smaller rate may be what it needs.
        """
        self._restore(epoch)
        done, loss = self._training.run_epoch(epoch, self._knobs(), checked=True), self._training.objective.loss
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
        self._restore(epoch)
        self._rates.cut(halvings)
        back = f"the end of epoch {epoch - 1}" if epoch > 1 else "the start"
        message = f"{why}: back to {back}, with learning rate {self._rates.now:g}"
        self._notify("retry", {"epoch": epoch, "lr": self._rates.now, "message": message})

    def _restore(self, epoch: int) -> None:
        """Go back to the end of the epoch before: to a copy, and from there through the epochs since, once more."""
        role = next((role for role in ("last", "before") if self._kept.get(role, epoch) < epoch), None)
        if role:
            self._go_back(role)
        else:
            self._training.restart()
        missing = range(self._kept[role] + 1 if role else 1, epoch)
        for again in missing:  # to the very same bits
            self._training.run_epoch(again, self._used[again])
        if missing:
            self._keep(epoch - 1, best=False)

    def _is_due(self, epoch: int) -> bool:
        """Whether to copy the state at the end of an epoch.

        A copy takes about as long as ten updates of each row. Where going back is the exception, there are fewer of
        them the longer the run; what lies behind a copy takes no more than half as long as what lies before it.
        """
        last = self._kept.get("last", 0)
        return self._rates.bold or epoch - last >= max(1, last // 2)

    def _is_inspected(self, epoch: int) -> bool:
        """Whether to look at every number of the state after an epoch: before a copy of it is taken, and at the end."""
        return self._is_due(epoch) or self._train.patience is not None or epoch == self._train.epochs

    def _keep(self, epoch: int, best: bool) -> None:
        """Copy the state at the end of an epoch, and remember the copy before."""
        if "last" in self._positions:
            self._rename("last", "before")
        roles = ["last", "best"] if best else ["last"]
        with self._training.trace.span("keep"):
            self._copies.keep(roles, self._training.state())
        self._positions.update(dict.fromkeys(roles, self._training.position))
        self._kept.update(dict.fromkeys(roles, epoch))

    def _rename(self, role: str, other: str) -> None:
        self._copies.rename(role, other)
        self._positions[other], self._kept[other] = self._positions.pop(role), self._kept.pop(role)

    def _go_back(self, role: str) -> None:
        self._training.reposition(self._positions[role])
        self._copies.restore(role, self._training.state(change=True))

    @contextmanager
    def _copying(self) -> Iterator[Copies]:
        copies = Copies(self._beside, self._training.needs.copies > 0)
        try:
            yield copies
        finally:
            with suppress(OSError):
                copies.close()

    def _report(self, epoch: int, done: Pass) -> Measures | None:
        """Measure the held-out parts, tell of the epoch, and return the validation's measures."""
        validation, first_seconds = self._training.measure("validation")
        test, seconds = self._training.measure("test")
        squared = self._training.objective.loss.name == "squared"
        report = EpochReport(
            epoch=epoch,
            seconds=done.seconds,
            seconds_evaluate=first_seconds + seconds,
            train_loss=done.loss,
            train_rmse=math.sqrt(max(2 * done.loss, 0.0)) if squared else None,
            test=test,
            test_rmse=test.get("rmse") if test else None,
            test_mae=test.get("mae") if test else None,
            validation=validation,
            updates_per_second=self._training.ratings / done.seconds,
            lr=self._rates.now,
            seconds_waiting=done.seconds_waiting,
            seconds_working=done.seconds_working,
            seconds_exchange=done.seconds_exchange,
            bytes_sent=done.bytes_sent,
            peak_memory=done.peak_memory,
            step_balance=done.step_balance,
        )
        self._on_epoch(report)
        return validation

    def _improves(self, validation: Measures | None, epoch: int) -> bool:
        """Whether the validation's deciding measure is the best so far, which is noted."""
        if validation is None:
            return False
        name, measure = next(iter(validation.items()))
        merit = measure if more_is_better(name) else -measure
        if math.isnan(merit) or (self._best is not None and merit <= self._best):
            return False
        self._best, self._best_epoch = merit, epoch
        return True

    def _knobs(self) -> Any:
        """The constants of the current epoch."""
        rate, share = self._rates.now, self._rates.share
        given = self._train.lr_row_bias, self._train.lr_col_bias
        return self._training.objective.knobs(rate, *(rate if own is None else own * share for own in given))

    def _first_loss(self) -> float:
        """The mean loss of the starting values, on a sample."""
        loss = self._training.objective.loss
        return float(loss.value(1.0, 0.0)) if loss.pairs else self._training.sample_loss()

    def _first_rate(self) -> float:
        """The learning rate of the first epoch: as given, or the best on a sample of those tried."""
        lr, loss = self._train.lr, self._training.objective.loss
        if isinstance(lr, tuple):
            return lr[0]
        if not isinstance(lr, str):
            return float(lr)  # type: ignore[arg-type]
        own = loss.rates[self._train.optimizer]
        tried = {own * times: self._loss_after(own * times) for times in TRIED_RATES}
        # Half of the best: what is best for one look at a sample is too bold for many looks at all.
        return min(tried, key=lambda rate: tried[rate]) / 2

    def _loss_after(self, rate: float) -> float:
        """The sample's loss after a step on it at this rate."""
        self._training.sample_step(self._training.objective.knobs(rate, rate, rate))
        after = self._training.sample_loss()
        self._training.restart()
        return _or_infinite(after)


def _or_infinite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
