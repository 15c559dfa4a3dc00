"""Sources that are arrays: scipy matrices, Matrix Market and .npz files, numpy arrays in memory."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from mfpar.errors import RatingsError
from mfpar.ratings.columns import ROLES, choose_columns

Columns = dict[str, np.ndarray]


def from_matrix(matrix: Any, where: str, base: int = 0) -> Columns:
    """The stored entries of a scipy sparse matrix; ids are indices counted from `base`."""
    if np.iscomplexobj(matrix):
        raise RatingsError(f"{where}: holds complex numbers; ratings are real")
    entries = matrix.tocoo()
    if entries.ndim != 2:
        raise RatingsError(f"{where}: has {entries.ndim} dimensions; ratings are a matrix of users by items")
    row, col = entries.row, entries.col
    if base:
        row, col = row.astype(np.int64) + base, col.astype(np.int64) + base
    return prepared([row, col, entries.data], where)


def from_mtx(path: Path, gzipped: bool) -> Columns:
    """The entries of a Matrix Market file; ids are indices as written in it, from 1."""
    import scipy.io

    try:
        with (gzip.open if gzipped else open)(path, "rb") as stream:
            matrix = scipy.io.mmread(stream)
    except (ValueError, OverflowError, OSError, EOFError, zlib.error) as error:
        reason = str(error).rstrip(".") or "truncated"
        raise RatingsError(f"{path}: is no sound Matrix Market file: {reason}") from error
    if isinstance(matrix, np.ndarray):
        raise RatingsError(f"{path}: is a dense Matrix Market array; ratings need the coordinate form")
    return from_matrix(matrix, str(path), base=1)


def from_npz(path: Path, columns: Sequence[str] | None, need_rating: bool) -> Columns:
    """A scipy sparse matrix (`scipy.sparse.save_npz`), or three arrays named like columns (`numpy.savez`)."""
    import scipy.sparse

    try:
        with open(path, "rb") as stream:
            with np.load(stream, allow_pickle=False) as stored:
                names = list(stored.files)
                if not {"format", "shape", "data"} <= set(names):
                    return _chosen({name: stored[name] for name in names}, columns, need_rating, str(path))
            stream.seek(0)
            matrix = scipy.sparse.load_npz(stream)
    except RatingsError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OSError, EOFError, BadZipFile, zlib.error) as error:
        raise RatingsError(f"{path}: is no .npz file of a sparse matrix or of plain arrays: {error}") from error
    return from_matrix(matrix, str(path))


def from_given(source: Any, columns: Sequence[str] | None, need_rating: bool) -> Columns:
    """A tuple of arrays in the order user, item, rating, or a dict of arrays named like columns."""
    where = "the given arrays"
    if isinstance(source, dict):
        return _chosen({str(name): np.asarray(array) for name, array in source.items()}, columns, need_rating, where)
    needed = 3 if need_rating else 2
    if not needed <= len(source) <= 3:
        raise RatingsError(f"{where}: are {len(source)}; give {needed}: {', '.join(ROLES[:needed])}")
    return prepared([np.asarray(array) for array in source[:needed]], where)


def _chosen(arrays: Columns, columns: Sequence[str] | None, need_rating: bool, where: str) -> Columns:
    names = list(arrays)
    numeric = len(names) > 2 and arrays[names[2]].dtype.kind in "biuf"
    chosen = choose_columns(names, len(names), numeric, columns, need_rating, where)
    return prepared([arrays[names[position]] for position in chosen], where)


def prepared(arrays: list[np.ndarray], where: str) -> Columns:
    """Check arrays of user, item and, where there is one, rating, and give them dtypes that DuckDB reads.

    Raises
    ------
    RatingsError
        They are not flat, not of one length, or of dtypes that can't be ids or ratings.
    """
    if any(array.ndim != 1 for array in arrays) or len({len(array) for array in arrays}) != 1:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise RatingsError(f"{where}: have the shapes {shapes}; they must be flat and of one length")
    result = {}
    for role, array, kinds in zip(ROLES, arrays, ("iufUSO", "iufUSO", "biuf"), strict=False):
        if array.dtype.kind not in kinds:
            wanted = "numbers" if role == "rating" else "integers or strings"
            raise RatingsError(f"{where}: the {role} array has dtype {array.dtype}; {wanted} are needed")
        if array.dtype.kind == "S":
            try:
                array = np.char.decode(array, "utf-8")
            except UnicodeDecodeError as error:
                raise RatingsError(f"{where}: the {role} array holds bytes that are not UTF-8") from error
        if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
            array = array.astype(np.float64)
        result[role] = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return result
