"""What scores a cell: the tables of a trained model, and the way from a score to a prediction."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mfpar.blockfile import BlockedFile
from mfpar.errors import ConfigError
from mfpar.model.aligned import Aligned
from mfpar.model.table import Ids, Table
from mfpar.model.topk import scores

WORKING = 1 << 24  # bytes of factors gathered at a time
USERS = 1024  # that share one scan of Q


@dataclass(frozen=True, eq=False, repr=False)
class Scorer:
    """The part of a model that scores cells; rows and columns are positions, −1 an unknown one. Local.

    A score is base + row bias + column bias + P[row]·Q[column]; an unknown row or column contributes nothing, so that
    the base and the known bias remain. A prediction is the loss's link of it: for squared loss the score itself, for
    logistic a probability, for Poisson a rate.
    """

    path: Path
    P: Table  # float32[m, factors]
    Q: Table  # float32[n, factors]
    row_bias: Table  # float32[m]; zeros where the model has no biases
    col_bias: Table  # float32[n]
    row_ids: Ids  # of P[i] and row_bias[i]
    col_ids: Ids
    factors: int
    loss: str  # its name
    clip: bool  # predictions are cut to minimum … maximum
    base: float  # of all scores
    minimum: float  # of the training ratings
    maximum: float
    data_checksum: str  # of the blocked file that it was trained on
    data_path: Path  # where that lay
    transform: Callable[[np.ndarray], np.ndarray] | None  # the link; None where it is code that has not been given

    def score_at(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """float32[count]: scores for int64[count] rows and columns, in portions that fit the working memory."""
        found = np.empty(len(rows), np.float32)
        pairs = max(1, WORKING // (8 * self.factors))
        for first in range(0, len(rows), pairs):
            some = slice(first, first + pairs)
            i, j = rows[some], cols[some]
            offsets = _gather(self.row_bias, i).astype(np.float64) + _gather(self.col_bias, j)
            found[some] = scores(_gather(self.P, i), _gather(self.Q, j), offsets, self.base)
        return found

    def natural(self, scores: np.ndarray) -> np.ndarray:
        """float32[count]: the link of float32[count] scores.

        Raises
        ------
        ConfigError
            The link is code that the model's file does not hold, and its loss has not been given.
        """
        if self.transform is None:
            raise ConfigError(
                f"{self.path}: was trained with loss {self.loss}, whose link is Python code that a file can't hold; "
                "name the loss with --loss MODULE:NAME, or mfpar.load(path, loss=…)"
            )
        return np.asarray(self.transform(scores), np.float32)

    def predictions(self, scores: np.ndarray) -> np.ndarray:
        """float32[count]: `natural`, cut to the range of the training ratings if the model is to."""
        found = self.natural(scores)
        return np.clip(found, np.float32(self.minimum), np.float32(self.maximum)) if self.clip else found

    def aligned(self, file: BlockedFile, memory: int | None = None) -> Aligned:
        """A blocked file's ratings by this model's rows and columns; `memory`: bytes that sorted ids may take."""
        return Aligned(file, self.row_ids, self.col_ids, file.checksum == self.data_checksum, memory)


def _gather(table: Table, indices: np.ndarray) -> np.ndarray:
    """Rows of a table, zeros where the index is −1."""
    known = indices >= 0
    if known.all():
        return table.take(indices)
    gathered = np.zeros((len(indices), *table.shape[1:]), table.dtype)
    gathered[known] = table.take(indices[known])
    return gathered
