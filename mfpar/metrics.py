"""Measures of fit: their names, what each rating or row adds to them, and how sums in float64 become figures."""

import functools
import math
import re
from collections.abc import Iterable

import numpy as np

from mfpar.errors import ConfigError

PER_RATING = ("rmse", "mae", "log_loss", "accuracy", "deviance")  # means over held-out ratings
OVER_PAIRS = ("auc", "row_auc")  # of a positive and a negative: of all held-out ratings, or of those of a row
RANKING = ("mpr", "recall@n", "ndcg@n")  # of held-out columns among all that their row could be recommended
DEFAULTS = {
    "poisson": ("deviance", "rmse", "mae"),
    "logistic": ("log_loss", "accuracy", "auc", "row_auc"),
    **dict.fromkeys(("hinge", "squared-hinge"), ("accuracy", "auc", "row_auc")),
    **dict.fromkeys(("bpr-row", "bpr-col", "one-class"), ("row_auc", "mpr", "recall@10", "ndcg@10")),
}  # what a saved model is measured by, by the name of its loss; others by RMSE and MAE
DECIDING_MORE = {"accuracy", "auc", "row_auc", "recall", "ndcg"}


def rmse(sum_of_squares: float, count: float) -> float:
    """Root of the mean squared error; not a number where there is nothing to measure."""
    return math.sqrt(sum_of_squares / count) if count else math.nan


def mean(total: float, count: float) -> float:
    """A mean; not a number where there is nothing to measure."""
    return total / count if count else math.nan


def more_is_better(measure: str) -> bool:
    """Whether a model with more of a measure is the better one.

    >>> more_is_better("ndcg@10"), more_is_better("rmse")
    (True, False)
    """
    return measure.partition("@")[0] in DECIDING_MORE


def from_sums(
    measures: tuple[str, ...], loss: float, squares: float, absolutes: float, right: float, count: float
) -> dict[str, float]:
    """Measures from sums over `count` ratings (or pairs of cells).

    Parameters
    ----------
    measures : of "loss", "log_loss", "deviance", "rmse", "mae", "accuracy", "auc"
    loss, squares, absolutes : of the loss's values, squared and absolute errors of predictions
    right : of right answers, or of pairs in the right order
    """
    found = {
        **dict.fromkeys(("loss", "log_loss"), mean(loss, count)),
        "deviance": 2 * mean(loss, count),
        "rmse": rmse(squares, count),
        "mae": mean(absolutes, count),
        **dict.fromkeys(("accuracy", "auc"), mean(right, count)),
    }
    return {measure: found[measure] for measure in measures}


def chosen(metrics: str | Iterable[str] | None, loss: str) -> tuple[str, ...]:
    """The measures that are asked for, in that order, each once.

    Parameters
    ----------
    metrics : names, or one string with commas between them; None: what suits the loss
    loss : name of the model's loss

    Raises
    ------
    ConfigError
        A name that no measure has.

    >>> chosen("rmse,ndcg@10", "squared"), chosen(None, "poisson")
    (('rmse', 'ndcg@10'), ('deviance', 'rmse', 'mae'))
    """
    if metrics is None:
        return DEFAULTS.get(loss, ("rmse", "mae"))
    names = tuple(dict.fromkeys(map(str.strip, metrics.split(",")) if isinstance(metrics, str) else metrics))
    known = (*PER_RATING, *OVER_PAIRS, *RANKING)
    for name in names or ("",):
        if re.sub(r"@[1-9]\d*$", "@n", str(name)) not in known or str(name).endswith("@n"):
            raise ConfigError(f"metrics: {name!r} is none of {', '.join(known)} (n is a number, as in recall@10)")
    return names


def is_ranking(measure: str) -> bool:
    """Whether it ranks candidate columns, which takes knowing what each row was trained on."""
    return measure == "mpr" or "@" in measure


def label(measure: str) -> str:
    """A measure as people write it.

    >>> label("rmse"), label("row_auc"), label("ndcg@10"), label("recall@5"), label("log_loss")
    ('RMSE', 'row AUC', 'NDCG@10', 'recall@5', 'log loss')
    """
    words = measure.partition("@")[0].split("_")
    shown = " ".join(word.upper() if word in ("rmse", "mae", "auc", "mpr", "ndcg") else word for word in words)
    return shown + measure[len("_".join(words)) :]


def terms(measure: str, ratings: np.ndarray, scores: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """What each rating adds to a measure of `PER_RATING`; `from_mean` takes the measure from their mean.

    Parameters
    ----------
    ratings : float64[count]
        0 and 1 for labels; above zero is positive.
    scores : float64[count]
        Taken for log-odds by the log loss.
    predictions : float64[count]
        On the scale of the ratings; looked at for RMSE, MAE and deviance.

    Returns
    -------
    float64[count]
        Of the deviance infinite, or not a number, where the prediction is no rate or the rating no count.
    """
    if measure == "accuracy":
        return np.asarray((scores > 0) == (ratings > 0), np.float64)
    if measure == "log_loss":
        return np.asarray(np.logaddexp(0, np.where(ratings > 0, -scores, scores)))
    if measure == "deviance":
        with np.errstate(divide="ignore", invalid="ignore"):
            found = 2 * (np.where(ratings > 0, ratings * np.log(ratings / predictions), 0) - ratings + predictions)
        return np.where((ratings < 0) | (predictions < 0), np.nan, found)
    errors = ratings - predictions
    return np.asarray(errors * errors if measure == "rmse" else np.abs(errors))


def from_mean(measure: str, total: float, weight: float) -> float:
    """A measure from a sum of `terms`, or of values of rows, and how many they are (or weigh)."""
    return rmse(total, weight) if measure == "rmse" else mean(total, weight)


def recall(ranks: np.ndarray, n: int) -> float:
    """Share of relevant columns that are among the first n.

    Parameters
    ----------
    ranks : int64[relevant]
        Where the relevant ones stand, from 0; at least one.
    """
    return int(np.count_nonzero(ranks < n)) / len(ranks)


def ndcg(ranks: np.ndarray, n: int) -> float:
    """Normalised discounted cumulative gain of the first n: each relevant column counts 1 / log2(rank + 2).

    Parameters
    ----------
    ranks : int64[relevant]
        As for `recall`.
    """
    gain = math.fsum(1 / math.log2(rank + 2) for rank in ranks[ranks < n].tolist())
    return gain / _ideal_gain(min(n, len(ranks)))


@functools.lru_cache(1024)
def _ideal_gain(count: int) -> float:
    return math.fsum(1 / math.log2(rank + 2) for rank in range(count))
