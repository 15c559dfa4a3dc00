"""The blocked HDF5 file, for writing; its layout is in docs/format.md, its reader in `mfpar.blockfile`."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mfpar.atomic import DiskFile
from mfpar.blockfile import FORMAT, PARTS, SIDES, VERSION, Header, arrays_of, checksum_of, combined, index_dtype
from mfpar.grid import Grid
from mfpar.sharded import new_file, show_shards

CHUNK = 1 << 17  # ratings in a chunk of HDF5
BUFFER = 12 << 20  # bytes that are collected before they are written
TABLE = ("ids", "order", "counts")


class BlockedWriter:
    """Writes a blocked file, or the shard of one: all blocks of both parts, the tables of both sides, then `finish`.

    Parameters
    ----------
    path : a temporary name (see `mfpar.atomic.replacing`)
    grid : Grid
    weighted : training ratings have weights
    first, last : the row-blocks and column-blocks that a shard has; all without them
    """

    def __init__(self, path: Path, grid: Grid, weighted: bool = False, first: int = 0, last: int | None = None):
        self.grid, self._first, self._last = grid, first, grid.size if last is None else last
        self._disk = DiskFile(path)
        self._file = h5py.File(self._disk, "w", libver="latest")
        dtypes: dict[str, Any] = {
            "rows": index_dtype(grid.row_sizes),
            "cols": index_dtype(grid.col_sizes),
            "values": np.dtype(np.float32),
            "weights": np.dtype(np.float32),
        }
        self._parts = {
            part: _Strips(self._file.create_group(part), {name: dtypes[name] for name in arrays_of(part, weighted)})
            for part in PARTS
        }
        self._lengths = {part: np.zeros((self._last - first) * grid.size, np.int64) for part in PARTS}
        self._tables: dict[str, _Strips] = {}

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
        self._parts[part].append(i - self._first, *arrays)
        self._lengths[part][(i - self._first) * self.grid.size + j] = len(values)
        self._disk.check()

    def append_ids(self, side: str, block: int, ids: np.ndarray, order: np.ndarray, counts: np.ndarray) -> None:
        """Append rows (columns) to one side's table; they come in order, those of a block in one piece or several.

        Parameters
        ----------
        side : "rows" or "cols"
        block : to which they belong
        ids : int64[count] or bytes[count]
            Of one dtype, whichever rows they are of.
        order : int64[count]
            A piece of the positions of all ids in ascending order of id.
        counts : int64[count]
            Their training ratings.
        """
        if side not in self._tables:
            text = ids.dtype.kind == "S"
            of_ids = h5py.string_dtype("utf-8", ids.dtype.itemsize) if text else np.dtype(np.int64)
            dtypes = dict(zip(TABLE, (of_ids, np.dtype(np.int64), np.dtype(np.int64)), strict=True))
            cuts = self.grid.cuts(side)
            rows = int(cuts[self._last] - cuts[self._first])
            self._tables[side] = _Strips(self._file.create_group(side), dtypes, rows)
        self._tables[side].append(block - self._first, ids, order, counts)
        self._disk.check()

    def finish(self, header: Header | None = None) -> str:
        """Write what is left, and close the file; a shard has no header.

        Returns
        -------
        str
            The checksum of the whole content; "" of a shard.
        """
        size = self._last - self._first
        for part, strips in self._parts.items():
            strips.finish(size)
            self._file[part]["offsets"] = np.concatenate(([0], np.cumsum(self._lengths[part])))
        for table in self._tables.values():
            table.finish(size)
        checksum = "" if header is None else _conclude(self._file, self.grid, header)
        self.close()
        self._disk.check()
        return checksum

    def close(self) -> None:
        """Close the file, finished or not."""
        self._file.close()
        self._disk.close()


def write_master(path: Path, grid: Grid, header: Header, shards: Sequence[Path]) -> str:
    """Write a blocked file that shows shards, which have all blocks in order, and return its content's checksum."""
    with new_file(path) as target:
        names = [f"{part}/{name}" for part in PARTS for name in arrays_of(part, header.weighted)]
        show_shards(target, shards, [*names, *(f"{side}/{name}" for side in SIDES for name in TABLE)])
        ends = dict.fromkeys(PARTS, 0)
        found: dict[str, list[np.ndarray]] = {}
        for shard in shards:
            with h5py.File(shard, "r") as source:
                for part in PARTS:
                    offsets = source[part]["offsets"][1:] + ends[part]
                    found.setdefault(f"{part}/offsets", [np.zeros(1, np.int64)]).append(offsets)
                    ends[part] = int(offsets[-1]) if len(offsets) else ends[part]
                for group in (*PARTS, *SIDES):
                    if group in source:
                        found.setdefault(f"{group}/checksums", []).append(source[group]["checksums"][()])
        for name, pieces in found.items():
            target[name] = np.concatenate(pieces)
        return _conclude(target, grid, header)


