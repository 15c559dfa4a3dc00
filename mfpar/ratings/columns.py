"""Which columns of a source are user, item and rating: by what they are called, as asked for, or by position."""

import re
from collections.abc import Sequence

from mfpar.errors import ConfigError, RatingsError

ROLES = ("user", "item", "rating")
NAMES = {
    "user": {"user", "uid", "u", "customer", "customerid", "reviewer", "reviewerid", "row", "userid"},
    "item": {"item", "itemid", "iid", "i", "movie", "movieid", "mid", "product", "productid", "book", "bookid", "isbn"}
    | {"artist", "artistid", "track", "trackid", "song", "songid", "business", "businessid", "article", "articleid"}
    | {"asin", "col", "column"},
    "rating": {"rating", "ratings", "bookrating", "score", "value", "val", "stars", "star", "overall", "r"},
    "time": {"timestamp", "time", "date", "datetime"},
}


def known(name: str) -> str | None:
    """What a column is by its name: "user", "item", "rating", "time", or None.

    >>> known("movieId"), known("User ID"), known("genre")
    ('item', 'user', None)
    """
    plain = re.sub(r"[^a-z0-9]", "", name.casefold())
    return next((role for role in NAMES if plain in NAMES[role]), None)


def check_columns(columns: Sequence[str] | None, need_rating: bool) -> None:
    """Check a request for columns by itself.

    Raises
    ------
    ConfigError
        Not as many as are needed, or one twice.
    """
    if columns is None:
        return
    counts = (3,) if need_rating else (2, 3)
    if isinstance(columns, str) or len(columns) not in counts or len(set(columns)) != len(columns):
        what = "user, item and rating" if need_rating else "user and item"
        raise ConfigError(f"columns={columns!r} must be names or positions of different columns for {what}")


def choose_columns(
    names: Sequence[str] | None,
    count: int,
    numeric: bool,
    columns: Sequence[str] | None,
    need_rating: bool,
    where: str,
) -> tuple[int, ...]:
    """Positions (from 0) of user, item and, if needed, rating.

    Parameters
    ----------
    names : what the columns are called, or None where there is no header
    count : number of columns
    numeric : the third column holds numbers
    columns : what the user asked for: names, or positions from 1 as strings
    need_rating : the rating is wanted too
    where : the source, for messages

    Raises
    ------
    RatingsError
        A column is missing, or it can't be told which is which.
    """
    roles = ROLES[: 3 if need_rating else 2]
    found = ", ".join(names) if names is not None else f"{count} without names"
    if columns is not None:
        return tuple(_asked(column, names, count, where, found) for column in columns[: len(roles)])
    hint = f"; say which to take with --columns {','.join(roles)} (their names, or positions from 1)"
    if names is not None:
        kinds = [known(name) for name in names]
        missing = [role for role in roles if role not in kinds]
        twice = [role for role in roles if kinds.count(role) > 1 and names.count(role) != 1]
        if twice:
            raise RatingsError(f"{where}: has several columns known as {' and '.join(twice)}: {found}{hint}")
        if not missing:
            return tuple(kinds.index(role) for role in roles)
        if any(kinds) or (need_rating and not numeric):
            raise RatingsError(f"{where}: has no column known as {' or '.join(missing)}: its columns are {found}{hint}")
    if count < len(roles):
        raise RatingsError(f"{where}: columns for {', '.join(roles)} are needed, but its columns are {found}{hint}")
    return tuple(range(len(roles)))


def _asked(column: str, names: Sequence[str] | None, count: int, where: str, found: str) -> int:
    if names is not None and column in names:
        return list(names).index(column)
    if column.isdecimal() and 1 <= int(column) <= count:
        return int(column) - 1
    raise RatingsError(f"{where}: has no column {column!r}: its columns are {found}")
