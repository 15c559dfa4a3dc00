"""Sources → a DuckDB table of user, item and rating in source order; every error names file and line."""

import bisect
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from mfpar.errors import RatingsError
from mfpar.ratings.columns import check_columns
from mfpar.ratings.database import Database
from mfpar.ratings.scans import Scan, open_scans
from mfpar.ratings.sources import expand, name_of

CHUNK = 1 << 20  # ratings handed out at a time
LONGEST_ID = 1024  # bytes
LARGEST = float(np.finfo(np.float32).max)
WRONG = {side: f"strlen({side}) > {LONGEST_ID} OR contains({side}, chr(0))" for side in ("user", "item")}


class Ratings:
    """The table `ratings` of a database, filled from sources.

    Its columns are user VARCHAR, item VARCHAR, rating FLOAT and held BOOLEAN (held out for testing); its rowid follows
    the order of the sources. Every id is the text that stands for it, so that nothing is lost on the way.

    Parameters
    ----------
    database : Database
    columns : Sequence[str] or None
        As asked for by the user; see `mfpar.ratings.columns.choose_columns`.
    need_rating : bool
        Otherwise every rating is taken as 0.

    Attributes
    ----------
    count : int
        Ratings read so far.

    Raises
    ------
    ConfigError
        `columns` can't be what is meant.
    """

    def __init__(self, database: Database, columns: Sequence[str] | None = None, need_rating: bool = True):
        check_columns(columns, need_rating)
        self._database, self._columns, self._need_rating = database, columns, need_rating
        self.count = 0
        database.run("CREATE TABLE ratings (user VARCHAR, item VARCHAR, rating FLOAT, held BOOLEAN)")

    def read(self, sources: Any, held: str = "false") -> None:
        """Append all ratings of some sources.

        Parameters
        ----------
        sources : path, glob pattern, scipy sparse matrix, pandas or Arrow table, tuple or dict of arrays; or a list
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
            with open_scans(self._database, source, self._columns, self._need_rating) as scans:
                for scan in scans:
                    self._append(scan, held)
                    ends.append(self.count)
                if self.count == first:
                    raise RatingsError(f"{name_of(source)}: no {'ratings' if self._need_rating else 'pairs'} found")
                self._check(first, scans, ends)

    def _append(self, scan: Scan, held: str) -> None:
        # Through DOUBLE whatever the source, so that the same number gives the same FLOAT.
        # isfinite, as DuckDB may take a comparison for settled by a Parquet file's minimum and maximum, which skip NaN.
        finite = f"CASE WHEN isfinite(rating) AND abs(rating) <= {LARGEST!r} THEN rating END"
        select = f"SELECT {scan.user} AS user, {scan.item} AS item, try_cast({scan.rating} AS DOUBLE) AS rating"
        with scan.reading(self._database):
            self.count += self._database.scalar(
                f"INSERT INTO ratings SELECT user, item, {finite}, {held} FROM ({select} FROM {scan.relation})"
            )

    def _check(self, first: int, scans: Sequence[Scan], ends: Sequence[int]) -> None:
        """Raise the error of the first bad rating from row `first` on."""
        bad = self._database.scalar(
            "SELECT min(rowid) FROM ratings WHERE rowid >= ? AND "
            f"(user IS NULL OR item IS NULL OR rating IS NULL OR {WRONG['user']} OR {WRONG['item']})",
            [first],
        )
        if bad is None:
            return
        at = bisect.bisect_right(ends, bad)
        scan, record = scans[at], bad - (ends[at - 1] if at else first)
        ids = self._database.run(f"SELECT user, item FROM ratings WHERE rowid = {bad}")[0]
        with scan.reading(self._database):
            texts = ", ".join(f"CAST({column} AS VARCHAR)" for column in scan.raw)
            raw = self._database.run(f"SELECT {texts} FROM {scan.relation} LIMIT 1 OFFSET {record}")[0]
        raise RatingsError(f"{scan.place(record)}: {_complaint(ids, raw)}")


def _complaint(ids: tuple[str | None, ...], raw: tuple[str | None, ...]) -> str:
    """What is wrong with a rating, from its ids as they were read, and all of it as it stands in the source."""
    for side, value, text in zip(("user", "item"), ids, raw, strict=False):
        if value is None and not text:
            return f"the {side} id is missing"
        if value is None:
            return f"the {side} id {text} is neither a whole number nor a string"
        if "\0" in value:
            return f"the {side} id {value[:60]!r} contains a NUL character"
        if len(value.encode()) > LONGEST_ID:
            return f"the {side} id {value[:60]!r}… is longer than {LONGEST_ID} bytes"
    rating = raw[2] or ""
    if not rating.strip():
        return "the rating is missing or not a number"
    return f"the rating {rating[:60]!r} is not a finite number of single precision"


def are_integers(column: str) -> str:
    """SQL: every text of a column is an integer just as int64 would be printed ('7', '-7'; not '007', '+5', '1.5')."""
    return f"bool_and(CAST(try_cast({column} AS BIGINT) AS VARCHAR) IS NOT DISTINCT FROM {column})"


@overload
def read_chunks(
    sources: Any, columns: Sequence[str] | None = None, need_rating: Literal[True] = True, rows: int = CHUNK
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]: ...


@overload
def read_chunks(
    sources: Any, columns: Sequence[str] | None = None, *, need_rating: Literal[False], rows: int = CHUNK
) -> Iterator[tuple[np.ndarray, np.ndarray, None]]: ...


def read_chunks(
    sources: Any, columns: Sequence[str] | None = None, need_rating: bool = True, rows: int = CHUNK
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Read sources chunk by chunk, in source order; everything is checked before the first chunk comes.

    Parameters
    ----------
    sources : see `Ratings.read`
    columns : names, or positions from 1 as strings, of user, item and, if needed, rating; None: found by themselves
    need_rating : otherwise two columns do, and ratings are not looked at
    rows : the most a chunk holds

    Yields
    ------
    users, items : int64[count] where every id of that column is an integer, otherwise str objects [count]
    ratings : float32[count], or None if not needed

    Raises
    ------
    ConfigError, RatingsError, StorageError
        As `Ratings` and `Ratings.read` do.
    """
    with Database(Path(tempfile.gettempdir())) as database:
        ratings = Ratings(database, columns, need_rating)
        ratings.read(sources)
        users, items = (
            f"CAST({side} AS BIGINT)" if database.scalar(f"SELECT {are_integers(side)} FROM ratings") else side
            for side in ("user", "item")
        )
        for first in range(0, ratings.count, rows):
            chunk = database.arrays(
                f"SELECT {users} AS user, {items} AS item, rating FROM ratings WHERE rowid >= ? AND rowid < ?",
                [first, first + rows],
            )
            yield chunk["user"], chunk["item"], chunk["rating"] if need_rating else None
