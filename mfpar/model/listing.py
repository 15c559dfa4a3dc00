"""Recommendations on their way into one file, CSV or Parquet: every rank writes its part, the first puts them together.

Parts are CSV, and a Parquet file is made of the whole of it: so its bytes do not show who wrote which row.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mfpar.atomic import replacing, storage_errors, sync
from mfpar.errors import ConfigError
from mfpar.parallel.comm import Communicator

if TYPE_CHECKING:
    from mfpar.ratings.database import Database

COLUMNS = ("user", "place", "item", "score")
FORMATS = (".csv", ".parquet")


def require_format(path: Path) -> None:
    """Raise ConfigError unless a file's name says in which format it is to be written."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path}: the output's name has to end in {' or '.join(FORMATS)}")


class Listing:
    """The file in the making; see `listing`.

    Parameters
    ----------
    path : Path
    part : Path
        Of this rank; it is made, and may go when `finish` has returned.
    text : tuple[bool, bool]
        Whether ids of users, ids of items are strings.
    database : mfpar.ratings.database.Database
        Turns arrays into text, and text into Parquet.
    """

    def __init__(self, path: Path, part: Path, text: tuple[bool, bool], database: "Database", comm: Communicator):
        self._path, self._part, self._database, self._comm = path, part, database, comm
        user, item = ("VARCHAR" if side else "BIGINT" for side in text)
        self._types = dict(zip(COLUMNS, (user, "INTEGER", item, "FLOAT"), strict=True))
        self._count = 0
        with storage_errors(path):
            part.write_text(",".join(COLUMNS) + "\n" if comm.rank == 0 else "", encoding="utf-8")

    def append(self, users: np.ndarray, places: np.ndarray, items: np.ndarray, scores: np.ndarray) -> None:
        """Append rows to this rank's part. Local.

        Parameters
        ----------
        users, items : int64[count] or str[count]
        places : int64[count]
            From 1.
        scores : float32[count]
        """
        more = self._part.with_suffix(".more")
        table = dict(zip(COLUMNS, (users, places, items, scores), strict=True))
        with self._database.registered(table):
            self._database.copy("SELECT * FROM given", more, "FORMAT csv, HEADER false", self._path)
        with storage_errors(self._path):
            _append_file(self._part, more)
            more.unlink()
        self._count += len(users)

    def finish(self) -> int:
        """Put the parts together, in the order of ranks, and in place; returns how many rows they are. Collective."""
        with storage_errors(self._path):
            sync(self._part)  # what another node reads has to be there
        counts, parts = zip(*self._comm.gather([self._count, str(self._part)]), strict=True)
        if self._comm.rank == 0:
            with replacing(self._path) as temporary:
                for other in parts[1:]:
                    _append_file(self._part, Path(other))
                if self._path.suffix.lower() == ".csv":
                    os.replace(self._part, temporary)
                else:
                    self._to_parquet(temporary)
        self._comm.gather(None)  # all parts have been read
        return int(sum(counts))

    def _to_parquet(self, target: Path) -> None:
        from mfpar.ratings.database import literal

        types = ", ".join(f"'{name}': '{kind}'" for name, kind in self._types.items())
        text = "auto_detect = false, header = true, delim = ',', quote = '\"', escape = '\"', parallel = false"
        query = f"SELECT * FROM read_csv({literal(str(self._part))}, {text}, columns = {{{types}}})"
        self._database.copy(query, target, "FORMAT parquet", self._path)


@contextlib.contextmanager
def listing(path: Path, text: tuple[bool, bool], comm: Communicator) -> Iterator[Listing]:
    """A listing to append to; nothing of the parts is left behind, however it ends. Local but for `Listing.finish`.

    Raises
    ------
    StorageError
        Its folder can't be written to.
    """
    # Here, not above: DuckDB is needed by those who write listings only.
    from mfpar.ratings.database import ALLOWANCE, LEAST, Database

    # The least it can do with, on one thread, which keeps rows in their order and row groups alike.
    with Database(path.absolute().parent, ALLOWANCE + LEAST) as database:
        yield Listing(path, database.folder / "part.csv", text, database, comm)


def _append_file(target: Path, source: Path) -> None:
    with target.open("ab") as end, source.open("rb") as begin:
        shutil.copyfileobj(begin, end, 1 << 20)
