"""Which columns of a source are user, item, rating and weight: by their names, as asked for, or by position."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mfpar.errors import ConfigError, RatingsError

IDS = ("user", "item")
PAIRS_HINT = "; pairs without ratings are taken by mfpar convert --implicit (implicit=True)"
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


@dataclass(frozen=True)
class Wanted:
    """What is to be read from a source.

    Parameters
    ----------
    columns : names, or positions from 1 as strings, of user, item and rating; None: found by themselves
        Without ratings two are enough, and the third is ignored.
    rating : the ratings are wanted; otherwise each is 1, whatever the source says
    weights : name, or position from 1 as a string, of the column of weights; None: there are none
    held : it is for the held-out part, which needs no weights even where the training part has them

    Raises
    ------
    ConfigError
        Not as many columns as are needed, one twice, or a column of weights that is no name.
    """

    columns: Sequence[str] | None = None
    rating: bool = True
    weights: str | None = None
    held: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.weights, str | None):
            kind = type(self.weights).__name__
            raise ConfigError(f"weights is a {kind}; name a column of the source, or give its position as a string")
        if self.columns is None:
            return
        counts = (3,) if self.rating else (2, 3)
        distinct = len(set(self.columns)) == len(self.columns)
        if isinstance(self.columns, str) or len(self.columns) not in counts or not distinct:
            what = "user, item and rating" + PAIRS_HINT if self.rating else "user and item"
            raise ConfigError(f"columns={self.columns!r} must be names or positions of different columns for {what}")

    @property
    def weighted(self) -> bool:
        """The training part has weights."""
        return self.weights is not None

    @property
    def weight(self) -> str | None:
        """The column of weights, where it is to be read."""
        return None if self.held else self.weights

    @property
    def roles(self) -> tuple[str, ...]:
        """What the wanted columns are: "user", "item" and, as needed, "rating" and "weight"."""
        return IDS + ("rating",) * self.rating + ("weight",) * (self.weight is not None)

    @property
    def asked(self) -> tuple[str, ...]:
        """Names and positions that were asked for."""
        return (*(self.columns or ()), *(() if self.weight is None else (self.weight,)))


def choose_columns(
    names: Sequence[str] | None, count: int, numeric: bool, wanted: Wanted, where: str
) -> dict[str, int]:
    """Positions (from 0) of all wanted columns by role.

    Parameters
    ----------
    names : what the columns are called, or None where there is no header
    count : number of columns
    numeric : the third column holds numbers
    wanted : Wanted
    where : the source, for messages

    Raises
    ------
    RatingsError
        A column is missing, would be two things, or it can't be told which is which.
    """
    found = ", ".join(names) if names is not None else f"{count} without names"
    roles = [role for role in wanted.roles if role != "weight"]  # which no name tells, only the user
    if wanted.columns is None:
        positions = _found(names, count, numeric, roles, where, found)
    else:
        positions = [_asked(column, names, count, where, found) for column in wanted.columns[: len(roles)]]
    if wanted.weight is not None:
        positions.append(_asked(wanted.weight, names, count, where, found))
    if len(set(positions)) < len(positions):
        raise RatingsError(f"{where}: the columns for {', '.join(wanted.roles)} must differ: its columns are {found}")
    return dict(zip(wanted.roles, positions, strict=True))


def _found(
    names: Sequence[str] | None, count: int, numeric: bool, roles: list[str], where: str, found: str
) -> list[int]:
    """Positions of columns by what they are called, or else the first ones."""
    hint = f"; say which to take with --columns {','.join(roles)} (their names, or positions from 1)"
    if names is not None:
        kinds = [known(name) for name in names]
        missing = [role for role in roles if role not in kinds]
        twice = [role for role in roles if kinds.count(role) > 1 and names.count(role) != 1]
        if twice:
            raise RatingsError(f"{where}: has several columns known as {' and '.join(twice)}: {found}{hint}")
        if not missing:
            return [kinds.index(role) for role in roles]
        if any(kinds) or ("rating" in roles and not numeric):
            hint += PAIRS_HINT * (missing == ["rating"])
            raise RatingsError(f"{where}: has no column known as {' or '.join(missing)}: its columns are {found}{hint}")
    if count < len(roles):
        hint += PAIRS_HINT * (count == len(IDS))
        raise RatingsError(f"{where}: columns for {', '.join(roles)} are needed, but its columns are {found}{hint}")
    return list(range(len(roles)))


def _asked(column: str, names: Sequence[str] | None, count: int, where: str, found: str) -> int:
    if names is not None and column in names:
        return list(names).index(column)
    if column.isdecimal() and 1 <= int(column) <= count:
        return int(column) - 1
    raise RatingsError(f"{where}: has no column {column!r}: its columns are {found}")
