"""The pipeline: read sources, order and cut both sides, sort the ratings into blocks, write the blocked file."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mfpar.atomic import refuse_existing
from mfpar.blockfile import SIDES, Header
from mfpar.errors import ConfigError, RatingsError
from mfpar.grid import Grid, default_grid, span
from mfpar.parallel.comm import Communicator, Serial
from mfpar.ratings.blocks import BATCH, RATING_BYTES, SortedRatings
from mfpar.ratings.blockwriter import BlockedWriter, write_master
from mfpar.ratings.columns import IDS, Wanted
from mfpar.ratings.database import Database
from mfpar.ratings.filling import write_blocks
from mfpar.ratings.lines import Lines, name_of
from mfpar.ratings.ordering import UNKNOWN, Line, cuts, id_type, number, place
from mfpar.ratings.reading import Ratings
from mfpar.ratings.sharing import own_sources
from mfpar.ratings.sources import files_of
from mfpar.sharded import write_sharded

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
    comm: Communicator | None = None,
) -> Header:
    """Write ratings as a blocked HDF5 file. Collective, within `comm.guard`.

    The content depends on the ratings, their order, `grid` and `seed` alone, not on the kind of source, on `memory` or
    on the number of ranks or threads. Ranks share out the sources, and write a shard each (see `mfpar.sharded`).

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
    memory : bytes that each rank's process may take; None: DuckDB takes up to half of the machine's
    force : overwrite `output`
    comm : the ranks, which are all given the same; None: this process alone

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
    output, comm = Path(output), Serial() if comm is None else comm
    _check_options(test, test_fraction, grid, seed, duplicates)
    wanted = Wanted(columns, rating=not implicit, weights=weights)
    if comm.rank == 0:
        refuse_existing(output, force, files_of(sources) + ([] if test is None else files_of(test)))
    shares = own_sources(sources, comm), [] if test is None else own_sources(test, comm)
    with Database(output.absolute().parent, memory, comm) as database:
        ratings = Ratings(database, wanted.weighted)
        for source in shares[0]:
            ratings.read(source, wanted, _held(test_fraction, seed))
        for source in shares[1]:
            ratings.read(source, dataclasses.replace(wanted, held=True), "true")
        ratings.agree(comm)
        kinds = {side: id_type(database, side) for side in IDS}
        lines = {side: number(database, side, seed, comm) for side in IDS}
        m, n = lines["user"].count, lines["item"].count
        if m == 0:
            raise RatingsError(f"no training ratings are left: all {ratings.count} are held out; hold out fewer")
        size = default_grid(m, n, lines["user"].ratings, implicit) if grid is None else grid
        if size > min(m, n):
            raise ConfigError(f"grid={size} is too fine for {m} rows and {n} columns; take at most {min(m, n)}")
        blocks = Grid(*(cuts(database, side, lines[side], size, comm) for side in IDS))
        place(database, "user", blocks.row_cuts, comm)
        place(database, "item", blocks.col_cuts, comm)
        ordered = SortedRatings(database, blocks, duplicates, wanted.weighted, comm)
        first, last = span(size, comm.size, comm.rank)
        found: list[Header] = []

        def write(path: Path, shards: Sequence[Path] | None = None) -> None:
            """A shard, or all that there is where `shards` says that there are none."""
            with contextlib.closing(BlockedWriter(path, blocks, wanted.weighted, first, last)) as writer:
                with database.reserving(max(ordered.largest - BATCH, 0) * RATING_BYTES):
                    header = write_blocks(writer, ordered, blocks, seed, wanted, comm)
                if duplicates == "error":
                    _refuse_duplicates(database, ordered, lines, blocks, comm)
                for side, table in zip(IDS, SIDES, strict=True):
                    for piece in Lines(database, side, kinds[side], lines[side], blocks.cuts(table), comm):
                        writer.append_ids(table, *piece)
                writer.finish(header if shards is not None else None)
                found.append(header)

        def master(path: Path, shards: list[Path]) -> None:
            if shards:
                write_master(path, blocks, found[0], shards)
            else:
                write(path, shards)

        write_sharded(output, comm, write, master)
    return found[0]


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


def _refuse_duplicates(
    database: Database, ordered: SortedRatings, lines: dict[str, Line], grid: Grid, comm: Communicator
) -> None:
    """Raise the error that names the first pair that is rated twice. Collective."""
    told = comm.gather([ordered.duplicates, ordered.example])
    examples = [example for _, example in told if example is not None]
    if not examples:
        return
    held, i, j, row, col = min(examples)  # the first in the file
    names = []
    for side, table, b, local in (("user", "rows", i, row), ("item", "cols", j, col)):
        line = grid.cuts(table)
        index = line[-1] + local - UNKNOWN if local >= UNKNOWN else line[b] + local
        names.append(name_of(database, side, lines[side], int(index), comm))
    part = "test" if held else "training"
    raise RatingsError(
        f"the {part} ratings have user {names[0]!r} with item {names[1]!r} more than once "
        f"({sum(count for count, _ in told)} such duplicates in all); "
        "remove them, or settle them with --duplicates last or mean"
    )
