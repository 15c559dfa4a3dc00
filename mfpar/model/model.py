"""A trained model: predictions, recommendations and measures of fit, from mapped files, in bounded memory."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mfpar.blockfile import BlockedFile, digest
from mfpar.errors import ConfigError, FormatError, UnknownIdError
from mfpar.grid import Grid
from mfpar.model.aligned import Aligned
from mfpar.model.evaluation import Scores, Tally
from mfpar.model.table import Ids, Table, as_ids
from mfpar.model.topk import best, scores

WORKING = 1 << 24  # bytes of factors gathered at a time
USERS = 1024  # that share one scan of Q


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A model as it lies in its files; opened by `mfpar.model.opening.open_model`. Local: never collective.

    `users` are ids of rows, `items` ids of columns, as they stood in the ratings. A prediction is mean + row bias +
    column bias + P[row]·Q[column]; an unknown id contributes nothing, so that the mean and the known bias remain.
    """

    path: Path
    P: Table  # float32[m, factors]
    Q: Table  # float32[n, factors]
    row_bias: Table  # float32[m]; zeros where the model has no biases
    col_bias: Table  # float32[n]
    row_ids: Ids  # of P[i] and row_bias[i]
    col_ids: Ids
    grid: Grid
    row_checksums: np.ndarray  # uint8[G, 32], see `verify`
    col_checksums: np.ndarray
    factors: int
    biases: bool
    mean: float  # of the training ratings
    minimum: float
    maximum: float
    ratings: int  # how many it was trained on
    config: dict[str, Any]  # {"model": {...}, "train": {...}}
    curve: list[dict[str, Any]]  # one entry an epoch
    fingerprint: str
    data_checksum: str  # of the blocked file that it was trained on
    data_path: Path  # where that lay
    versions: dict[str, str]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, (m, n)."""
        return len(self.row_ids), len(self.col_ids)

    def __repr__(self) -> str:
        return f"<mfpar model {self.path}: {self.shape[0]} × {self.shape[1]}, {self.factors} factors>"

    def predict(self, users: Any, items: Any) -> np.ndarray:
        """Predict the rating of each user for the item beside it.

        Parameters
        ----------
        users, items : one id, or a sequence, array or column of ids
            As many of either, or one that goes with all of the other.

        Returns
        -------
        float32[count]

        Raises
        ------
        ConfigError
            The numbers of users and items differ, or they are neither integers nor strings.
        """
        return self.predict_known(users, items)[0]

    def predict_known(self, users: Any, items: Any) -> tuple[np.ndarray, np.ndarray]:
        """As `predict`, and bool[count]: where the user or the item is unknown."""
        users, items = as_ids(users), as_ids(items)
        if len(users) != len(items) and 1 not in (len(users), len(items)):
            raise ConfigError(f"{len(users)} users and {len(items)} items: expected as many of one as of the other")
        users, items = np.broadcast_arrays(users, items)
        predictions, unknown = np.empty(len(users), np.float32), np.empty(len(users), bool)
        for some in self._portions(len(users)):
            rows, cols = self.row_ids.find(users[some]), self.col_ids.find(items[some])
            predictions[some], unknown[some] = self._predict_at(rows, cols), (rows < 0) | (cols < 0)
        return predictions, unknown

    def recommend(self, user: Any, n: int = 10, seen: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Find the items with the highest predictions.

        Parameters
        ----------
        user : one id, or a sequence, array or column of ids
        n : int
            How many items; the number of columns at most.
        seen : path or ids, optional
            What to leave out: what each user has rated in the training part of this blocked file, or these items.

        Returns
        -------
        items, scores
            For one id int64[≤ n] (or str) and float32[≤ n]: by descending score, ties in the order of the columns.
            For several, arrays [users, n]: where fewer items remain, a row ends in scores of NaN, items of −1 (or "").

        Raises
        ------
        UnknownIdError
            A user without ratings in the training data.
        ConfigError
            n < 1, or ids that are neither integers nor strings.
        StorageError, FormatError
            `seen` is no blocked file.
        """
        if n < 1:
            raise ConfigError(f"n={n}: expected a number of recommendations ≥ 1")
        users = as_ids(user)
        rows = self.row_ids.find(users)
        if (rows < 0).any():
            stranger = users[np.argmax(rows < 0)].item()
            raise UnknownIdError(
                f"{self.path}: does not know user {stranger!r}; recommendations need ratings in the training data"
            )
        columns = np.empty((len(users), min(n, len(self.col_ids))), np.int64)
        values = np.empty(columns.shape, np.float32)
        order = np.argsort(rows, kind="stable")  # so that users of one row-block follow each other
        with self._left_out(seen) as left_out:
            for first in range(0, len(order), USERS):
                some = order[first : first + USERS]
                p, bias = self.P.take(rows[some]), self.row_bias.take(rows[some])
                columns[some], values[some] = best(
                    p, bias, self.Q, self.col_bias, self.mean, columns.shape[1], left_out(rows[some])
                )
        items = self.col_ids.take(np.maximum(columns, 0).ravel()).reshape(columns.shape)
        items[columns < 0] = "" if self.col_ids.text else -1
        if np.ndim(user):
            return items, values
        return items[columns >= 0], values[columns >= 0]

    @contextlib.contextmanager
    def _left_out(self, seen: Any) -> Iterator[Callable[[np.ndarray], list[np.ndarray]]]:
        """Yield a function from rows to the columns that each of them shall not be recommended."""
        if isinstance(seen, str | Path):
            with BlockedFile(seen) as file:
                yield self._aligned(file).seen
        else:
            columns = np.empty(0, np.int64) if seen is None else self.col_ids.find(as_ids(seen))
            yield lambda rows: [columns] * len(rows)

    def evaluate(self, ratings: Any = None, columns: Any = None) -> Scores:
        """Measure the fit to held-out ratings, in bounded memory.

        Parameters
        ----------
        ratings : path of a blocked file, or any source that `mfpar.convert` takes; optional
            Of a blocked file the held-out part counts; by default that of the file which the model was trained on,
            looked for where it lay then and beside the model.
        columns : optional
            Names of the source's columns of users, items and ratings, as for `mfpar.convert`.

        Raises
        ------
        ConfigError
            There are no (held-out) ratings, or the file that the model was trained on is not found.
        RatingsError, FormatError, StorageError
            The source can't be read.
        """
        if ratings is None:
            ratings = self._training_file()
        if isinstance(ratings, str | Path) and h5py.is_hdf5(ratings):
            return self._evaluate_blocked(Path(ratings))
        # Here, not above: reading ratings brings DuckDB, which predictions do without.
        from mfpar.ratings.reading import read_chunks

        return self._evaluate_triples(read_chunks(ratings, columns))

    def rmse(self, *ratings: Any, columns: Any = None) -> float:
        """Root of the mean squared error: ``evaluate(...).rmse``, or of three arrays users, items, ratings."""
        if len(ratings) <= 1:
            return self.evaluate(ratings[0] if ratings else None, columns).rmse
        lengths = [np.size(array) for array in ratings]
        if len(lengths) != 3 or len(set(lengths)) != 1:
            raise ConfigError(f"arrays of {lengths} elements: expected users, items and ratings, as many of each")
        values = np.atleast_1d(np.asarray(ratings[2]))
        return self._evaluate_triples(iter([(as_ids(ratings[0]), as_ids(ratings[1]), values)])).rmse

    def _evaluate_triples(self, chunks: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Scores:
        tally = Tally()
        for users, items, values in chunks:
            for some in self._portions(len(values)):
                tally.add(*self.predict_known(users[some], items[some]), values[some])
        return tally.scores()

    def _evaluate_blocked(self, path: Path) -> Scores:
        tally = Tally()
        with BlockedFile(path) as file:
            if not file.header.test_ratings:
                raise ConfigError(
                    f"{path}: has no held-out ratings; convert it with --test or --test-fraction, or name other ratings"
                )
            aligned = self._aligned(file)
            for i in range(file.grid.size):
                rows, cols, values = aligned.ratings("test", i)
                for some in self._portions(len(values)):
                    unknown = (rows[some] < 0) | (cols[some] < 0)
                    tally.add(self._predict_at(rows[some], cols[some]), unknown, values[some])
        return tally.scores()

    def _training_file(self) -> Path:
        for path in (self.data_path, self.path.parent / self.data_path.name):
            if path.is_file():
                with BlockedFile(path) as file:
                    if file.checksum == self.data_checksum:
                        return path
        raise ConfigError(
            f"{self.path}: the file that it was trained on is found neither at {self.data_path} nor beside the model; "
            "name the ratings to evaluate on"
        )

    def verify(self) -> None:
        """Read the whole model and compare it with its checksums, and these with its fingerprint.

        Raises
        ------
        FormatError
            A block of factors and biases is not what was saved.
        """
        sums = self.row_checksums.tobytes() + self.col_checksums.tobytes()
        if hashlib.sha256(sums).hexdigest() != self.fingerprint:
            raise FormatError(f"{self.path}: is damaged: its checksums do not match its fingerprint; train again")
        sides = {
            "row": (self.grid.row_cuts, self.P, self.row_bias, self.row_checksums),
            "column": (self.grid.col_cuts, self.Q, self.col_bias, self.col_checksums),
        }
        for side, (cuts, factors, bias, checksums) in sides.items():
            for block, stored in enumerate(checksums):
                first, last = cuts[block], cuts[block + 1]
                if not np.array_equal(digest(factors.read(first, last), bias.read(first, last)), stored):
                    raise FormatError(f"{self.path}: is damaged in {side}-block {block}; train again")

    def _aligned(self, file: BlockedFile) -> Aligned:
        return Aligned(file, self.row_ids, self.col_ids, file.checksum == self.data_checksum)

    def _portions(self, count: int) -> Iterator[slice]:
        """`count` pairs in portions whose factors fit the working memory."""
        pairs = max(1, WORKING // (8 * self.factors))
        return (slice(first, min(first + pairs, count)) for first in range(0, count, pairs))

    def _predict_at(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """float32[count]: predictions for int64[count] rows and columns, −1 for the unknown."""
        offsets = _gather(self.row_bias, rows).astype(np.float64) + _gather(self.col_bias, cols)
        return scores(_gather(self.P, rows), _gather(self.Q, cols), offsets, self.mean)


def _gather(table: Table, indices: np.ndarray) -> np.ndarray:
    """Rows of a table, zeros where the index is −1."""
    known = indices >= 0
    if known.all():
        return table.take(indices)
    gathered = np.zeros((len(indices), *table.shape[1:]), table.dtype)
    gathered[known] = table.take(indices[known])
    return gathered
