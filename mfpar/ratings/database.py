"""A DuckDB database for one conversion: bounded memory, temporary files in one folder, errors as sentences."""

import contextlib
import glob
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Self

import duckdb
import numpy as np

from mfpar.abandoned import held, remove_abandoned
from mfpar.errors import ConfigError, StorageError
from mfpar.parallel.comm import Communicator, Serial

ALLOWANCE = 288 << 20  # bytes: Python, NumPy, h5py, one batch of ratings, and what DuckDB takes beyond its limit
MESSAGES = 96 << 20  # bytes: MPI, and rows on their way to other ranks
BOOKS = 1.5  # bytes a rating that DuckDB takes beyond its limit, for the books that it keeps on what it has spilled
LEAST = 128 << 20  # bytes: below this limit DuckDB can't sort
PER_THREAD = 128 << 20  # bytes: what a thread needs to sort without spilling all the time


class Database:
    """An in-memory DuckDB database that spills to a folder of its own; a context manager that removes the folder.

    Parameters
    ----------
    parent : Path
        Existing folder in which the temporary folder is made.
    memory : int or None
        Bytes that the whole process may take; None: DuckDB alone takes up to half of what the machine allows, shared
        with the ranks of the same node.
    comm : Communicator
        Ranks that each have such a database. While a statement runs, this one listens: it is interrupted when another
        rank fails.

    Raises
    ------
    ConfigError
        `memory` is too small to work in.
    StorageError
        No folder can be made in `parent`.
    """

    def __init__(self, parent: Path, memory: int | None = None, comm: Communicator | None = None):
        self._comm = Serial() if comm is None else comm
        self._neighbours = self._comm.leaders.count(self._comm.leaders[self._comm.rank])
        self._thread = ThreadPoolExecutor(1) if self._comm.size > 1 else None
        self._memory = memory
        self._allowance = ALLOWANCE + (MESSAGES if self._comm.size > 1 else 0)
        self._books = 0
        self._limit(0)  # a request that can't be met fails before anything is made
        self._holding = contextlib.ExitStack()
        try:
            # Some file systems have locks that other hosts don't see: theirs are left to them.
            prefix = f".mfpar.{socket.gethostname()}."
            remove_abandoned(parent.glob(f"{glob.escape(prefix)}*.tmp"))
            self._temporary = tempfile.TemporaryDirectory(prefix=prefix, suffix=".tmp", dir=parent)
            self.folder = Path(self._temporary.name)
            self._holding.enter_context(held(self.folder, folder=True))
        except OSError as error:
            raise StorageError(f"{parent}: no temporary folder can be made there: {error.strerror}") from error
        self._spill = self.folder / "spill"
        self._connection = duckdb.connect(
            config={
                "temp_directory": str(self._spill),
                "memory_limit": self._limit(0),
                "autoinstall_known_extensions": False,
                "python_enable_replacements": False,  # a table is what was registered, never a caller's variable
                "pandas_analyze_sample": 0,  # objects are text, instead of what the first thousand look like
            }
        )
        self._connection.execute("SET enable_progress_bar = false")
        if memory is not None or self._neighbours > 1:
            threads = max(1, (os.cpu_count() or 1) // self._neighbours)
            if memory is not None:
                threads = min(threads, max(1, (memory - self._allowance) // PER_THREAD))
            self._connection.execute(f"SET threads = {threads}")

    def _limit(self, reserved: int) -> str:
        if self._memory is None:
            return f"{50 / self._neighbours}%"
        left = self._memory - self._allowance - reserved
        if left < LEAST:
            needed = -(-(self._allowance + LEAST + reserved) >> 20)
            raise ConfigError(
                f"memory={self._memory >> 20}M is too small for this conversion, which needs at least {needed}M"
            )
        return f"{max(LEAST, left - self._books)}B"

    def keep_books(self, ratings: int) -> None:
        """Leave memory to what DuckDB does not count when it holds so many ratings."""
        self._books = int(BOOKS * ratings)
        self.run(f"SET memory_limit = '{self._limit(0)}'")

    @contextlib.contextmanager
    def reserving(self, size: int) -> Iterator[None]:
        """Leave `size` bytes of the memory to arrays of ours for a while.

        Raises
        ------
        ConfigError
            Too little would be left to DuckDB.
        """
        self.run(f"SET memory_limit = '{self._limit(size)}'")
        try:
            yield
        finally:
            self.run(f"SET memory_limit = '{self._limit(0)}'")

    @contextlib.contextmanager
    def registered(self, table: Any) -> Iterator[None]:
        """Make a pandas or Arrow table, or a dict of arrays, known as `given` for a while; None: nothing to do."""
        if table is None:
            yield
            return
        self._connection.register("given", table)
        try:
            yield
        finally:
            self._connection.unregister("given")

    def run(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[tuple[Any, ...]]:
        """Execute a statement and return the rows of its result.

        Raises
        ------
        ConfigError
            The memory does not suffice.
        StorageError
            Temporary files could not be written.
        duckdb.Error
            Any other failure, which only the caller can explain.
        """
        rows: list[tuple[Any, ...]] = self._result(lambda: self._connection.execute(sql, parameters).fetchall())
        return rows

    def scalar(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> Any:
        """Like `run`, for a result of one value."""
        return self.run(sql, parameters)[0][0]

    def arrays(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> dict[str, np.ndarray]:
        """Like `run`, for a result without NULL: arrays by column name; strings as an object array of str."""
        columns: dict[str, np.ndarray] = self._result(lambda: self._connection.execute(sql, parameters).fetchnumpy())
        return columns

    def _result(self, statement: Callable[[], Any]) -> Any:
        """What a statement returns; several ranks have it run in a thread, while they listen to each other."""
        with self._failing():
            if self._thread is None:
                return statement()
            running = self._thread.submit(statement)
            try:
                self._comm.wait_until(running.done)
            except BaseException:
                self._connection.interrupt()
                wait([running])
                raise
            return running.result()

    def copy(self, query: str, target: Path, options: str, name: Path) -> None:
        """Write a query's result to a file, overwriting it.

        Parameters
        ----------
        options : SQL, as COPY takes them
        name : Path
            What an error says could not be written.

        Raises
        ------
        StorageError
            It could not be written.
        """
        try:
            self.run(f"COPY ({query}) TO {literal(str(target))} ({options})")
        except duckdb.IOException as error:
            # Where it writes in the background, DuckDB tells of it in JSON.
            text = re.sub(r'","errno":.*', "", str(error).splitlines()[0])
            raise StorageError(
                f"{name}: could not be written: {text.rpartition(': ')[2]}; nothing was left behind"
            ) from error

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except duckdb.OutOfMemoryException as error:
            if "offload" in str(error) or "temp_directory" in str(error):
                raise self._full() from error
            raise ConfigError("the memory is too small for this conversion; give it more with --memory") from error
        except duckdb.Error as error:
            if isinstance(error, duckdb.IOException) and str(self._spill) in str(error):
                raise self._full() from error
            raise
        except RuntimeError as error:  # what DuckDB makes of the exception that a signal's handler has raised
            if "interrupted" in str(error).lower():
                raise KeyboardInterrupt from error
            raise

    def _full(self) -> StorageError:
        return StorageError(f"{self.folder.parent}: no space is left there for the temporary files of the conversion")

    def close(self) -> None:
        """Close the database and remove its folder."""
        if self._thread is not None:
            self._thread.shutdown()
        self._connection.close()
        self._holding.close()
        self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def literal(text: str) -> str:
    """A string as SQL text."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """A column's name as SQL text."""
    return '"' + name.replace('"', '""') + '"'
