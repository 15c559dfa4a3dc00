"""A run's objective in numbers: from settings, loss and data to the constants that kernels take."""

import math
from dataclasses import dataclass

import numpy as np

from mfpar.blockfile import Header
from mfpar.config import ModelConfig
from mfpar.errors import ConfigError
from mfpar.kernels import Knobs
from mfpar.losses import Loss

ENOUGH = 4096  # ratings whose mean loss tells how training goes
UNDECIDED = 1e-6  # the least distance of a share from 0 and 1 whose log-odds scores start from


def unit_of(deviation: float) -> float:
    """The power of 4 near the ratings' standard deviation, in whose multiples rates are meant.

    Learning rates then mean the same on any scale. Multiplying by it, and by its root, is exact.

    >>> [unit_of(deviation) for deviation in (0.0, 0.5, 1.1, 1.9, 2.0, 29.0)]
    [1.0, 1.0, 1.0, 1.0, 4.0, 16.0]
    """
    return 4.0 ** (math.frexp(deviation)[1] // 2) if deviation > 0 else 1.0


def start_of(loss: Loss, header: Header) -> float:
    """The score that is right on average: what a model without factors and biases would say."""
    if loss.start == "mean":
        return header.mean
    if loss.start == "log":
        return math.log(max(header.mean, UNDECIDED))
    if loss.start == "logit":
        share = (header.mean + 1) / 2 if header.minimum < 0 else header.mean
        share = min(max(share, UNDECIDED), 1 - UNDECIDED)
        return math.log(share / (1 - share))
    return 0.0


def check_ratings(loss: Loss, values: np.ndarray, path: object) -> None:
    """Raise ConfigError where a loss can't take these ratings, float32[nnz]."""
    if loss.ratings == "binary":
        low = -1.0 if (values < 0).any() else 0.0
        wrong = (values != low) & (values != 1.0)
        expected = "ratings of −1 and 1, or of 0 and 1"
    elif loss.ratings == "counts":
        wrong, expected = values < 0, "ratings that are not negative"
    else:
        return
    if wrong.any():
        raise ConfigError(
            f"{path}: has a rating of {values[np.argmax(wrong)]:g}, but loss {loss.name} takes {expected}; "
            "convert such ratings, or choose another loss"
        )


@dataclass(frozen=True)
class Objective:
    """What a run minimises, and how long its steps are.

    Rates and regularisation are meant in the unit u of the ratings, in which a loss of degree d is value / u^d, scores
    are z / u, biases b / u and factors p / √u. Written for the real z, b and p that gives the powers of u below; u is a
    power of 4, so nothing is rounded.
    """

    model: ModelConfig  # resolved
    loss: Loss
    unit: float
    level: float  # `start_of` the data, or 0 where the model has no mean
    base: np.float32  # of all scores while training: the level less the lift
    every: int  # of how many ratings the training loss takes one
    path: object  # of the data, for messages

    @property
    def negligible(self) -> float:
        """A mean loss that no data can call an explosion."""
        return float(1e-3 * self.unit**self.loss.degree)

    @classmethod
    def of(cls, model: ModelConfig, loss: Loss, header: Header, path: object) -> "Objective":
        """From the settings and what the data say of themselves.

        Raises
        ------
        ConfigError
            There is nothing to tell apart: every rating is the same, for a loss that tells two kinds apart.
        """
        if loss.ratings == "binary" and header.minimum == header.maximum:
            raise ConfigError(
                f"{path}: every rating is {header.minimum:g}, so there is nothing that loss {loss.name} could tell "
                "apart; for implicit data take bpr-row or one-class"
            )
        level = start_of(loss, header) if model.mean else 0.0
        unit = unit_of(header.deviation) if loss.degree else 1.0
        lift = (model.lift or 0.0) * (header.deviation if loss.degree else 1.0)
        every = loss.every if header.ratings >= ENOUGH * loss.every else 1
        return cls(model, loss, unit, level, np.float32(level - lift), every, path)

    @property
    def lifted(self) -> bool:
        """Whether biases start below the ratings (docs/method.md)."""
        return bool(self.model.lift)

    @property
    def cells(self) -> str:
        """The cells of the kernels: the loss's, and for one-class which of those without a rating count."""
        return self.model.negatives if self.loss.cells == "one-class" else self.loss.cells

    @property
    def l1(self) -> bool:
        """Whether anything is regularised by its absolute value."""
        return any(getattr(self.model, f"l1_{part}") for part in ("p", "q", "row_bias", "col_bias"))

    def knobs(self, rate: float, row_bias_rate: float, col_bias_rate: float) -> Knobs:
        """The constants of an epoch with these rates."""
        m, u, d = self.model, self.unit, self.loss.degree
        values = Knobs(
            base=self.base,
            p_rate=rate * u ** (1 - d),
            q_rate=rate * u ** (1 - d),
            b_rate=row_bias_rate * u ** (2 - d),
            c_rate=col_bias_rate * u ** (2 - d),
            p_reg=m.reg_p * u ** (d - 1),  # type: ignore[operator]
            q_reg=m.reg_q * u ** (d - 1),  # type: ignore[operator]
            b_reg=m.reg_row_bias * u ** (d - 2),  # type: ignore[operator]
            c_reg=m.reg_col_bias * u ** (d - 2),  # type: ignore[operator]
            p_l1=m.l1_p * u ** (d - 0.5),
            q_l1=m.l1_q * u ** (d - 0.5),
            b_l1=m.l1_row_bias * u ** (d - 1),
            c_l1=m.l1_col_bias * u ** (d - 1),
            share=u ** (1 - 2 * d) / m.factors,
            weight=m.negative_weight,
            target=m.negative_target,
        )
        return Knobs(*(np.float32(value) for value in values))
