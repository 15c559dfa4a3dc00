"""What every function of the API begins with: a blocked file of the ratings, and a place for what is to be written."""

import contextlib
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

import h5py

from mfpar.blockfile import Header
from mfpar.parallel.comm import Communicator


def convert(ratings: Any, output: str | Path, **options: Any) -> Header:
    """Convert ratings into a blocked HDF5 file. Local.

    Parameters
    ----------
    ratings : path, glob pattern, list of paths, scipy sparse matrix, pandas or Arrow table, or three arrays
        Users, items and ratings; ids are integers or strings.
    output : path of the file to write
    options : see `mfpar.ratings.convert.convert`
        columns, test, test_fraction, implicit, weights, grid, seed, duplicates, memory, force.

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
    # Here, not above: training does without DuckDB.
    from mfpar.ratings.convert import convert as convert_ratings

    return convert_ratings(ratings, Path(output), **options)


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
    """The path of a blocked file: that given, or a temporary one made beside `target` by the first rank. Collective."""
    if isinstance(ratings, str | Path) and Path(ratings).is_file() and h5py.is_hdf5(ratings):
        return Path(ratings)
    made = None
    if comm.rank == 0:
        path = target.with_name(f".{target.name}.{secrets.token_hex(4)}.ratings.h5")
        cleaning.callback(path.unlink, missing_ok=True)
        convert(ratings, path, **options)
        made = str(path)
    return Path(comm.gather(made)[0])
