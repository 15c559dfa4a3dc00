"""Sources → a DuckDB table of their ratings in source order; every error names file and line."""

import bisect
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import duckdb
import numpy as np

from mfpar.errors import RatingsError
from mfpar.parallel.comm import Communicator
from mfpar.ratings.columns import IDS, Wanted
from mfpar.ratings.database import Database, literal
from mfpar.ratings.scans import Scan, open_scans
from mfpar.ratings.sources import expand, name_of

CHUNK = 1 << 20  # ratings handed out at a time
LEAST_CHUNK = 1 << 14  # ratings handed out at a time where memory is short
PER_RATING = 1 << 10  # bytes that may become of a rating that is handed out: ids as Python's strings, factors, text
LONGEST_ID = 1024  # bytes
LARGEST = float(np.finfo(np.float32).max)
TEXT_MET = "an id of a {side} that is no integer"
# isfinite, as DuckDB may take a comparison for settled by a Parquet file's minimum and maximum, which skip NaN.
SOUND = {
    "rating": f"isfinite(rating) AND abs(rating) <= {LARGEST!r}",
    "weight": f"isfinite(weight) AND weight >= 0 AND weight <= {LARGEST!r}",
}
RANGES = {"rating": "a finite number", "weight": "a finite number from 0 up"}


