"""The sorted ratings block by block: fetched from DuckDB, duplicates settled, statistics taken."""

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mfpar.errors import RatingsError
from mfpar.grid import Grid, span
from mfpar.parallel.comm import Communicator, Message
from mfpar.ratings.database import Database
from mfpar.ratings.moving import Rows, move
from mfpar.ratings.reading import LARGEST

BATCH = 1 << 19  # ratings fetched at a time, or one block if that holds more
MANY = 1 << 40  # more ratings than a rank has
EMPTY = (0, 0.0, 0.0, math.inf, -math.inf)  # count, mean, sum of squares about it, minimum and maximum of no ratings
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
    """The ratings of this rank's row-blocks by part, block, local row, local column and source order. Collective.

    Reads the tables `ratings`, `user_places` and `item_places`, which are dropped when the sorted one is made.
    Iterating, which is local, settles duplicates, and notes in the tables `user_dropped` and `item_dropped` how many
    training ratings of which rows and columns (`line`, the number of it) are no more.

    Parameters
    ----------
    database : Database
    grid : Grid
    duplicates : str
        "last" (in source order) or "mean" (weighted; weights are added up); "error" is like "last", for the caller to
        raise when all are counted.
    weighted : bool
        `ratings` has weights.
    comm : Communicator
        Whose ranks have read the sources in their order.

    Attributes
    ----------
    largest : int
        Ratings of the largest block.
    duplicates : int
        Ratings dropped or merged, once iterated over.
    example : tuple[bool, int, int, int, int] or None
        Where the first of them is: part, row-block, column-block, local row, local column.
    """

    def __init__(self, database: Database, grid: Grid, duplicates: str, weighted: bool, comm: Communicator):
        self._database, self._grid, self._size, self._policy = database, grid, grid.size, duplicates
        self._columns = "place, rating, weight" if weighted else "place, rating"
        self.duplicates = 0
        self.example: tuple[bool, int, int, int, int] | None = None
        weight = ", if(held, 1, weight) AS weight" if weighted else ""
        # An unknown id has no block: its rating goes where the other id is at home on the diagonal.
        placed = (
            f"SELECT if(held, {self._size**2}, 0) "
            f"+ coalesce(u.block, i.block, 0) * {self._size} + coalesce(i.block, u.block, 0) AS block, "
            "(CAST(u.local AS UBIGINT) << 32) | CAST(i.local AS UBIGINT) AS place, "
            f"rating{weight}, CAST({comm.rank} AS BIGINT) * {MANY} + ratings.rowid AS position "
            "FROM ratings JOIN user_places AS u ON ratings.user = u.id JOIN item_places AS i ON ratings.item = i.id"
        )
        if comm.size > 1:
            database.run(f"CREATE TABLE placed AS {placed}")
            self._drop_sources()
            kinds = {"block": "BIGINT", "place": "UBIGINT", "rating": "FLOAT"}
            kinds |= ({"weight": "FLOAT"} if weighted else {}) | {"position": "BIGINT"}
            ends = [span(self._size, comm.size, rank)[1] for rank in range(comm.size)]

            def owner(rows: Rows) -> np.ndarray:
                return np.searchsorted(ends, rows["block"] // self._size % self._size, "right")

            move(comm, database, "placed", "arrived", kinds, owner)
            placed = "SELECT * FROM arrived"
        database.run(
            f"CREATE TABLE sorted AS SELECT block, {self._columns} FROM ({placed}) ORDER BY block, place, position"
        )
        if comm.size > 1:
            database.run("DROP TABLE arrived")
        else:
            self._drop_sources()
        for side in ("user", "item"):
            database.run(f"CREATE TABLE {side}_dropped (line BIGINT, ratings BIGINT)")
        counts = database.arrays("SELECT block, count(*) AS ratings FROM sorted GROUP BY block ORDER BY block")
        self._blocks, self._counts = counts["block"], counts["ratings"]
        self.largest = int(self._counts.max(initial=0))

    def _drop_sources(self) -> None:
        for table in ("ratings", "user_places", "item_places"):
            self._database.run(f"DROP TABLE {table}")

    def __iter__(self) -> Iterator[Block]:
        """Every block that holds ratings here, of the training part, then of the test part, in row-major order."""
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
        self._note(
            np.repeat(self._blocks[first : first + len(offsets) - 1], np.diff(offsets))[:-1][again], places[:-1][again]
        )
        kept = np.concatenate((~again, [True]))
        if self._policy == "mean":
            values, weights = _merged(values, weights, np.flatnonzero(kept))
        else:
            values, weights = values[kept], None if weights is None else weights[kept]
        return places[kept], values, weights, np.concatenate(([0], np.cumsum(kept)))[offsets]

    def _note(self, blocks: np.ndarray, places: np.ndarray) -> None:
        """Write down which rows and columns lose how many training ratings."""
        training = blocks < self._size**2
        blocks, inside = blocks[training], _unpacked(places[training])
        for side, cuts, block, local in (
            ("user", self._grid.row_cuts, blocks // self._size, inside[0]),
            ("item", self._grid.col_cuts, blocks % self._size, inside[1]),
        ):
            line, ratings = np.unique(cuts[block] + local, return_counts=True)
            with self._database.registered({"line": line, "ratings": ratings}):
                self._database.run(f"INSERT INTO {side}_dropped SELECT line, ratings FROM given")

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
    """Mean, deviation and range of ratings, added up block by block in a fixed order, whichever ranks have them.

    In float64 and around each block's own mean (Chan, Golub and LeVeque), so that a large mean costs no digits.
    """

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self._blocks = array("d")  # what blocks amount to, until those before them are known
        self._count, self._mean, self._squares, self._minimum, self._maximum = EMPTY

    def add(self, values: np.ndarray) -> None:
        """Take in float32[nnz], nnz > 0, the next block of this rank."""
        exact = values.astype(np.float64)
        mean = float(exact.mean())
        block = (len(exact), mean, float(np.square(exact - mean).sum()), float(exact.min()), float(exact.max()))
        if self._comm.rank == 0:
            self._fold(*block)
        else:
            self._blocks.extend(block)

    def _fold(self, count: float, mean: float, squares: float, minimum: float, maximum: float) -> None:
        total = self._count + int(count)
        gap = mean - self._mean
        self._squares += squares + gap * gap * self._count * int(count) / total
        self._mean += gap * int(count) / total
        self._count = total
        self._minimum, self._maximum = min(self._minimum, minimum), max(self._maximum, maximum)

    def total(self) -> tuple[int, float, float, float, float]:
        """Count, mean, standard deviation, minimum and maximum of all ranks' ratings. Collective."""
        comm = self._comm
        state = np.zeros(len(EMPTY))
        if comm.rank > 0:  # from rank to rank, so that all is added up in the order of blocks
            comm.start([], [Message(state, comm.rank - 1, 0)]).wait()
            self._count, (self._mean, self._squares, self._minimum, self._maximum) = int(state[0]), state[1:].tolist()
            for at in range(0, len(self._blocks), len(EMPTY)):
                self._fold(*self._blocks[at : at + len(EMPTY)])
        state[:] = self._count, self._mean, self._squares, self._minimum, self._maximum
        if comm.rank < comm.size - 1:
            comm.start([Message(state.copy(), comm.rank + 1, 0)], []).wait()
        count, mean, squares, minimum, maximum = comm.gather(state.tolist())[-1]
        return int(count), mean, math.sqrt(squares / count), minimum, maximum
