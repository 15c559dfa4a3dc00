"""The order of rows and columns, their blocks, and the order of ratings inside a block."""

import numpy as np

from mfpar.errors import ConfigError
from mfpar.kernels.spread import spread_kernel
from mfpar.ratings.database import Database

CHUNK = 1 << 18  # ids fetched at a time
UNKNOWN = 1 << 31  # local index from which on an id is one that only the test part has


def number(database: Database, side: str, seed: int) -> np.ndarray:
    """Make the table `users` or `items`: every id once, its rowid its place in the order; return the counts.

    Ids with training ratings come first, by the lower half of the MD5 of "seed:side:id" (as DuckDB's `md5_number_lower`
    gives it: bytes 8 … 15, little-endian), ties by id; those that only the test part has follow in the same order.

    Parameters
    ----------
    side : "user" or "item"

    Returns
    -------
    int64[m]
        Training ratings of each row (column), in order; duplicates counted as often as they occur.
    """
    database.run(
        f"CREATE TABLE {side}s AS SELECT id, ratings FROM "
        f"(SELECT {side} AS id, count(*) FILTER (NOT held) AS ratings FROM ratings GROUP BY {side}) "
        f"ORDER BY ratings = 0, md5_number_lower('{seed}:{side}:' || id), CAST(id AS VARCHAR)"
    )
    return database.arrays(f"SELECT ratings FROM {side}s WHERE ratings > 0 ORDER BY rowid")["ratings"]


def place(database: Database, side: str, cuts: np.ndarray) -> None:
    """Make the table `user_places` or `item_places`: id, block (NULL if unknown) and local index of every id.

    Raises
    ------
    ConfigError
        More ids in a block, or unknown ones, than local indices of 32 bits can tell apart.
    """
    longest, unknown = int(np.diff(cuts).max()), int(database.scalar(f"SELECT count(*) FROM {side}s")) - int(cuts[-1])
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
        f"SELECT id, cuts.block AS block, if(cuts.block IS NULL, {UNKNOWN}, 0) + ids.rowid - cuts.begin AS local "
        f"FROM {side}s AS ids ASOF JOIN (SELECT unnest(?::BIGINT[]) AS begin, unnest(?::BIGINT[]) AS block) AS cuts "
        "ON ids.rowid >= cuts.begin",
        [cuts.tolist(), [*range(len(cuts) - 1), None]],
    )


def id_size(database: Database, side: str) -> int:
    """Bytes of an id in a file: 0 for int64, otherwise the length of the longest string."""
    if database.scalar(f"SELECT typeof(id) FROM {side}s LIMIT 1") == "BIGINT":
        return 0
    return int(database.scalar(f"SELECT max(strlen(id)) FROM {side}s WHERE ratings > 0"))


def ids(database: Database, side: str, count: int, size: int) -> np.ndarray:
    """The first `count` ids of a side in order: int64[count] if `size` is 0, or bytes[count] (UTF-8, `size` long)."""
    result = np.empty(count, f"S{size}" if size else np.int64)
    sql = f"SELECT id FROM {side}s WHERE rowid >= ? AND rowid < ?"
    for first in range(0, count, CHUNK):
        last = min(first + CHUNK, count)
        chunk = database.arrays(sql, [first, last])["id"]
        result[first:last] = [text.encode() for text in chunk] if size else chunk
    return result


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
