"""Measures that are means over rows: AUC inside each, and how early its held-out columns would be recommended."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mfpar import metrics
from mfpar.model.auc import wins
from mfpar.model.ranking import Standing, standings
from mfpar.model.scorer import USERS, Scorer

Sums = dict[str, tuple[float, float]]  # by measure: a total, and the weight by which it is to be divided


def explicit_auc(scorer: Scorer, rows: np.ndarray, cols: np.ndarray, ratings: np.ndarray) -> tuple[float, float]:
    """AUC of each row between its held-out positives and negatives: the sum, and over how many rows that have both.

    Parameters
    ----------
    rows, cols : int64[count]
        All held-out ratings of every row that occurs; those of unknown rows and columns do not count.
    ratings : float[count]
        Above zero is positive.
    """
    found = []
    for _, _, scores, values in _by_row(scorer, rows, cols, ratings):
        positives, negatives = scores[values > 0], np.sort(scores[values <= 0])
        pairs = len(positives) * len(negatives)
        if pairs:
            found.append(wins(positives, negatives) / (2 * pairs))
    return math.fsum(found), len(found)


def rank(
    scorer: Scorer,
    measures: Sequence[str],
    relevant: float | None,
    rows: np.ndarray,
    cols: np.ndarray,
    ratings: np.ndarray,
    seen: Callable[[np.ndarray], list[np.ndarray]],
) -> Sums:
    """Sums of measures that rank a row's candidates: all columns but those that it was trained on.

    Parameters
    ----------
    measures : of "mpr", "recall@n", "ndcg@n" and "row_auc"
        The last of ratings that are all above zero, against the columns that the row has no rating of.
    relevant : float or None
        The least rating that recall and NDCG look for; None: any above zero.
    rows, cols, ratings : as for `explicit_auc`
    seen : function of int64[:] rows
        The columns that each was trained on, −1 where the model does not know them.
    """
    found: dict[str, list[tuple[float, float]]] = {measure: [] for measure in measures}
    for group in _groups(_by_row(scorer, rows, cols, ratings)):
        some = np.array([row for row, *_ in group])
        trained = [np.unique(columns) for columns in seen(some)]
        # Of what was trained on nothing can be found again: such a held-out column is no candidate.
        fresh = [~np.isin(columns, out) for (_, columns, _, _), out in zip(group, trained, strict=True)]
        some_have = [u for u, kept in enumerate(fresh) if kept.any()]
        held = [(group[u][1][fresh[u]], group[u][2][fresh[u]]) for u in some_have]
        standing = standings(scorer, some[some_have], held, [trained[u] for u in some_have])
        for u, (_, scores), its in zip(some_have, held, standing, strict=True):
            for measure in measures:
                value = _of_row(measure, relevant, scores, group[u][3][fresh[u]], its)
                found[measure] += [value] if value else []
    return {
        measure: (math.fsum(total for total, _ in values), math.fsum(weight for _, weight in values))
        for measure, values in found.items()
    }


def _of_row(
    measure: str, relevant: float | None, scores: np.ndarray, ratings: np.ndarray, standing: Standing
) -> tuple[float, float] | None:
    """What a row adds to a measure, and its weight; None where the row has nothing to measure."""
    if measure == "row_auc":
        others = standing.candidates - len(scores)  # columns that the row has no rating of
        # Held-out ones beat half of each other, and of themselves: 2 · ½ · count².
        beaten = int(standing.wins.sum()) - len(scores) ** 2
        return (beaten / (2 * len(scores) * others), 1) if others else None
    ranks = standing.ranks
    if measure == "mpr":
        positive = ratings > 0
        weights = ratings[positive].astype(np.float64)
        weighed = weights * (ranks[positive] / max(1, standing.candidates - 1))
        return math.fsum(weighed.tolist()), math.fsum(weights.tolist())
    ranks = ranks[ratings > 0 if relevant is None else ratings >= relevant]
    name, _, n = measure.partition("@")
    return ({"recall": metrics.recall, "ndcg": metrics.ndcg}[name](ranks, int(n)), 1) if len(ranks) else None


Row = tuple[int, np.ndarray, np.ndarray, np.ndarray]  # row, and its held-out columns, their scores and ratings


def _by_row(scorer: Scorer, rows: np.ndarray, cols: np.ndarray, ratings: np.ndarray) -> Iterator[Row]:
    """The known held-out ratings row by row, each row's in column order."""
    order = np.lexsort((cols, rows))
    order = order[(rows[order] >= 0) & (cols[order] >= 0)]
    rows, cols, ratings = rows[order], cols[order], ratings[order]
    scores = scorer.score_at(rows, cols)
    distinct, starts = np.unique(rows, return_index=True)
    for row, first, last in zip(distinct.tolist(), starts, np.append(starts[1:], len(rows)), strict=True):
        yield row, cols[first:last], scores[first:last], ratings[first:last]


def _groups(rows: Iterator[Row]) -> Iterator[list[Row]]:
    group: list[Row] = []
    for row in rows:
        group.append(row)
        if len(group) == USERS:
            yield group
            group = []
    if group:
        yield group
