"""How well predictions fit ratings: sums in float64, from which the measures are taken at the end."""

from dataclasses import dataclass

import numpy as np

from mfpar.errors import ConfigError
from mfpar.metrics import mae, rmse


@dataclass(frozen=True)
class Scores:
    """Fit of a model to ratings that it has not been trained on."""

    rmse: float
    mae: float
    count: int  # ratings, the unknown ones included
    unknown: int  # those whose row or column id the model does not know: the mean and the known bias score them


class Tally:
    """Running sums over predictions and ratings."""

    def __init__(self) -> None:
        self._squares = self._absolutes = 0.0
        self._count = self._unknown = 0

    def add(self, predictions: np.ndarray, unknown: np.ndarray, ratings: np.ndarray) -> None:
        """Count float32[count] predictions against float[count] ratings; bool[count] marks the unknown."""
        errors = ratings.astype(np.float64) - predictions
        self._squares += float(np.sum(errors * errors))
        self._absolutes += float(np.sum(np.abs(errors)))
        self._count += len(errors)
        self._unknown += int(np.count_nonzero(unknown))

    def scores(self) -> Scores:
        """Take the measures.

        Raises
        ------
        ConfigError
            There were no ratings.
        """
        if not self._count:
            raise ConfigError("there are no ratings to evaluate on; name a source that has some")
        return Scores(rmse(self._squares, self._count), mae(self._absolutes, self._count), self._count, self._unknown)
