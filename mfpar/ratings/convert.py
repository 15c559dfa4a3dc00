"""The pipeline: read sources, order and cut both sides, sort the ratings into blocks, write the blocked file."""

import contextlib
import dataclasses
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mfpar.atomic import refuse_existing, replacing
from mfpar.blockfile import Header
from mfpar.errors import ConfigError, RatingsError
from mfpar.grid import Grid, balanced_cuts, default_grid
from mfpar.kernels.spread import RUN
from mfpar.ratings.blocks import BATCH, RATING_BYTES, Block, SortedRatings, Statistics
from mfpar.ratings.blockwriter import BlockedWriter
from mfpar.ratings.columns import Wanted
from mfpar.ratings.database import Database
from mfpar.ratings.ordering import UNKNOWN, id_size, ids, number, place, spread
from mfpar.ratings.reading import Ratings
from mfpar.ratings.sources import files_of

AHEAD = min(4, os.cpu_count() or 1)  # blocks whose orders are sought at a time
DUPLICATES = ("error", "last", "mean")


def convert(
    sources: Any,
    output: str | Path,
    *,
    columns: Sequence[str] | None = None,
    implicit: bool = False,
    weights: str | None = None,
    test: Any = None,
    test_fraction: float = 0.0,
    grid: int | None = None,
    seed: int = 0,
    duplicates: str = "last",
    memory: int | None = None,
    force: bool = False,
) -> Header:
    """Write ratings as a blocked HDF5 file. Not collective: one process does it.

    The content depends on the ratings, their order, `grid` and `seed` alone, not on the kind of source, on `memory` or
    on the number of threads.

    Parameters
    ----------
    sources : path, glob pattern, scipy sparse matrix, pandas or Arrow table, tuple or dict of arrays; or a list
        Files: delimited text, Parquet, Matrix Market (all also gzipped), .npz.
    output : path of the file to write
    columns : names, or positions from 1 as strings, of user, item and rating; None: found by themselves
    implicit : the sources hold what happened: every pair is a rating of 1, whatever else they say of it
        Two columns are enough then.
    weights : name, or position from 1 as a string, of the column of weights; None: there are none
        Finite numbers from 0 up. Of a tuple of arrays, which have no names, the last one is meant.
    test : like `sources`
        Ratings to hold out; they need no weights.
    test_fraction : float, 0 ≤ test_fraction < 1
        Share of `sources` to hold out instead, chosen by a hash of seed, user id and item id.
    grid : blocks a side, at most the smaller side of the matrix; None: from the size
    seed : of the order of rows and columns, and of the held-out share
    duplicates : "error", "last" or "mean"
        What becomes of several ratings of one user for one item in the same part: refuse them, keep the last in source
        order, or take their mean, weighted if there are weights (unless all are 0), and add up the weights.
    memory : bytes that the process may take; None: DuckDB takes up to half of the machine's
    force : overwrite `output`

    Returns
    -------
    Header

    Raises
    ------
    ConfigError
        An option outside its range, or one that does not fit the data.
    RatingsError
        A source that can't be read as ratings; names file and line.
    OutputExistsError
        `output` exists and `force` is not set, or it is a source.
    StorageError
        A file that can't be read or written.
    """
    output = Path(output)
    _check_options(test, test_fraction, grid, seed, duplicates)
    wanted = Wanted(columns, rating=not implicit, weights=weights)
    refuse_existing(output, force, files_of(sources) + ([] if test is None else files_of(test)))
    with Database(output.absolute().parent, memory) as database:
        ratings = Ratings(database, wanted.weighted)
        ratings.read(sources, wanted, _held(test_fraction, seed))
        if test is not None:
            ratings.read(test, dataclasses.replace(wanted, held=True), "true")
        counts = {side: number(database, side, seed) for side in ("user", "item")}
        m, n = len(counts["user"]), len(counts["item"])
        if m == 0:
            raise RatingsError(f"no training ratings are left: all {ratings.count} are held out; hold out fewer")
        size = default_grid(m, n, int(counts["user"].sum()), implicit) if grid is None else grid
        if size > min(m, n):
            raise ConfigError(f"grid={size} is too fine for {m} rows and {n} columns; take at most {min(m, n)}")
        cuts = Grid(*(balanced_cuts(counts[side], size) for side in ("user", "item")))
        place(database, "user", cuts.row_cuts)
        place(database, "item", cuts.col_cuts)
        ordered = SortedRatings(database, size, duplicates, wanted.weighted)
        with (
            replacing(output) as temporary,
            contextlib.closing(BlockedWriter(temporary, cuts, wanted.weighted)) as writer,
        ):
            for side, table, count in (("user", "rows", m), ("item", "cols", n)):
                _write_ids(database, writer, side, table, count)
            with database.reserving(max(ordered.largest - BATCH, 0) * RATING_BYTES):
                header = _write_blocks(writer, ordered, cuts, seed, wanted)
            if duplicates == "error" and ordered.example is not None:
                raise RatingsError(_duplicate(database, cuts, ordered.example, ordered.duplicates))
            writer.finish(header)
    return header


