"""Sources that are arrays: scipy matrices, Matrix Market and .npz files, numpy arrays in memory."""

import gzip
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from mfpar.errors import RatingsError
from mfpar.ratings.columns import IDS, PAIRS_HINT, Wanted, choose_columns

Columns = dict[str, np.ndarray]
PACKED = 1100  # bytes that one of a gzip file stands for at most; it reaches 1,032
SHORTEST = 3  # bytes of the shortest entry of a Matrix Market file, "1 1"
LONGEST_HEAD = 1 << 16  # bytes of a line before the entries


def from_matrix(matrix: Any, wanted: Wanted, where: str, base: int = 0) -> Columns:
    """The stored entries of a scipy sparse matrix; ids are indices counted from `base`."""
    if wanted.weight is not None:
        raise RatingsError(f"{where}: is a matrix, which has no column of weights; give a table, or four arrays")
    if wanted.rating and np.iscomplexobj(matrix):
        raise RatingsError(f"{where}: holds complex numbers; ratings are real")
    entries = matrix.tocoo()
    if entries.ndim != 2:
        raise RatingsError(f"{where}: has {entries.ndim} dimensions; ratings are a matrix of users by items")
    row, col = entries.row, entries.col
    if base:
        row, col = row.astype(np.int64) + base, col.astype(np.int64) + base
    return prepared(dict(zip(wanted.roles, (row, col, entries.data), strict=False)), where)


def from_mtx(path: Path, gzipped: bool, wanted: Wanted) -> Columns:
    """The entries of a Matrix Market file; ids are indices as written in it, from 1."""
    import scipy.io

    try:
        with (gzip.open if gzipped else open)(path, "rb") as stream:
            _require_entries(stream, path.stat().st_size * (PACKED if gzipped else 1))
            stream.seek(0)
            matrix = scipy.io.mmread(stream)
    except (ValueError, OverflowError, OSError, EOFError, zlib.error) as error:
        reason = str(error).rstrip(".") or "truncated"
        raise RatingsError(f"{path}: is no sound Matrix Market file: {reason}") from error
    if isinstance(matrix, np.ndarray):
        raise RatingsError(f"{path}: is a dense Matrix Market array; ratings need the coordinate form")
    return from_matrix(matrix, wanted, str(path), base=1)


def _require_entries(stream: Any, most: int) -> None:
    """Raise ValueError where a Matrix Market file, of `most` bytes, has no room for the entries that it announces.

    scipy takes memory for them all, and aborts the process where there is none.
    """
    stream.readline(LONGEST_HEAD)
    line = b"%"
    while line.startswith(b"%") or (line and not line.strip()):
        line = stream.readline(LONGEST_HEAD)
    sizes = [int(word) for word in line.split()]
    if min(sizes, default=0) < 0 or max(sizes, default=0) >= 2**63:
        raise ValueError(f"its sizes {line.decode().strip()} are out of range")
    if len(sizes) == 3 and sizes[2] * SHORTEST > most:
        raise ValueError(f"{sizes[2]} entries are announced, more than the file holds")


def from_npz(path: Path, wanted: Wanted) -> Columns:
    """A scipy sparse matrix (`scipy.sparse.save_npz`), or arrays named like columns (`numpy.savez`)."""
    import scipy.sparse

    try:
        with open(path, "rb") as stream:
            with np.load(stream, allow_pickle=False) as stored:
                names = list(stored.files)
                if not {"format", "shape", "data"} <= set(names):
                    return _chosen({name: stored[name] for name in names}, wanted, str(path))
            stream.seek(0)
            matrix = scipy.sparse.load_npz(stream)
            if hasattr(matrix, "check_format"):
                matrix.check_format(full_check=True)  # scipy's compiled code believes what stands there
        return from_matrix(matrix, wanted, str(path))
    except RatingsError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OSError, EOFError, BadZipFile, zlib.error) as error:
        raise RatingsError(f"{path}: is no .npz file of a sparse matrix or of plain arrays: {error}") from error


def from_given(source: Any, wanted: Wanted) -> Columns:
    """A dict of arrays named like columns, or a tuple of arrays in the order of roles.

    The names of columns mean nothing to a tuple: weights are its last array, and an array of ratings that are not
    wanted may stand before them.
    """
    where = "the given arrays"
    if isinstance(source, dict):
        return _chosen({str(name): np.asarray(array) for name, array in source.items()}, wanted, where)
    roles, most = wanted.roles, 3 + wanted.weighted
    if not len(roles) <= len(source) <= most:
        hint = PAIRS_HINT if wanted.rating and len(source) == len(IDS) else ""
        raise RatingsError(f"{where}: are {len(source)}; give {len(roles)}: {', '.join(roles)}{hint}")
    arrays = dict(zip(roles, source, strict=False))
    if wanted.weight is not None:
        arrays["weight"] = source[-1]
    return prepared({role: np.asarray(array) for role, array in arrays.items()}, where)


def _chosen(arrays: Columns, wanted: Wanted, where: str) -> Columns:
    names = list(arrays)
    numeric = len(names) > 2 and arrays[names[2]].dtype.kind in "biuf"
    chosen = choose_columns(names, len(names), numeric, wanted, where)
    return prepared({role: arrays[names[position]] for role, position in chosen.items()}, where)


def prepared(arrays: Columns, where: str) -> Columns:
    """Check arrays by role (see `Wanted.roles`), and give them dtypes that DuckDB reads.

    Raises
    ------
    RatingsError
        They are not flat, not of one length, or of dtypes that can't be ids or numbers.
    """
    if any(array.ndim != 1 for array in arrays.values()) or len({len(array) for array in arrays.values()}) != 1:
        shapes = ", ".join(str(array.shape) for array in arrays.values())
        raise RatingsError(f"{where}: have the shapes {shapes}; they must be flat and of one length")
    result = {}
    for role, array in arrays.items():
        kinds, needed = ("iufUSO", "integers or strings") if role in IDS else ("biuf", "numbers")
        if array.dtype.kind not in kinds:
            raise RatingsError(f"{where}: the {role} array has dtype {array.dtype}; {needed} are needed")
        if array.dtype.kind == "S":
            try:
                array = np.char.decode(array, "utf-8")
            except UnicodeDecodeError as error:
                raise RatingsError(f"{where}: the {role} array holds bytes that are not UTF-8") from error
        if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
            array = array.astype(np.float64)
        result[role] = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return result
