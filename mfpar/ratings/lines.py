"""The tables of rows and columns as the file has them: ids, their ascending order, and what they are rated."""

from collections.abc import Callable, Iterator

import numpy as np

from mfpar.grid import span
from mfpar.parallel.comm import Communicator
from mfpar.ratings.database import Database
from mfpar.ratings.moving import STRING, Rows, batch, move
from mfpar.ratings.ordering import Line

SAMPLE = 4096  # ids by which ranks share out all ids


class Lines:
    """One side of the file, the rows (columns) of this rank's row-blocks (column-blocks). Collective.

    Iterating gives them in order, a piece of a block at a time: the block, ids (int64[count], or bytes[count] in
    UTF-8), positions int64[count] of all ids in ascending order of id, and ratings int64[count].

    Parameters
    ----------
    database : Database
        With the table `users` (`items`), see `mfpar.ratings.ordering.number`, and that of ratings that were dropped,
        see `mfpar.ratings.blocks.SortedRatings`, which is dropped.
    side : "user" or "item"
    kind : type of its ids, "BIGINT" or "VARCHAR"
    line : Line
    cuts : int64[G + 1]
    comm : Communicator
    """

    def __init__(self, database: Database, side: str, kind: str, line: Line, cuts: np.ndarray, comm: Communicator):
        self._database, self._side, self._cuts = database, side, cuts
        spans = [span(len(cuts) - 1, comm.size, rank) for rank in range(comm.size)]
        self._first, self._last = spans[comm.rank]
        self._table = f"{side}s"
        known = f"FROM {side}s WHERE rowid < {line.known}"
        longest = 0 if kind == "BIGINT" else database.scalar(f"SELECT coalesce(max(strlen(id)), 0) {known}")
        self._size = max(comm.gather(longest))
        ends = cuts[[last for _, last in spans]]

        def keeper(lines: np.ndarray) -> np.ndarray:
            return np.searchsorted(ends, lines, "right")

        if comm.size > 1:
            columns = {"id": kind, "ratings": "BIGINT", "number": "BIGINT"}
            database.run(f"CREATE TABLE sent AS SELECT id, ratings, {line.number} AS number {known}")
            move(comm, database, "sent", "arrived", columns, lambda rows: keeper(rows["number"]))
            self._table = f"{side}_lines"
            database.run(f"CREATE TABLE {self._table} AS SELECT id, ratings FROM arrived ORDER BY number")
            database.run("DROP TABLE arrived")
        columns = {"id": kind, "number": "BIGINT"}
        database.run(f"CREATE TABLE sent AS SELECT id, {line.number} AS number {known}")
        move(comm, database, "sent", "arrived", columns, self._among(comm, kind, known))
        database.run("CREATE TABLE ascending AS SELECT number FROM arrived ORDER BY id")
        database.run("DROP TABLE arrived")
        before = sum(comm.gather(database.scalar("SELECT count(*) FROM ascending"))[: comm.rank])
        columns = {"position": "BIGINT", "number": "BIGINT"}
        database.run(f"CREATE TABLE sent AS SELECT {before} + rowid AS position, number FROM ascending")
        database.run("DROP TABLE ascending")
        move(comm, database, "sent", "arrived", columns, lambda rows: keeper(rows["position"]))
        database.run(f"CREATE TABLE {side}_order AS SELECT number FROM arrived ORDER BY position")
        database.run("DROP TABLE arrived")
        columns = {"line": "BIGINT", "ratings": "BIGINT"}
        move(comm, database, f"{side}_dropped", "arrived", columns, lambda rows: keeper(rows["line"]))
        database.run(
            f"CREATE TABLE {side}_less AS "
            "SELECT line, CAST(sum(ratings) AS BIGINT) AS ratings FROM arrived GROUP BY line ORDER BY line"
        )
        database.run("DROP TABLE arrived")

    def _among(self, comm: Communicator, kind: str, known: str) -> Callable[[Rows], np.ndarray]:
        """Where to send ids so that each rank gets its share of them in ascending order; the share is about equal."""
        # They lie by their hash: the first of a rank are as good as any.
        some = [row[0] for row in self._database.run(f"SELECT id {known} AND rowid < {max(8, SAMPLE // comm.size)}")]
        sample = sorted(id for ids in comm.gather(some) for id in ids)
        bounds = [sample[rank * len(sample) // comm.size] for rank in range(1, comm.size)]
        splitters = np.array(bounds, object if kind == "VARCHAR" else np.int64)
        return lambda rows: np.searchsorted(splitters, rows["id"], "right")

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """See the class. Local."""
        base, rows = int(self._cuts[self._first]), batch(3 * self._size + STRING)
        for block in range(self._first, self._last):
            for first in range(int(self._cuts[block]), int(self._cuts[block + 1]), rows):
                last = min(first + rows, int(self._cuts[block + 1]))
                inside = [first - base, last - base]
                found = self._fetched(f"id, ratings FROM {self._table}", "rowid", inside)
                order = self._fetched(f"number FROM {self._side}_order", "rowid", inside)["number"]
                less = self._fetched(f"line, ratings FROM {self._side}_less", "line", [first, last])
                ids, counts = found["id"], found["ratings"]
                counts[less["line"] - first] -= less["ratings"]
                if self._size:
                    ids = np.array([text.encode() for text in ids], f"S{self._size}")
                yield block, ids, order, counts

    def _fetched(self, what: str, by: str, bounds: list[int]) -> Rows:
        return self._database.arrays(f"SELECT {what} WHERE {by} >= ? AND {by} < ?", bounds)


def name_of(database: Database, side: str, line: Line, number: int, comm: Communicator) -> str:
    """The id with a number, an unknown one too. Collective."""
    at = None
    if line.first <= number < line.first + line.known:
        at = number - line.first
    elif line.stranger <= number < line.stranger + line.unknown:
        at = number - line.stranger + line.known
    found = None
    if at is not None:
        found = database.scalar(f"SELECT CAST(id AS VARCHAR) FROM {side}s WHERE rowid = ?", [at])
    return next(str(name) for name in comm.gather(found) if name is not None)
