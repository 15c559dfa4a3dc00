"""A trained model: predictions, recommendations and measures of fit, from mapped files, in bounded memory."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mfpar.blockfile import BlockedFile, digest
from mfpar.errors import ConfigError, FormatError, UnknownIdError
from mfpar.grid import Grid
from mfpar.model import evaluation
from mfpar.model.evaluation import Scores
from mfpar.model.everyone import recommend_all
from mfpar.model.scorer import USERS, Scorer
from mfpar.model.table import as_ids
from mfpar.model.topk import best
from mfpar.parallel.comm import Communicator, Serial


@dataclass(frozen=True, eq=False, repr=False)
class Model(Scorer):
    """A model as it lies in its files; opened by `mfpar.model.opening.open_model`. Local, but for `evaluate`.

    `users` are ids of rows, `items` ids of columns, as they stood in the ratings. An unknown id gets what the base and
    the other one's bias predict.
    """

    grid: Grid
    row_checksums: np.ndarray  # uint8[G, 32], see `verify`
    col_checksums: np.ndarray
    row_id_checksums: np.ndarray
    col_id_checksums: np.ndarray
    biases: bool
    link: str  # "identity", "sigmoid", "exp", or "custom": what makes predictions of scores
    mean: float  # of the training ratings
    ratings: int  # how many it was trained on
    config: dict[str, Any]  # {"model": {...}, "train": {...}}
    curve: list[dict[str, Any]]  # one entry an epoch
    fingerprint: str
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

    def predict_known(self, users: Any, items: Any, memory: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As `predict`, and bool[count]: where the user or the item is unknown.

        `memory`: bytes that sorted ids of a side may take, see `Ids.find`.
        """
        users, items = as_ids(users), as_ids(items)
        if len(users) != len(items) and 1 not in (len(users), len(items)):
            raise ConfigError(f"{len(users)} users and {len(items)} items: expected as many of one as of the other")
        users, items = np.broadcast_arrays(users, items)
        rows, cols = self.row_ids.find(users, memory), self.col_ids.find(items, memory)
        return self.predictions(self.score_at(rows, cols)), (rows < 0) | (cols < 0)

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
                    p, bias, self.Q, self.col_bias, self.base, columns.shape[1], left_out(rows[some])
                )
        values = self.natural(values.ravel()).reshape(values.shape)
        items = self.col_ids.take(np.maximum(columns, 0).ravel()).reshape(columns.shape)
        items[columns < 0] = "" if self.col_ids.text else -1
        if np.ndim(user):
            return items, values
        return items[columns >= 0], values[columns >= 0]

    def recommend_all(
        self,
        output: str | Path,
        n: int = 10,
        seen: str | Path | None = None,
        *,
        memory: int | None = None,
        force: bool = False,
        comm: Communicator | None = None,
    ) -> int:
        """Write what `recommend` finds for every user into a file. Collective if `comm` is given, within its guard.

        Each rank takes its own row-blocks, and none holds P or Q whole; the file is the same on any number of ranks.

        Parameters
        ----------
        output : path, ending in .parquet or .csv
            A row for each recommendation: user, place (from 1), item, score; users in the order of the model, each
            one's items by place. A user with fewer items left than `n` has fewer rows. With ranks on several nodes it
            must be on a file system that they share.
        n : int
            How many items.
        seen : path of a blocked file, optional
            Leave out what each user has rated in its training part.
        memory : int, optional
            Bytes that each rank may take, by default 512 MB.
        force : bool
            Overwrite `output`.
        comm : Communicator, optional

        Returns
        -------
        int
            Rows written.

        Raises
        ------
        ConfigError
            n < 1, another ending of `output`, or too little memory.
        OutputExistsError
            `output` exists and `force` is not set, or it is the model or `seen`.
        StorageError, FormatError
            The output can't be written, or `seen` is no blocked file.
        """
        seen = None if seen is None else Path(seen)
        return recommend_all(self, self.grid, Path(output), n, seen, memory, force, comm or Serial())

    @contextlib.contextmanager
    def _left_out(self, seen: Any) -> Iterator[Callable[[np.ndarray], list[np.ndarray]]]:
        """Yield a function from rows to the columns that each of them shall not be recommended."""
        if isinstance(seen, str | Path):
            with BlockedFile(seen) as file:
                yield self.aligned(file).seen
        else:
            columns = np.empty(0, np.int64) if seen is None else self.col_ids.find(as_ids(seen))
            yield lambda rows: [columns] * len(rows)

    def evaluate(
        self,
        ratings: Any = None,
        columns: Any = None,
        *,
        metrics: str | Iterable[str] | None = None,
        relevant: float | None = None,
        memory: int | None = None,
        comm: Communicator | None = None,
    ) -> Scores:
        """Measure the fit to held-out ratings. Collective if `comm` is given, in whose guard it is to be called.

        Each rank scores its own row-blocks of a blocked file, and none holds P or Q whole; the figures are the same,
        bit for bit, on any number of ranks. Any other source is read, and scored, by every rank for itself.

        Parameters
        ----------
        ratings : path of a blocked file, or any source that `mfpar.convert` takes; optional
            Of a blocked file the held-out part counts; by default that of the file which the model was trained on,
            looked for where it lay then and beside the model.
        columns : optional
            Names of the source's columns of users, items and ratings, as for `mfpar.convert`.
        metrics : names, or one string with commas between them; by default what suits the loss
            Over ratings, the unknown with what is known of them: rmse, mae (of predictions; for a loss of labels these
            are 0 and 1), log_loss, accuracy (of scores: is the score above zero where the rating is, at a positive?),
            deviance (mean Poisson deviance, of predictions).
            Over pairs: auc (how probably a random positive scores higher than a random negative), row_auc (its mean
            over rows that have both; where no negative is held out, against columns that the row has no rating of).
            Of known held-out columns among all that the row was not trained on, ties in column order: mpr (mean
            percentile rank of positives, weighted by rating, from 0 to 1; Hu, Koren, Volinsky 2008), and recall@n,
            ndcg@n (means over rows with something relevant to find).
        relevant : float, optional
            The least rating that recall@n and ndcg@n look for; by default any above zero.
        memory : int, optional
            Bytes that each rank may take: whether ids are sorted or gone through, and how much of a source is read at a
            time. By default ids are sorted, and DuckDB may take half of the machine's.
        comm : Communicator, optional

        Raises
        ------
        ConfigError
            There are no (held-out) ratings, or the file that the model was trained on is not found; an unknown measure,
            or one that takes a blocked file.
        RatingsError, FormatError, StorageError
            The source can't be read.
        """
        return evaluation.evaluate(self, ratings, columns, metrics, relevant, memory, comm or Serial())

    def rmse(self, *ratings: Any, columns: Any = None) -> float:
        """Root of the mean squared error: ``evaluate(...).rmse``, or of three arrays users, items, ratings."""
        if len(ratings) <= 1:
            return self.evaluate(ratings[0] if ratings else None, columns, metrics="rmse").rmse
        lengths = [np.size(array) for array in ratings]
        if len(lengths) != 3 or len(set(lengths)) != 1:
            raise ConfigError(f"arrays of {lengths} elements: expected users, items and ratings, as many of each")
        values = np.atleast_1d(np.asarray(ratings[2]))
        chunk = as_ids(ratings[0]), as_ids(ratings[1]), values
        return evaluation.evaluate_triples(self, iter([chunk]), ("rmse",)).rmse

    def verify(self) -> None:
        """Read the whole model and compare it with its checksums, and these with its fingerprint.

        Raises
        ------
        FormatError
            A block of factors and biases, or its ids, are not what was saved.
        """
        sums = self.row_checksums.tobytes() + self.col_checksums.tobytes()
        if hashlib.sha256(sums).hexdigest() != self.fingerprint:
            raise FormatError(f"{self.path}: is damaged: its checksums do not match its fingerprint; train again")
        sides = {
            "row": (self.grid.row_cuts, self.P, self.row_bias, self.row_checksums, self.row_ids, self.row_id_checksums),
            "column": (
                self.grid.col_cuts,
                self.Q,
                self.col_bias,
                self.col_checksums,
                self.col_ids,
                self.col_id_checksums,
            ),
        }
        for side, (cuts, factors, bias, checksums, ids, id_checksums) in sides.items():
            for block, stored in enumerate(checksums):
                first, last = int(cuts[block]), int(cuts[block + 1])
                if not np.array_equal(digest(factors.read(first, last), bias.read(first, last)), stored):
                    raise FormatError(f"{self.path}: is damaged in {side}-block {block}; train again")
                if not np.array_equal(ids.digest(first, last), id_checksums[block]):
                    raise FormatError(f"{self.path}: is damaged in the ids of {side}-block {block}; train again")
                factors.release(first, last)
                bias.release(first, last)
