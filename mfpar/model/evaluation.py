"""How well a model fits held-out ratings: sums of row-blocks in float64, added in their order on any ranks."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mfpar.blockfile import BlockedFile
from mfpar.errors import ConfigError
from mfpar.grid import span
from mfpar.losses import BUILTIN
from mfpar.metrics import PER_RATING, chosen, from_mean, is_ranking, terms
from mfpar.model.auc import auc
from mfpar.model.rowwise import Sums, explicit_auc, rank
from mfpar.model.scorer import Scorer
from mfpar.parallel.comm import Communicator, Serial


@dataclass(frozen=True)
class Scores:
    """Fit of a model to ratings that it has not been trained on."""

    measures: dict[str, float]  # in the order asked; not a number where there was nothing to measure
    count: int  # ratings, the unknown ones included
    unknown: int  # those whose row or column id the model does not know: the base and the known bias score them

    @property
    def rmse(self) -> float:
        """Root of the mean squared error; not a number where it was not asked for."""
        return self.measures.get("rmse", math.nan)

    @property
    def mae(self) -> float:
        """Mean absolute error; not a number where it was not asked for."""
        return self.measures.get("mae", math.nan)


def evaluate(
    scorer: Scorer,
    ratings: Any,
    columns: Any,
    metrics: str | Iterable[str] | None,
    relevant: float | None,
    memory: int | None,
    comm: Communicator,
) -> Scores:
    """See `mfpar.model.model.Model.evaluate`. Collective."""
    measures = chosen(metrics, scorer.loss)
    if ratings is None:
        ratings = _training_file(scorer)
    if isinstance(ratings, str | Path) and Path(ratings).is_file() and h5py.is_hdf5(ratings):
        return _evaluate_blocked(scorer, Path(ratings), measures, relevant, memory, comm)
    # Here, not above: reading ratings brings DuckDB, which predictions do without.
    from mfpar.ratings.reading import read_chunks

    return evaluate_triples(scorer, read_chunks(ratings, columns, memory=memory), measures, memory)


def evaluate_triples(
    scorer: Scorer,
    chunks: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]],
    measures: tuple[str, ...],
    memory: int | None = None,
) -> Scores:
    """Measure the fit to chunks of users, items and ratings. Local.

    Measures over pairs keep 24 bytes of each rating.

    Raises
    ------
    ConfigError
        There are no ratings, or a measure asks what each row was trained on.
    """
    ranking = [measure for measure in measures if is_ranking(measure)]
    if ranking:
        raise ConfigError(f"{', '.join(ranking)}: {_NEEDS_BLOCKED}")
    parts: list[Sums] = []
    kept: list[tuple[np.ndarray, ...]] = []
    for users, items, values in chunks:
        rows, cols = scorer.row_ids.find(users, _for_ids(memory)), scorer.col_ids.find(items, _for_ids(memory))
        scores = scorer.score_at(rows, cols)
        parts.append(_sums(scorer, measures, rows, cols, values, scores))
        if "auc" in measures or "row_auc" in measures:
            kept.append((rows, cols, values, scores))
    totals = _added(parts)
    found: dict[str, float] = {}
    if kept:
        rows, cols, values, scores = (np.concatenate(arrays) for arrays in zip(*kept, strict=True))
        positive = values > 0
        if "auc" in measures:
            found["auc"] = auc(scores[positive], scores[~positive], Serial())
        if "row_auc" in measures and positive.all():
            raise ConfigError(f"row_auc of ratings that are all above zero: {_NEEDS_BLOCKED}")
        if "row_auc" in measures:
            totals["row_auc"] = explicit_auc(scorer, rows, cols, values)
    return _scores(measures, totals, found)


_NEEDS_BLOCKED = (
    "columns that a row has no rating of are told by a blocked file only, whose training part says what it has; "
    "evaluate on one (mfpar convert --test), or choose other metrics"
)


def _evaluate_blocked(
    scorer: Scorer,
    path: Path,
    measures: tuple[str, ...],
    relevant: float | None,
    memory: int | None,
    comm: Communicator,
) -> Scores:
    """Measure the fit to the held-out part of a blocked file, each rank that of its own row-blocks. Collective."""
    with BlockedFile(path) as file:
        if not file.header.test_ratings:
            raise ConfigError(
                f"{path}: has no held-out ratings; convert it with --test or --test-fraction, or name other ratings"
            )
        aligned = scorer.aligned(file, _for_ids(memory))
        mine = range(*span(file.grid.size, comm.size, comm.rank))
        parts: list[Sums] = []
        positives, negatives = ([np.empty(0, np.float32)] for _ in range(2))
        negative = False
        for i in mine:
            rows, cols, values = aligned.ratings("test", i)
            scores = scorer.score_at(rows, cols)
            parts.append(_sums(scorer, measures, rows, cols, values, scores))
            negative |= bool((values <= 0).any())
            if "auc" in measures:
                positives.append(scores[values > 0])
                negatives.append(scores[values <= 0])
        ranked = [measure for measure in measures if is_ranking(measure)]
        explicit = any(comm.gather(negative)) and "row_auc" in measures
        if "row_auc" in measures and not explicit:
            ranked.append("row_auc")
        for part, i in zip(parts, mine, strict=True):
            if explicit:
                part["row_auc"] = explicit_auc(scorer, *aligned.ratings("test", i))
            if ranked:
                part |= rank(scorer, ranked, relevant, *aligned.ratings("test", i), aligned.seen)
    totals = _added(itertools.chain(*comm.gather(parts)))
    found = {"auc": auc(np.concatenate(positives), np.concatenate(negatives), comm)} if "auc" in measures else {}
    return _scores(measures, totals, found)


def _for_ids(memory: int | None) -> int | None:
    """What of a rank's memory sorted ids of a side may take."""
    return None if memory is None else memory // 8


