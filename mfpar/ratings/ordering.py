"""The order of rows and columns, their blocks, and the order of ratings inside a block.

Ranks share out the ids by their place in the order, which is a hash: what a rank has of them is a run of rows that no
other rank has to be asked about, and as long as the others' runs.
"""

from dataclasses import dataclass

import numpy as np

from mfpar.errors import ConfigError
from mfpar.grid import nearest_cuts, settled_cuts
from mfpar.kernels.spread import spread_kernel
from mfpar.parallel.comm import Communicator
from mfpar.ratings.database import Database
from mfpar.ratings.moving import MOST, move

UNKNOWN = 1 << 31  # local index from which on an id is one that only the test part has


@dataclass(frozen=True)
class Line:
    """The rows (columns) in order, and what this rank has of them.

    That is a run of those with training ratings, and one of those that only the test part has, which follow all others.

    Attributes
    ----------
    first, known : number of the first row of this rank's run, and how many it has
    stranger, unknown : the same of the run of unknown ids
    count : rows of all ranks, unknown ids left aside
    before, ratings : training ratings of all rows before this rank's, and of all rows
    """

    first: int
    known: int
    stranger: int
    unknown: int
    count: int
    before: int
    ratings: int

    @property
    def number(self) -> str:
        """SQL of the number of a row of the table `users` (`items`), from its rowid."""
        return f"rowid + if(rowid < {self.known}, {self.first}, {self.stranger - self.known})"


def number(database: Database, side: str, seed: int, comm: Communicator) -> Line:
    """Make the tables `users` (or `items`) and `user_numbers`. Collective.

    In `users` every id occurs on one rank, with its training ratings; its rowid follows the order. Ids with training
    ratings come first, by the lower half of the MD5 of "seed:side:id" (as DuckDB's `md5_number_lower` gives it: bytes
    8 … 15, little-endian), ties by id; those that only the test part has follow in the same order. In `user_numbers` is
    every id that this rank's ratings have, with its number in that order.

    Parameters
    ----------
    side : "user" or "item"
    """
    kind = id_type(database, side)
    key = f"md5_number_lower('{seed}:{side}:' || id)"
    counted = f"SELECT {side} AS id, count(*) FILTER (NOT held) AS ratings FROM ratings GROUP BY {side}"
    if comm.size > 1:
        share = -(-(2**64) // comm.size)
        columns = {"id": kind, "ratings": "BIGINT", "asker": "BIGINT", "keeper": "BIGINT"}
        database.run(
            f"CREATE TABLE counted AS SELECT id, ratings, {comm.rank} AS asker, "
            f"CAST({key} // {share} AS BIGINT) AS keeper "
            f"FROM ({counted})"
        )
        move(comm, database, "counted", "asked", columns, lambda rows: rows["keeper"])
        counted = "SELECT id, CAST(sum(ratings) AS BIGINT) AS ratings FROM asked GROUP BY id"
    database.run(
        f"CREATE TABLE {side}s AS SELECT id, ratings FROM ({counted}) ORDER BY ratings = 0, {key}, CAST(id AS VARCHAR)"
    )
    line = _line(database, side, comm)
    numbered = f"SELECT id, {line.number} AS number FROM {side}s"
    if comm.size == 1:
        database.run(f"CREATE VIEW {side}_numbers AS {numbered}")
        return line
    database.run(f"CREATE TABLE answers AS SELECT id, number, asker FROM asked JOIN ({numbered}) USING (id)")
    database.run("DROP TABLE asked")
    columns = {"id": kind, "number": "BIGINT", "asker": "BIGINT"}
    move(comm, database, "answers", f"{side}_numbers", columns, lambda rows: rows["asker"])
    return line


def _line(database: Database, side: str, comm: Communicator) -> Line:
    sql = f"SELECT count(*) FILTER (ratings > 0), count(*), CAST(coalesce(sum(ratings), 0) AS BIGINT) FROM {side}s"
    known, both, ratings = database.run(sql)[0]
    shares = np.array(comm.gather([known, both - known, ratings]), np.int64)
    (count, _, total), (first, strangers, before) = shares.sum(0).tolist(), shares[: comm.rank].sum(0).tolist()
    return Line(first, known, count + strangers, both - known, count, before, total)


def cuts(database: Database, side: str, line: Line, size: int, comm: Communicator) -> np.ndarray:
    """int64[size + 1]: the cuts of `mfpar.grid.balanced_cuts`, found by all ranks together. Collective."""
    mine: list[int] = []
    before = line.before
    for first in range(0, line.known, MOST):
        last = min(first + MOST, line.known)
        sql = f"SELECT ratings FROM {side}s WHERE rowid >= ? AND rowid < ?"
        counts = database.arrays(sql, [first, last])["ratings"]
        mine += nearest_cuts(counts, line.first + first, before, line.ratings, size).tolist()
        before += int(counts.sum())
    return settled_cuts(np.array([cut for cuts in comm.gather(mine) for cut in cuts]), line.count, size)


def place(database: Database, side: str, cuts: np.ndarray, comm: Communicator) -> None:
    """Make the table `user_places` or `item_places`: id, block (NULL if unknown) and local index of this rank's ids.

    Raises
    ------
    ConfigError
        More ids in a block, or unknown ones, than local indices of 32 bits can tell apart.
    """
    longest = int(np.diff(cuts).max())
    unknown = int(database.scalar(f"SELECT coalesce(max(number), 0) FROM {side}_numbers")) + 1 - int(cuts[-1])
    if longest > UNKNOWN:
        raise ConfigError(
            f"grid={len(cuts) - 1} is too coarse: a block would hold {longest} {side} ids, and can hold {UNKNOWN}; "
            "take more blocks a side"
        )
    if unknown > UNKNOWN:
        raise ConfigError(
            f"{unknown} {side} ids have held-out ratings only, more than the {UNKNOWN} that can be told apart; "
            "hold out fewer"
        )
    database.run(
        f"CREATE TABLE {side}_places AS "
        f"SELECT id, cuts.block AS block, if(cuts.block IS NULL, {UNKNOWN}, 0) + ids.number - cuts.begin AS local "
        f"FROM {side}_numbers AS ids "
        "ASOF JOIN (SELECT unnest(?::BIGINT[]) AS begin, unnest(?::BIGINT[]) AS block) AS cuts "
        "ON ids.number >= cuts.begin",
        [cuts.tolist(), [*range(len(cuts) - 1), None]],
    )
    database.run(f"DROP {'VIEW' if comm.size == 1 else 'TABLE'} {side}_numbers")


def id_type(database: Database, side: str) -> str:
    """The type of a side's ids: "BIGINT" or "VARCHAR"; on all ranks the same."""
    return str(
        database.run("SELECT data_type FROM duckdb_columns() WHERE table_name = 'ratings' AND column_name = ?", [side])[
            0
        ][0]
    )


def spread(rows: np.ndarray, cols: np.ndarray, held: bool = False) -> np.ndarray:
    """int64[count]: an order of a block's ratings, given by row, in which neighbours share neither row nor column.

    Neighbours that do make each update wait for the one before; see `mfpar.kernels.spread`. Held-out ratings, which no
    update visits, stay as they are.

    >>> spread(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 2, 0, 1, 0]))
    array([0, 4, 5, 1, 2, 3])
    """
    order = np.arange(len(rows))
    if not held:
        runs = (np.full(int(side.max(initial=-1)) + 1, -1) for side in (rows, cols))
        spread_kernel()(rows, cols, *runs, order)
    return order