def _check_options(test: Any, test_fraction: float, grid: int | None, seed: int, duplicates: str) -> None:
    if not 0 <= test_fraction < 1:
        raise ConfigError(f"test_fraction={test_fraction} is out of range: take at least 0 and less than 1")
    if test is not None and test_fraction:
        raise ConfigError("test and test_fraction exclude each other: give held-out ratings, or a share to hold out")
    if grid is not None and grid < 1:
        raise ConfigError(f"grid={grid} is out of range: take at least 1 block a side")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed={seed} is out of range: take one from 0 up to 2^63 - 1")
    if duplicates not in DUPLICATES:
        raise ConfigError(f"duplicates={duplicates!r} is none of {', '.join(DUPLICATES)}")


def _held(test_fraction: float, seed: int) -> str:
    """SQL that holds out a share of the ratings by what they are about, wherever in the source they stand."""
    if not test_fraction:
        return "false"
    return f"md5_number_lower('{seed}:test:' || user || ':' || item) < {int(test_fraction * 2**64)}"


def _write_ids(database: Database, writer: BlockedWriter, side: str, table: str, count: int) -> None:
    size = id_size(database, side)
    with database.reserving(count * (3 * max(size, 8) + 24)):
        names = ids(database, side, count, size)
        writer.write_ids(table, names, np.argsort(names, kind="stable"))


def _write_blocks(writer: BlockedWriter, ordered: SortedRatings, grid: Grid, seed: int, wanted: Wanted) -> Header:
    statistics = Statistics()
    test = unknown = 0
    for block, order in _with_orders(ordered):
        i, j, rows, cols, values = block.i, block.j, block.rows, block.cols, block.values
        if block.held:
            test += len(values)
            unknown += int(np.count_nonzero((rows >= UNKNOWN) | (cols >= UNKNOWN)))
            rows, cols = np.minimum(rows, grid.row_sizes[i]), np.minimum(cols, grid.col_sizes[j])
            writer.append("test", i, j, rows, cols, values)
        else:
            statistics.add(values)
            weights = None if block.weights is None else block.weights[order]
            writer.append("train", i, j, rows[order], cols[order], values[order], weights)
    return Header(
        rows=int(grid.row_cuts[-1]),
        cols=int(grid.col_cuts[-1]),
        ratings=statistics.count,
        test_ratings=test,
        test_unknown=unknown,
        duplicates=ordered.duplicates,
        seed=seed,
        streams=RUN,
        mean=statistics.mean,
        deviation=statistics.deviation,
        minimum=statistics.minimum,
        maximum=statistics.maximum,
        implicit=not wanted.rating,
        weighted=wanted.weighted,
    )


def _with_orders(blocks: Iterable[Block]) -> Iterator[tuple[Block, np.ndarray]]:
    """Each block with the order of its ratings, which threads find while others are fetched and written."""
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting: deque[tuple[Block, Future[np.ndarray]]] = deque()
        for block in blocks:
            waiting.append((block, pool.submit(spread, block.rows, block.cols, block.held)))
            if len(waiting) > AHEAD:
                first, order = waiting.popleft()
                yield first, order.result()
        for first, order in waiting:
            yield first, order.result()


def _duplicate(database: Database, grid: Grid, example: tuple[bool, int, int, int, int], count: int) -> str:
    """The sentence that names a pair that is rated twice."""
    held, i, j, row, col = example
    names = []
    for side, cuts, b, local in (("user", grid.row_cuts, i, row), ("item", grid.col_cuts, j, col)):
        index = cuts[-1] + local - UNKNOWN if local >= UNKNOWN else cuts[b] + local
        names.append(database.scalar(f"SELECT CAST(id AS VARCHAR) FROM {side}s WHERE rowid = ?", [int(index)]))
    part = "test" if held else "training"
    return (
        f"the {part} ratings have user {names[0]!r} with item {names[1]!r} more than once "
        f"({count} such duplicates in all); remove them, or settle them with --duplicates last or mean"
    )
