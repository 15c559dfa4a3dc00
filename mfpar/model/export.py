"""Writes a model as one NumPy archive, a chunk at a time."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mfpar.atomic import refuse_existing, replacing
from mfpar.model.model import Model

CHUNK = 1 << 22  # bytes


def export(model: Model, path: str | Path, force: bool = False) -> None:
    """Write the arrays P, Q, row_bias, col_bias, row_ids, col_ids, mean and base, for ``numpy.load``; ids int64 or str.

    The same model gives the same bytes.

    Raises
    ------
    OutputExistsError
        `path` exists and `force` is not set, or it is the model.
    StorageError
        It could not be written; nothing is left behind.
    """
    path = Path(path)
    refuse_existing(path, force, [model.path])
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
        for name in ("P", "Q", "row_bias", "col_bias"):
            table = getattr(model, name)
            _write(archive, name, table.dtype, table.shape, table.chunks(_rows(table.dtype, table.shape)))
        for name in ("row_ids", "col_ids"):
            ids = getattr(model, name)
            _write(archive, name, ids.dtype, (len(ids),), ids.chunks(_rows(ids.dtype, (len(ids),))))
        for name in ("mean", "base"):
            number = np.array(getattr(model, name))
            _write(archive, name, number.dtype, number.shape, [number])


def _rows(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    return max(1, CHUNK // (dtype.itemsize * (shape[1] if len(shape) > 1 else 1)))


def _write(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...], chunks: Iterable[np.ndarray]
) -> None:
    """One member of the archive: a header of NumPy's format, then the chunks as they come."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    # ZipInfo made by hand is dated 1980, whenever it is written.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for chunk in chunks:
            member.write(np.ascontiguousarray(chunk).data)
