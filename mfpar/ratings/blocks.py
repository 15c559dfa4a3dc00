"""The sorted ratings block by block: fetched from DuckDB, duplicates settled, statistics taken."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mfpar.errors import RatingsError
from mfpar.ratings.database import Database
from mfpar.ratings.reading import LARGEST

BATCH = 1 << 19  # ratings fetched at a time, or one block if that holds more
RATING_BYTES = 104  # of a batch, at most (with weights), from fetching to writing


@dataclass(frozen=True)
class Block:
    """Ratings of one block of one part, sorted by row, then column.

    Attributes
    ----------
    held : bool
        Of the test part.
    i, j : int
        Row-block and column-block.
    rows, cols : int64[nnz]
        Local indices, or UNKNOWN and more (see `mfpar.ratings.ordering`).
    values : float32[nnz]
    weights : float32[nnz] or None
        None where the ratings have none; all 1 in the test part.
    """

    held: bool
    i: int
    j: int
    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray
    weights: np.ndarray | None


class SortedRatings:
    """All ratings by part, block, local row, local column and source order; iterating settles duplicates.

    Reads the tables `ratings`, `user_places` and `item_places`, which are dropped when the sorted one is made.

    Parameters
    ----------
    database : Database
    size : int
        G, blocks a side.
    duplicates : str
        "last" (in source order) or "mean" (weighted; weights are added up); "error" is like "last", for the caller to
        raise when all are counted.
    weighted : bool
        `ratings` has weights.

    Attributes
    ----------
    largest : int
        Ratings of the largest block.
    duplicates : int
        Ratings dropped or merged, once iterated over.
    example : tuple[bool, int, int, int, int] or None
        Where the first of them is: part, row-block, column-block, local row, local column.
    """

    def __init__(self, database: Database, size: int, duplicates: str, weighted: bool = False):
        self._database, self._size, self._policy = database, size, duplicates
        self._columns = "place, rating, weight" if weighted else "place, rating"
        weight = "if(held, 1, weight)" if weighted else "1"
        self.duplicates = 0
        self.example: tuple[bool, int, int, int, int] | None = None
        # An unknown id has no block: its rating goes where the other id is at home on the diagonal.
        database.run(
            f"CREATE TABLE sorted AS SELECT block, {self._columns} FROM (SELECT if(held, $blocks, 0) "
            "+ coalesce(u.block, i.block, 0) * $size + coalesce(i.block, u.block, 0) AS block, "
            "(CAST(u.local AS UBIGINT) << 32) | CAST(i.local AS UBIGINT) AS place, "
            f"rating, {weight} AS weight, ratings.rowid AS position "
            "FROM ratings JOIN user_places AS u ON ratings.user = u.id JOIN item_places AS i ON ratings.item = i.id) "
            "ORDER BY block, place, position",
            {"size": size, "blocks": size**2},
        )
        for table in ("ratings", "user_places", "item_places"):
            database.run(f"DROP TABLE {table}")
        counts = database.arrays("SELECT block, count(*) AS ratings FROM sorted GROUP BY block ORDER BY block")
        self._blocks, self._counts = counts["block"], counts["ratings"]
        self.largest = int(self._counts.max())

    def __iter__(self) -> Iterator[Block]:
        """Every block that holds ratings, first of the training part, then of the test part, in row-major order."""
        ends = np.cumsum(self._counts)
        first = 0
        while first < len(ends):
            begin = int(ends[first] - self._counts[first])
            last = max(first + 1, int(np.searchsorted(ends, begin + BATCH, "right")))
            fetched = self._database.arrays(
                f"SELECT {self._columns} FROM sorted WHERE rowid >= ? AND rowid < ?", [begin, int(ends[last - 1])]
            )
            offsets = np.concatenate(([0], ends[first:last] - begin))
            places, values, weights, offsets = self._settled(
                first, fetched["place"], fetched["rating"], fetched.get("weight"), offsets
            )
            for at in range(last - first):
                inside = slice(offsets[at], offsets[at + 1])
                rows, cols = _unpacked(places[inside])
                weighed = None if weights is None else weights[inside]
                yield Block(*self._coordinates(first + at), rows, cols, values[inside], weighed)
            first = last

    def _settled(
        self, first: int, places: np.ndarray, values: np.ndarray, weights: np.ndarray | None, offsets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
        """A batch without its duplicates: places, values, weights, and where each block now begins."""
        again = places[1:] == places[:-1]
        again[offsets[1:-1] - 1] = False  # the next block
        if not again.any():
            return places, values, weights, offsets
        if self.example is None:
            at = int(np.argmax(again))
            row, col = _unpacked(places[at : at + 1])
            block = first + int(np.searchsorted(offsets, at, "right")) - 1
            self.example = (*self._coordinates(block), int(row[0]), int(col[0]))
        self.duplicates += int(again.sum())
        kept = np.concatenate((~again, [True]))
        if self._policy == "mean":
            values, weights = _merged(values, weights, np.flatnonzero(kept))
        else:
            values, weights = values[kept], None if weights is None else weights[kept]
        return places[kept], values, weights, np.concatenate(([0], np.cumsum(kept)))[offsets]

    def _coordinates(self, at: int) -> tuple[bool, int, int]:
        held, block = divmod(int(self._blocks[at]), self._size**2)
        return bool(held), *divmod(block, self._size)


def _merged(values: np.ndarray, weights: np.ndarray | None, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The weighted mean of each run of ratings, and the sum of its weights; `ends` is where each run has its last."""
    begins = np.concatenate(([0], ends[:-1] + 1))
    exact = np.ones(len(values)) if weights is None else weights.astype(np.float64)
    totals = np.add.reduceat(exact, begins)
    if totals.max() > LARGEST:
        raise RatingsError("the weights of a user's ratings of one item add up to more than single precision holds")
    merged = None if weights is None else totals.astype(np.float32)
    lengths = ends + 1 - begins
    exact[np.repeat(totals == 0, lengths)] = 1  # nothing to tell them apart by
    totals[totals == 0] = lengths[totals == 0]
    exact *= values
    return (np.add.reduceat(exact, begins) / totals).astype(np.float32), merged


def _unpacked(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (places >> np.uint64(32)).astype(np.int64), (places & np.uint64(0xFFFFFFFF)).astype(np.int64)


class Statistics:
    """Mean, deviation and range of ratings, added up block by block in a fixed order.

    In float64 and around each block's own mean (Chan, Golub and LeVeque), so that a large mean costs no digits.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self._squares = 0.0
        self.minimum, self.maximum = math.inf, -math.inf

    def add(self, values: np.ndarray) -> None:
        """Take in float32[nnz], nnz > 0."""
        exact = values.astype(np.float64)
        mean = float(exact.mean())
        total = self.count + len(exact)
        gap = mean - self.mean
        self._squares += float(np.square(exact - mean).sum()) + gap * gap * self.count * len(exact) / total
        self.mean += gap * len(exact) / total
        self.count = total
        self.minimum, self.maximum = min(self.minimum, float(exact.min())), max(self.maximum, float(exact.max()))

    @property
    def deviation(self) -> float:
        """Standard deviation of all that were added."""
        return math.sqrt(self._squares / self.count)
