"""Each source as scans: what DuckDB is to select from it, and how to speak of its records."""

import contextlib
import glob
import gzip
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from mfpar.atomic import storage_errors
from mfpar.errors import RatingsError
from mfpar.ratings.arrays import Columns, from_given, from_matrix, from_mtx, from_npz
from mfpar.ratings.columns import IDS, Wanted, choose_columns
from mfpar.ratings.database import Database, identifier, literal
from mfpar.ratings.sources import damaged_gzip, look_at, name_of
from mfpar.ratings.text import inspect

SLICE = 1 << 20  # rows of arrays handed to DuckDB at a time
WHOLE = {f"{sign}{size}" for sign in ("", "U") for size in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")}
NARROW = WHOLE - {"UBIGINT", "HUGEINT", "UHUGEINT"}  # no number of theirs is too large for BIGINT
FRACTIONAL = {"FLOAT", "DOUBLE"}
STRINGS = {"VARCHAR", "UUID"}


@dataclass(frozen=True)
class Scan:
    """Something that DuckDB reads in one statement: a file, a table, a slice of arrays.

    Attributes
    ----------
    relation : SQL after FROM
    columns : SQL of the wanted columns by role: ids as VARCHAR or BIGINT, numbers of a type that casts to DOUBLE
    integers : the roles of those that are ids as BIGINT
    raw : SQL of the same as they stand there
    table : object that is registered as `given` while it is read, or None
    place : record (from 0) → where it is, for messages
    explain : DuckDB's message → one sentence
    """

    relation: str
    columns: dict[str, str]
    integers: set[str]
    raw: dict[str, str]
    table: Any
    place: Callable[[int], str]
    explain: Callable[[str], str]

    @contextlib.contextmanager
    def reading(self, database: Database) -> Iterator[None]:
        """Have the table registered, and DuckDB's complaints about the source turned into ours."""
        with _explained(self.explain), database.registered(self.table):
            yield


@contextlib.contextmanager
def open_scans(database: Database, source: Any, wanted: Wanted) -> Iterator[list[Scan]]:
    """The scans of one source, in order; what they need is there inside the context.

    Parameters
    ----------
    source : Path, scipy sparse matrix, pandas or Arrow table, tuple or dict of arrays
    wanted : Wanted

    Raises
    ------
    RatingsError
        It is nothing that can be read as ratings.
    StorageError
        The file can't be opened, or not be unpacked.
    ConfigError
        Its arrays do not fit the memory.
    """
    name = name_of(source)
    if not isinstance(source, Path):
        if hasattr(source, "tocoo"):
            yield _slices(database, from_matrix(source, wanted, name), name)
        elif isinstance(source, (tuple, dict)):
            yield _slices(database, from_given(source, wanted), name)
        elif hasattr(source, "columns") or hasattr(source, "schema"):
            yield [_table(database, "given", source, wanted, name)]
        else:
            raise RatingsError(
                f"a source of type {type(source).__name__} can't be read as ratings; "
                "give a path, a scipy sparse matrix, a pandas or Arrow table, or three arrays"
            )
        return
    kind, gzipped, head = look_at(source)
    if kind == "text":
        text = inspect(source, gzipped, head, wanted)
        raw = {role: f"c{position}" for role, position in text.columns.items()}
        # A column by itself would be cast where DuckDB parses, which stops at bad numbers and miscounts the lines.
        columns = {role: column if role in IDS else f"nullif({column}, '')" for role, column in raw.items()}
        yield [Scan(text.relation, columns, set(), raw, None, text.place, text.explain)]
    elif kind == "parquet":
        with _unpacked(source, gzipped, database.folder) as plain:
            relation = f"read_parquet({literal(glob.escape(str(plain)))})"
            yield [_table(database, relation, None, wanted, name)]
    elif kind in ("mtx", "npz"):
        arrays = from_mtx(source, gzipped, wanted) if kind == "mtx" else from_npz(source, wanted)
        with database.reserving(sum(array.nbytes for array in arrays.values())):
            yield _slices(database, arrays, name)
    else:
        raise RatingsError(f"{source}: is an HDF5 file, not a source of ratings; has it been converted already?")


def _slices(database: Database, arrays: Columns, name: str) -> list[Scan]:
    """Arrays by role, cut so that DuckDB's copy of them stays small."""
    wanted = Wanted(
        [role for role in arrays if role != "weight"], "rating" in arrays, "weight" if "weight" in arrays else None
    )
    scans = []
    for first in range(0, len(arrays["user"]), SLICE):
        part = {role: array[first : first + SLICE] for role, array in arrays.items()}
        scans.append(_table(database, "given", part, wanted, name, first))
    return scans


def _table(database: Database, relation: str, table: Any, wanted: Wanted, name: str, before: int = 0) -> Scan:
    """A relation whose columns have names and types; `before` records of the source precede it."""

    def explain(message: str) -> str:
        return f"{name}: is damaged, truncated or of a kind that can't be read: {message.splitlines()[0]}"

    with _explained(explain), database.registered(table):
        described = database.run(f"DESCRIBE FROM {relation}")
    names, kinds = [row[0] for row in described], [row[1] for row in described]
    numeric = len(kinds) > 2 and (kinds[2] in WHOLE | FRACTIONAL or kinds[2].startswith("DECIMAL"))
    chosen = choose_columns(names, len(names), numeric, wanted, name)
    columns = {
        role: _id(names[position], kinds[position], name)
        if role in IDS
        else _number(names[position], kinds[position], name, f"{role}s")
        for role, position in chosen.items()
    }
    integers = {role for role in IDS if kinds[chosen[role]] in NARROW | FRACTIONAL}
    raw = {role: identifier(names[position]) for role, position in chosen.items()}
    return Scan(relation, columns, integers, raw, table, lambda record: f"{name}, row {before + record + 1}", explain)


def _id(column: str, kind: str, name: str) -> str:
    """SQL of an id, BIGINT or VARCHAR: NULL where it is missing, or neither a whole number nor a string."""
    sql = identifier(column)
    if kind in FRACTIONAL:  # whole numbers among which some are missing often come as floats
        whole = f"isfinite({sql}) AND {sql} = trunc({sql}) AND abs({sql}) < 2 ** 53"
        return f"CASE WHEN {whole} THEN CAST({sql} AS BIGINT) END"
    if kind in NARROW:
        return f"CAST({sql} AS BIGINT)"
    if kind in WHOLE | STRINGS or kind.startswith("ENUM"):
        return f"nullif(CAST({sql} AS VARCHAR), '')"
    raise RatingsError(f"{name}: the column {column!r} has the type {kind}; ids are integers or strings")


def _number(column: str, kind: str, name: str, what: str) -> str:
    if kind in WHOLE | FRACTIONAL | {"BOOLEAN"} or kind.startswith("DECIMAL"):
        return identifier(column)
    if kind == "VARCHAR" or kind.startswith("ENUM"):
        return f"CAST({identifier(column)} AS VARCHAR)"
    raise RatingsError(f"{name}: the column {column!r} has the type {kind}; {what} are numbers")


@contextlib.contextmanager
def _unpacked(path: Path, gzipped: bool, folder: Path) -> Iterator[Path]:
    """A gzipped Parquet file, which can't be read from its start to its end, in plain for a while."""
    if not gzipped:
        yield path
        return
    plain = folder / "unpacked.parquet"
    try:
        with gzip.open(path) as packed, storage_errors(plain), open(plain, "wb") as file:
            try:
                shutil.copyfileobj(packed, file, 1 << 20)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise damaged_gzip(path) from error
        yield plain
    finally:
        plain.unlink(missing_ok=True)


@contextlib.contextmanager
def _explained(explain: Callable[[str], str]) -> Iterator[None]:
    try:
        yield
    except (duckdb.Error, RuntimeError) as error:
        raise RatingsError(explain(str(error) or repr(error))) from error