class Ratings:
    """The table `ratings` of a database, filled from sources.

    Its columns are user, item, rating FLOAT, with weights also weight FLOAT, and held BOOLEAN (held out for testing);
    its rowid follows the order of the sources. Ids are BIGINT, several times as fast to group and join, while all of
    their side are integers just as int64 would be printed ('7', '-7'; not '007', '+5', '1.5'); from the first other one
    on they are the VARCHAR that stands for them, so that nothing is lost on the way. Ratings that are not wanted, and
    weights in the held-out part, are 1.

    Parameters
    ----------
    database : Database
    weighted : bool

    Attributes
    ----------
    count : int
        Ratings read so far.
    texts : set[str]
        The sides ("user", "item") whose ids are VARCHAR.
    """

    def __init__(self, database: Database, weighted: bool = False):
        self._database = database
        self._numbers = ("rating", "weight") if weighted else ("rating",)
        self.count = 0
        self.texts: set[str] = set()
        numbers = ", ".join(f"{number} FLOAT" for number in self._numbers)
        database.run(f"CREATE TABLE ratings (user BIGINT, item BIGINT, {numbers}, held BOOLEAN)")

    def read(self, sources: Any, wanted: Wanted, held: str = "false") -> None:
        """Append all ratings of some sources.

        Parameters
        ----------
        sources : path, glob pattern, scipy sparse matrix, pandas or Arrow table, tuple or dict of arrays; or a list
        wanted : Wanted
        held : SQL
            Which of them are held out, an expression over user and item.

        Raises
        ------
        RatingsError
            A source that can't be read as ratings, or holds none.
        StorageError
            A file that can't be opened.
        """
        for source in expand(sources):
            first, ends = self.count, []
            with open_scans(self._database, source, wanted) as scans:
                for scan in scans:
                    self._append(scan, held)
                    ends.append(self.count)
                if self.count == first:
                    raise RatingsError(f"{name_of(source)}: no {'ratings' if wanted.rating else 'pairs'} found")
                self._check(first, scans, ends)
            self._database.keep_books(self.count)

    def agree(self, comm: Communicator) -> None:
        """Make ids VARCHAR here too where another rank has met text; `count` becomes that of all ranks. Collective."""
        met = comm.gather([self.count, sorted(self.texts)])
        total = sum(count for count, _ in met)
        self._database.keep_books(max(self.count, total // comm.size))
        self.count = total
        for side in IDS:
            if side not in self.texts and any(side in texts for _, texts in met):
                self._widen(side)

    def _append(self, scan: Scan, held: str) -> None:
        # Through DOUBLE whatever the source, so that the same number gives the same FLOAT.
        found = [f"{self._id(scan, side)} AS {side}" for side in IDS]
        found += [f"try_cast({scan.columns.get(number, '1')} AS DOUBLE) AS {number}" for number in self._numbers]
        sound = ", ".join(f"CASE WHEN {SOUND[number]} THEN {number} END" for number in self._numbers)
        with scan.reading(self._database):
            try:
                self.count += self._database.scalar(
                    f"INSERT INTO ratings SELECT user, item, {sound}, {held} "
                    f"FROM (SELECT {', '.join(found)} FROM {scan.relation})"
                )
                return
            except duckdb.InvalidInputException as error:
                met = [side for side in IDS if str(error).endswith(TEXT_MET.format(side=side))]
                if not met or met[0] in self.texts:
                    raise
        self._widen(met[0])
        self._append(scan, held)

    def _id(self, scan: Scan, side: str) -> str:
        """SQL of an id, of the type that its column has; fails with TEXT_MET where that is BIGINT and it is not."""
        column = scan.columns[side]
        if side in self.texts:
            return f"CAST({column} AS VARCHAR)"
        if side in scan.integers:
            return column
        number = f"try_cast({column} AS BIGINT)"
        return (
            f"CASE WHEN CAST({number} AS VARCHAR) = {column} THEN {number} "
            f"WHEN {column} IS NOT NULL THEN error({literal(TEXT_MET.format(side=side))}) END"
        )

    def _widen(self, side: str) -> None:
        """Make the ids of a side VARCHAR."""
        self.texts.add(side)
        self._database.run(f"ALTER TABLE ratings ALTER {side} TYPE VARCHAR")

    def _check(self, first: int, scans: Sequence[Scan], ends: Sequence[int]) -> None:
        """Raise the error of the first bad rating from row `first` on."""
        roles = (*IDS, *self._numbers)
        unfit = [f"strlen({side}) > {LONGEST_ID} OR contains({side}, chr(0))" for side in IDS if side in self.texts]
        wrong = " OR ".join([*(f"{role} IS NULL" for role in roles), *unfit])
        bad = self._database.scalar(f"SELECT min(rowid) FROM ratings WHERE rowid >= ? AND ({wrong})", [first])
        if bad is None:
            return
        at = bisect.bisect_right(ends, bad)
        scan, record = scans[at], bad - (ends[at - 1] if at else first)
        read = self._database.run(f"SELECT {', '.join(roles)} FROM ratings WHERE rowid = {bad}")[0]
        with scan.reading(self._database):
            texts = ", ".join(f"CAST({column} AS VARCHAR)" for column in scan.raw.values())
            raw = self._database.run(f"SELECT {texts} FROM {scan.relation} LIMIT 1 OFFSET {record}")[0]
        complaint = _complaint(dict(zip(roles, read, strict=True)), dict(zip(scan.raw, raw, strict=True)))
        raise RatingsError(f"{scan.place(record)}: {complaint}")


def _complaint(read: dict[str, Any], raw: dict[str, str | None]) -> str:
    """What is wrong with a rating, from what was read of it, and from what stands in the source, both by role."""
    for side in IDS:
        value, text = read[side], raw[side]
        if value is None and not text:
            return f"the {side} id is missing"
        if value is None:
            return f"the {side} id {text} is neither a whole number nor a string"
        if isinstance(value, int):
            continue
        if "\0" in value:
            return f"the {side} id {value[:60]!r} contains a NUL character"
        if len(value.encode()) > LONGEST_ID:
            return f"the {side} id {value[:60]!r}… is longer than {LONGEST_ID} bytes"
    number = next(role for role in RANGES if role in read and read[role] is None)
    text = raw[number] or ""
    if not text.strip():
        return f"the {number} is missing or not a number"
    return f"the {number} {text[:60]!r} is not {RANGES[number]} of single precision"


@overload
def read_chunks(
    sources: Any,
    columns: Sequence[str] | None = None,
    need_rating: Literal[True] = True,
    rows: int = CHUNK,
    memory: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]: ...


@overload
def read_chunks(
    sources: Any,
    columns: Sequence[str] | None = None,
    *,
    need_rating: Literal[False],
    rows: int = CHUNK,
    memory: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, None]]: ...


def read_chunks(
    sources: Any,
    columns: Sequence[str] | None = None,
    need_rating: bool = True,
    rows: int = CHUNK,
    memory: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Read sources chunk by chunk, in source order; everything is checked before the first chunk comes.

    Parameters
    ----------
    sources : see `Ratings.read`
    columns : names, or positions from 1 as strings, of user, item and, if needed, rating; None: found by themselves
    need_rating : otherwise two columns do, and ratings are not looked at
    rows : the most a chunk holds
    memory : bytes that the process may take; a quarter of them is left to the caller, for what it makes of a chunk

    Yields
    ------
    users, items : int64[count] where every id of that side is an integer, otherwise str objects [count]
    ratings : float32[count], or None if not needed

    Raises
    ------
    ConfigError, RatingsError, StorageError
        As `Wanted` and `Ratings.read` do.
    """
    if memory is not None:
        rows = min(rows, max(LEAST_CHUNK, memory // 4 // PER_RATING))
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(Database(Path(tempfile.gettempdir()), memory))
        if memory is not None:
            stack.enter_context(database.reserving(memory // 4))
        ratings = Ratings(database)
        ratings.read(sources, Wanted(columns, need_rating))
        for first in range(0, ratings.count, rows):
            chunk = database.arrays(
                "SELECT user, item, rating FROM ratings WHERE rowid >= ? AND rowid < ?", [first, first + rows]
            )
            yield chunk["user"], chunk["item"], chunk["rating"] if need_rating else None