def _conclude(file: h5py.File, grid: Grid, header: Header) -> str:
    """Write the cuts and the header of a file that has everything else."""
    for side in SIDES:
        file[side]["cuts"] = grid.cuts(side).astype(np.int64)
    for name, value in dataclasses.asdict(header).items():
        file.attrs[name] = np.float64(value) if isinstance(value, float) else np.int64(value)
    checksum = checksum_of(header, file)
    file.attrs.update({"format": FORMAT, "version": VERSION, "checksum": checksum})
    return checksum


class _Strips:
    """Arrays of one length, written through a buffer, with running checksums of the strip at hand.

    Parameters
    ----------
    group : h5py.Group
        Where they and, after `finish`, the checksums of all strips lie.
    dtypes : by name
    rows : their length, where it is known
    """

    def __init__(self, group: h5py.Group, dtypes: dict[str, Any], rows: int | None = None):
        self._group, self._dtypes, self._growing = group, dtypes, rows is None
        self._checksums: list[np.ndarray] = []
        self._shas = [hashlib.sha256() for _ in dtypes]
        self._buffer: list[tuple[np.ndarray, ...]] = []
        self._buffered = self._written = 0
        for name, dtype in dtypes.items():
            if rows is None:
                group.create_dataset(name, (0,), dtype, chunks=(CHUNK,), maxshape=(None,))
            else:
                group.create_dataset(name, (rows,), dtype)

    def append(self, strip: int, *arrays: np.ndarray) -> None:
        """Append to a strip; strips come in order, some may have nothing."""
        self._close_strips(strip)
        cast = tuple(np.ascontiguousarray(a, dtype) for a, dtype in zip(arrays, self._dtypes.values(), strict=True))
        for sha, array in zip(self._shas, cast, strict=True):
            sha.update(array.view(np.uint8))
        self._buffer.append(cast)
        self._buffered += sum(array.nbytes for array in cast)
        if self._buffered >= BUFFER:
            self._flush()

    def _close_strips(self, upto: int) -> None:
        """Settle the checksums of the strips before `upto`, also of those that hold nothing."""
        while len(self._checksums) < upto:
            self._checksums.append(combined(self._shas))
            self._shas = [hashlib.sha256() for _ in self._dtypes]

    def _flush(self) -> None:
        end = self._written + sum(len(piece[0]) for piece in self._buffer)
        for (name, dtype), pieces in zip(self._dtypes.items(), zip(*self._buffer, strict=True), strict=False):
            if self._growing:
                self._group[name].resize((end,))
            self._group[name][self._written : end] = np.concatenate(pieces).astype(dtype)
        self._buffer, self._buffered, self._written = [], 0, end

    def finish(self, strips: int) -> None:
        """Write what is left, and the checksums of so many strips."""
        self._flush()
        self._close_strips(strips)
        self._group["checksums"] = np.stack(self._checksums) if strips else np.empty((0, 32), np.uint8)
