"""What every function of the API begins with: a blocked file of the ratings, and a place for what is to be written."""

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import h5py

from mfpar.atomic import temporary_folder
from mfpar.blockfile import Header
from mfpar.parallel import launch
from mfpar.parallel.comm import Communicator


def convert(ratings: Any, output: str | Path, *, comm: Any = None, **options: Any) -> Header:
    """Convert ratings into a blocked HDF5 file: alone, or together with the ranks of `comm`, to the same content.

    Parameters
    ----------
    ratings : path, glob pattern, list of paths, scipy sparse matrix, pandas or Arrow table, or three arrays
        Users, items and ratings; ids are integers or strings. Ranks are all given the same, and share out the files;
        a file, or a thing in memory, is read by one of them.
    output : path of the file to write
        With ranks, they write into `STEM.shards` beside it, on a file system that all of them see.
    comm : mpi4py communicator, optional
        Then the call is collective.
    options : see `mfpar.ratings.convert.convert`
        columns, test, test_fraction, implicit, weights, grid, seed, duplicates, memory (of each rank), force.

    Returns
    -------
    Header
        Shape and statistics of what was written.

    Raises
    ------
    RatingsError
        The source can't be read as ratings.
    ConfigError, OutputExistsError, StorageError
        An option is out of range; the output exists; it can't be written.
    """
    team = launch.adopt(comm)
    with team.guard():
        header = convert_file(ratings, output, team, **options)
    team.close()
    return header


def convert_file(ratings: Any, output: str | Path, comm: Communicator, **options: Any) -> Header:
    """As `convert`, within `comm.guard`. Collective."""
    # Here, not above: training does without DuckDB.
    from mfpar.ratings.convert import convert as convert_ratings

    return convert_ratings(ratings, Path(output), comm=comm, **options)


def place_of(output: str | Path | None, comm: Communicator, cleaning: contextlib.ExitStack) -> tuple[Path, Path | None]:
    """Where the output goes, and the folder made for it if it is temporary, which `cleaning` removes. Collective."""
    if output is not None:
        return Path(output), None
    made = tempfile.mkdtemp(prefix="mfpar-") if comm.rank == 0 else None
    if made:
        cleaning.callback(shutil.rmtree, made, ignore_errors=True)
    folder = Path(comm.gather(made)[0])
    return folder / "model.h5", folder if comm.rank == 0 else None


def blocked(ratings: Any, comm: Communicator, target: Path, cleaning: contextlib.ExitStack, **options: Any) -> Path:
    """The path of a blocked file: that given, or a temporary one made beside `target` by the first rank. Collective.

    What a process that was killed has left of one goes when the next writes `target`, as all that is temporary there.
    """
    if isinstance(ratings, str | Path) and Path(ratings).is_file() and h5py.is_hdf5(ratings):
        return Path(ratings)
    made = None
    if comm.rank == 0:
        folder = cleaning.enter_context(temporary_folder(target))
        convert(ratings, folder / "ratings.h5", **options)
        made = str(folder / "ratings.h5")
    return Path(comm.gather(made)[0])
