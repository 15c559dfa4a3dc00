"""Rows of tables on their way from the databases of some ranks to those of others."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mfpar.parallel.comm import Communicator
from mfpar.parallel.exchange import exchange
from mfpar.ratings.database import Database

BUDGET = 16 << 20  # bytes of rows that a rank fetches, packs and sends at a time
MOST, LEAST = 1 << 18, 1 << 10  # rows at a time
STRING = 96  # bytes that a string takes in Python beside its letters, in all copies
TYPES: dict[str, Any] = {"BIGINT": np.int64, "UBIGINT": np.uint64, "FLOAT": np.float32, "VARCHAR": None}

Rows = dict[str, np.ndarray]


def batch(width: int) -> int:
    """How many rows to fetch at a time if each takes so many bytes."""
    return min(MOST, max(LEAST, BUDGET // width))


def move(
    comm: Communicator,
    database: Database,
    source: str,
    target: str,
    columns: dict[str, str],
    destination: Callable[[Rows], np.ndarray],
) -> None:
    """Send every row of a table to a rank, which appends it to a new table; the old one is dropped. Collective.

    One rank has its rows where they belong: there the table just gets another name. In which order rows arrive is left
    open.

    Parameters
    ----------
    source, target : names of the two tables
    columns : their columns by name: "BIGINT", "UBIGINT", "FLOAT" or "VARCHAR" (without NUL characters); none is NULL
    destination : rows, arrays by column → the rank of each, integer[count]
    """
    if comm.size == 1:
        database.run(f"ALTER TABLE {source} RENAME TO {target}")
        return
    database.run(f"CREATE TABLE {target} ({', '.join(f'{name} {kind}' for name, kind in columns.items())})")
    arrived, waiting = [], 0
    for rows in _fetched(comm, database, source, columns):
        to = destination(rows)
        order = np.argsort(to, kind="stable")
        ends = np.cumsum(np.bincount(to, minlength=comm.size))
        sorted_rows = {name: array[order] for name, array in rows.items()}
        parcels = [
            _packed({name: array[begin:end] for name, array in sorted_rows.items()}, columns)
            for begin, end in zip(np.concatenate(([0], ends[:-1])), ends, strict=True)
        ]
        for parcel in exchange(comm, parcels):
            arrived.append(_unpacked(parcel, columns))
            waiting += len(parcel)
            if waiting >= BUDGET:
                _append(database, target, arrived)
                arrived, waiting = [], 0
    _append(database, target, arrived)
    database.run(f"DROP TABLE {source}")


def _fetched(comm: Communicator, database: Database, source: str, columns: dict[str, str]) -> Iterator[Rows]:
    """All rows batch by batch, as many batches on every rank, so that some may be empty. Collective."""
    texts = [name for name, kind in columns.items() if kind == "VARCHAR"]
    longest = ", ".join(["count(*)", *(f"max(strlen({name}))" for name in texts)])
    count, *lengths = database.run(f"SELECT {longest} FROM {source}")[0]
    size = batch(16 * len(columns) + sum(STRING + 3 * (length or 0) for length in lengths))
    sql = f"SELECT {', '.join(columns)} FROM {source} WHERE rowid >= ? AND rowid < ?"
    for at in range(max(comm.gather(-(-count // size)))):
        rows = database.arrays(sql, [at * size, (at + 1) * size])
        yield {name: rows[name] for name in columns}


def _packed(rows: Rows, columns: dict[str, str]) -> np.ndarray:
    """Rows as bytes: the length of every column, then one column after the other, strings with NUL between them."""
    parts = [
        "\0".join(rows[name]).encode() if kind == "VARCHAR" else np.ascontiguousarray(rows[name], TYPES[kind]).tobytes()
        for name, kind in columns.items()
    ]
    count = len(next(iter(rows.values())))
    lengths = np.array([count, *map(len, parts)], np.int64).tobytes()
    return np.frombuffer(b"".join((lengths, *parts)), np.uint8)


def _unpacked(parcel: np.ndarray, columns: dict[str, str]) -> Rows:
    head = 8 * (1 + len(columns))
    count, *lengths = parcel[:head].view(np.int64).tolist()
    ends = head + np.cumsum(lengths)
    rows = {}
    for (name, kind), length, end in zip(columns.items(), lengths, ends, strict=True):
        data = parcel[end - length : end].tobytes()
        if kind == "VARCHAR":
            rows[name] = np.array(data.decode().split("\0") if count else [], object)
        else:
            rows[name] = np.frombuffer(data, TYPES[kind])
    return rows


def _append(database: Database, target: str, pieces: list[Rows]) -> None:
    if not sum(len(next(iter(piece.values()))) for piece in pieces):
        return
    rows = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    with database.registered(rows):
        database.run(f"INSERT INTO {target} SELECT {', '.join(rows)} FROM given")