def _sums(
    scorer: Scorer,
    measures: tuple[str, ...],
    rows: np.ndarray,
    cols: np.ndarray,
    ratings: np.ndarray,
    scores: np.ndarray,
) -> Sums:
    """Sums of the measures that are means over ratings; under "unknown" the number of the unknown, and of all."""
    wanted = [measure for measure in measures if measure in PER_RATING]
    targets = ratings.astype(np.float64)
    if scorer.loss in BUILTIN and BUILTIN[scorer.loss].ratings == "binary":
        targets = (ratings > 0).astype(np.float64)  # −1 and 1 are labels as much as 0 and 1
    # Where no measure looks at predictions, a link that is not there is not missed.
    looked_at = {"rmse", "mae", "deviance"} & set(wanted)
    predictions = (scorer.predictions(scores) if looked_at else scores).astype(np.float64)
    found = {m: float(terms(m, targets, scores.astype(np.float64), predictions).sum()) for m in wanted}
    unknown = int(np.count_nonzero((rows < 0) | (cols < 0)))
    return {name: (total, len(ratings)) for name, total in {**found, "unknown": unknown}.items()}


def _added(parts: Iterable[Sums]) -> Sums:
    """Exact sums over parts, in whatever order."""
    columns: dict[str, list[tuple[float, float]]] = {}
    for part in parts:
        for name, sums in part.items():
            columns.setdefault(name, []).append(sums)
    return {
        name: (math.fsum(total for total, _ in sums), math.fsum(weight for _, weight in sums))
        for name, sums in columns.items()
    }


def _scores(measures: tuple[str, ...], totals: Sums, found: dict[str, float]) -> Scores:
    unknown, count = totals.get("unknown", (0, 0))
    if not count:
        raise ConfigError("there are no ratings to evaluate on; name a source that has some")
    taken = {name: from_mean(name, *sums) for name, sums in totals.items()} | found
    return Scores({measure: taken[measure] for measure in measures}, int(count), int(unknown))


def _training_file(scorer: Scorer) -> Path:
    """The file that a model was trained on, where it lay then or beside the model."""
    for path in (scorer.data_path, scorer.path.parent / scorer.data_path.name):
        if path.is_file():
            with BlockedFile(path) as file:
                if file.checksum == scorer.data_checksum:
                    return path
    raise ConfigError(
        f"{scorer.path}: the file that it was trained on is found neither at {scorer.data_path} nor beside the model; "
        "name the ratings to evaluate on"
    )
