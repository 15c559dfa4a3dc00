"""The blocked HDF5 file, for writing; its layout is in docs/format.md, its reader in `mfpar.blockfile`."""

import dataclasses
import hashlib
import itertools
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mfpar.atomic import DiskFile
from mfpar.blockfile import (
    FORMAT,
    PARTS,
    SIDES,
    VERSION,
    Header,
    arrays_of,
    checksum_of,
    combined,
    digest,
    index_dtype,
)
from mfpar.grid import Grid

CHUNK = 1 << 17  # ratings in a chunk of HDF5
BUFFER = 1 << 20  # ratings that are collected before they are written


class BlockedWriter:
    """Writes a blocked file in order: ids of both sides, then all blocks of both parts, then `finish`.

    Parameters
    ----------
    path : a temporary name (see `mfpar.atomic.replacing`)
    grid : Grid
    weighted : training ratings have weights
    """

    def __init__(self, path: Path, grid: Grid, weighted: bool = False):
        self.grid = grid
        self._cuts = dict(zip(SIDES, (grid.row_cuts, grid.col_cuts), strict=True))
        self._counts = {side: np.zeros(int(cuts[-1]), np.int64) for side, cuts in self._cuts.items()}
        self._disk = DiskFile(path)
        self._file = h5py.File(self._disk, "w", libver="latest")
        dtypes: dict[str, Any] = {
            "rows": index_dtype(grid.row_sizes),
            "cols": index_dtype(grid.col_sizes),
            "values": np.dtype(np.float32),
            "weights": np.dtype(np.float32),
        }
        self._parts = {
            part: _PartWriter(
                self._file.create_group(part), grid.size, {name: dtypes[name] for name in arrays_of(part, weighted)}
            )
            for part in PARTS
        }

    def write_ids(self, side: str, ids: np.ndarray, order: np.ndarray) -> None:
        """Write one side's table.

        Parameters
        ----------
        side : "rows" or "cols"
        ids : int64[count] or bytes[count]
            In row (column) order.
        order : int64[count]
            Positions of `ids` in ascending order of id.
        """
        group = self._file.create_group(side)
        stored = ids.astype(h5py.string_dtype("utf-8", ids.dtype.itemsize)) if ids.dtype.kind == "S" else ids
        group["ids"], group["order"], group["cuts"] = stored, order, self._cuts[side].astype(np.int64)

    def append(
        self,
        part: str,
        i: int,
        j: int,
        rows: np.ndarray,
        cols: np.ndarray,
        values: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> None:
        """Append block (i, j) of a part; blocks come in row-major order, empty ones may be left out.

        Parameters
        ----------
        rows, cols : integer[nnz]
            Indices inside the blocks.
        values : float32[nnz]
        weights : float32[nnz]
            For the training part of a weighted file, and only there.
        """
        arrays = (rows, cols, values) if weights is None else (rows, cols, values, weights)
        self._parts[part].append(i * self.grid.size + j, *arrays)
        self._disk.check()
        if part == "train":
            for side, block, indices in (("rows", i, rows), ("cols", j, cols)):
                first, last = self._cuts[side][block : block + 2]
                self._counts[side][first:last] += np.bincount(indices, minlength=last - first)

    def finish(self, header: Header) -> str:
        """Write what is left and the header, close the file, and return the checksum of the whole content."""
        for part in self._parts.values():
            part.finish()
        for side, counts in self._counts.items():
            group, cuts = self._file[side], self._cuts[side]
            group["counts"] = counts
            inside = [slice(a, b) for a, b in itertools.pairwise(cuts)]
            group["checksums"] = np.stack(
                [digest(*(group[name][s] for name in ("ids", "order", "counts"))) for s in inside]
            )
        for name, value in dataclasses.asdict(header).items():
            self._file.attrs[name] = np.float64(value) if isinstance(value, float) else np.int64(value)
        checksum = checksum_of(header, self._file)
        self._file.attrs.update({"format": FORMAT, "version": VERSION, "checksum": checksum})
        self.close()
        self._disk.check()
        return checksum

    def close(self) -> None:
        """Close the file, finished or not."""
        self._file.close()
        self._disk.close()


class _PartWriter:
    """One part's arrays, written through a buffer, with running checksums of the strip at hand."""

    def __init__(self, group: h5py.Group, size: int, dtypes: dict[str, Any]):
        self._group, self._size, self._dtypes = group, size, dtypes
        self._counts = np.zeros(size * size, np.int64)
        self._checksums = np.empty((0, 32), np.uint8)
        self._shas = [hashlib.sha256() for _ in dtypes]
        self._buffer: list[tuple[np.ndarray, ...]] = []
        self._buffered = self._written = 0
        for name, dtype in dtypes.items():
            group.create_dataset(name, (0,), dtype, chunks=(CHUNK,), maxshape=(None,))

    def append(self, block: int, *arrays: np.ndarray) -> None:
        self._close_strips(block // self._size)
        cast = tuple(np.ascontiguousarray(a, dtype) for a, dtype in zip(arrays, self._dtypes.values(), strict=True))
        for sha, array in zip(self._shas, cast, strict=True):
            sha.update(array)
        self._counts[block] = len(cast[0])
        self._buffer.append(cast)
        self._buffered += len(cast[0])
        if self._buffered >= BUFFER:
            self._flush()

    def _close_strips(self, upto: int) -> None:
        """Settle the checksums of the strips before `upto`, also of those that hold nothing."""
        while len(self._checksums) < upto:
            self._checksums = np.vstack([self._checksums, combined(self._shas)])
            self._shas = [hashlib.sha256() for _ in self._dtypes]

    def _flush(self) -> None:
        end = self._written + self._buffered
        for name, pieces in zip(self._dtypes, zip(*self._buffer, strict=True), strict=False):
            self._group[name].resize((end,))
            self._group[name][self._written : end] = np.concatenate(pieces)
        self._buffer, self._buffered, self._written = [], 0, end

    def finish(self) -> None:
        self._flush()
        self._close_strips(self._size)
        self._group["offsets"] = np.concatenate(([0], np.cumsum(self._counts)))
        self._group["checksums"] = self._checksums
