"""What a run begins with: where it stands, which is at the loss of its starting values, and its first learning rate."""

import math
from dataclasses import dataclass

from mfpar.engine.rates import Rates
from mfpar.engine.training import Training

TRIED_RATES = tuple(2.0**power for power in range(4, -7, -1))  # times the loss's own, by --lr auto


@dataclass
class Standing:
    """How far a run is, in plain numbers; the same on all ranks."""

    start_loss: float  # of the starting values; infinite where it is no number
    loss: float  # of the last epoch that stands
    least: float  # so far
    epoch: int = 1  # under way, or next
    attempt: int = 0  # at it, from 0
    rejected: int = 0  # by the bold driver, in a row
    retreats: int = 0
    best: float | None = None  # merit on the validation part
    best_epoch: int = 0


def begin(training: Training) -> tuple[Standing, Rates]:
    """Where a run stands that has its starting values, and its rates. Collective."""
    loss = _first_loss(training)
    return Standing(loss, loss, loss), Rates(training.train, _first_rate(training))


def _first_loss(training: Training) -> float:
    """The mean loss of the starting values, on a sample; infinite where it is no number. Collective."""
    loss = training.objective.loss
    return _or_infinite(float(loss.value(1.0, 0.0)) if loss.pairs else training.sample_loss())


def _first_rate(training: Training) -> float:
    """The learning rate of the first epoch: as given, or the best on a sample of those tried. Collective."""
    lr, loss = training.train.lr, training.objective.loss
    if isinstance(lr, tuple):
        return lr[0]
    if not isinstance(lr, str):
        return float(lr)  # type: ignore[arg-type]
    own = loss.rates[training.train.optimizer]
    tried = {own * times: _loss_after(training, own * times) for times in TRIED_RATES}
    # Half of the best: what is best for one look at a sample is too bold for many looks at all.
    return min(tried, key=lambda rate: tried[rate]) / 2


def _loss_after(training: Training, rate: float) -> float:
    """The sample's loss after a step on it at this rate."""
    training.sample_step(training.objective.knobs(rate, rate, rate))
    after = training.sample_loss()
    training.restart()
    return _or_infinite(after)


def _or_infinite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
