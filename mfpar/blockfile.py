"""The blocked HDF5 file: ratings cut into a G × G grid, id tables, checksums. Layout byte for byte: docs/format.md.

The G blocks of a row-block lie one after the other (a *strip*), strips in row-block order, so that a rank reads one
contiguous slice. Every byte is under a SHA-256 that is verified when it is read.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from mfpar.diskfile import DiskFile
from mfpar.errors import FormatError, StorageError
from mfpar.grid import Grid

FORMAT = "mfpar blocked ratings"
VERSION = 1
SIDES = ("rows", "cols")
PARTS = ("train", "test")
CHUNK = 1 << 17  # ratings, ids a chunk
BUFFER = 1 << 20  # ratings that the writer collects before it writes


@dataclass(frozen=True)
class Header:
    """What a blocked file says of itself, stored as attributes of its root group."""

    rows: int  # m
    cols: int  # n
    ratings: int  # training ratings, duplicates settled
    test_ratings: int
    test_unknown: int  # test ratings whose row or column id has no training rating
    duplicates: int  # ratings dropped or merged because their row and column occurred again
    seed: int  # of the order of rows and columns, and of the held-out part
    streams: int  # interleaved runs inside a block of the training part
    mean: float  # of the training ratings
    deviation: float  # their standard deviation
    minimum: float
    maximum: float


@dataclass(frozen=True)
class Strip:
    """Ratings of the row-blocks first … last − 1.

    Attributes
    ----------
    offsets : int64[last − first, G + 1]
        Block (first + i, j) lies at offsets[i, j] … offsets[i, j + 1] − 1 of the three arrays.
    rows, cols : uint16 or uint32 [nnz]
        Indices inside the row-block and the column-block. In the test part the index one past the block's last stands
        for an unknown id.
    values : float32[nnz]
    """

    offsets: np.ndarray
    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray


def index_dtype(sizes: np.ndarray) -> np.dtype:
    """uint16 where every block's side, and the index one past it, allows; uint32 otherwise."""
    return np.dtype(np.uint16 if int(np.max(sizes)) < 2**16 else np.uint32)


def digest(*arrays: np.ndarray) -> np.ndarray:
    """uint8[32]: SHA-256 over the SHA-256 of each array's bytes."""
    return _combine([hashlib.sha256(np.ascontiguousarray(array).view(np.uint8)) for array in arrays])


def _combine(shas: list[Any]) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(b"".join(sha.digest() for sha in shas)).digest(), np.uint8)


def _checksum(header: Header, file: h5py.File) -> str:
    """SHA-256 (hex) over the header and every table that vouches for the rest."""
    sha = hashlib.sha256(json.dumps(dataclasses.asdict(header), sort_keys=True).encode())
    names = [f"{side}/{name}" for side in SIDES for name in ("cuts", "checksums")]
    names += [f"{part}/{name}" for part in PARTS for name in ("offsets", "checksums")]
    for name in names:
        sha.update(np.ascontiguousarray(file[name][()]).view(np.uint8))
    return sha.hexdigest()


def format_of(path: Path) -> str:
    """What an HDF5 file says it is: `FORMAT`, that of a model, or "" for anything else."""
    try:
        with h5py.File(path, "r") as file:
            return str(file.attrs.get("format", ""))
    except OSError:
        return ""


class BlockedFile:
    """A blocked file opened for reading; a context manager. Local: each rank opens its own.

    Parameters
    ----------
    path : path of the file

    Attributes
    ----------
    header : Header
    grid : Grid
    checksum : str
        Hex SHA-256 that identifies the whole content.

    Raises
    ------
    StorageError
        The file is missing or unreadable.
    FormatError
        It is no blocked file, of another version, truncated or damaged; on opening or in any later read.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise StorageError(f"{path}: no such file")
        with self._reading("header"):
            self._file = h5py.File(self.path, "r")
        try:
            with self._reading("header"):
                self._read_header()
        except BaseException:
            self._file.close()
            raise

    def _read_header(self) -> None:
        attributes = self._file.attrs
        if attributes.get("format") != FORMAT:
            raise FormatError(
                f"{self.path}: is HDF5 but not a blocked ratings file of mfpar; make one with mfpar convert"
            )
        if attributes["version"] != VERSION:
            raise FormatError(
                f"{self.path}: has format version {attributes['version']}, this mfpar reads {VERSION}; convert again"
            )
        self.header = Header(**{field.name: attributes[field.name].item() for field in dataclasses.fields(Header)})
        self.checksum: str = attributes["checksum"]
        if _checksum(self.header, self._file) != self.checksum:
            raise FormatError(
                f"{self.path}: is damaged: header and tables do not match their checksum; convert the source again"
            )
        self.grid = Grid(self._file["rows/cuts"][()], self._file["cols/cuts"][()])

    def strip(self, part: str, first: int, last: int) -> Strip:
        """Read and verify the ratings of the row-blocks first … last − 1 of `part` ("train" or "test")."""
        size = self.grid.size
        with self._reading(f"{part} ratings"):
            group = self._file[part]
            offsets = group["offsets"][first * size : last * size + 1]
            begin, end = offsets[0], offsets[-1]
            rows, cols, values = (group[name][begin:end] for name in ("rows", "cols", "values"))
            strip = Strip(
                np.stack([offsets[i * size : (i + 1) * size + 1] for i in range(last - first)]) - begin,
                rows,
                cols,
                values,
            )
            for i, stored in enumerate(group["checksums"][first:last]):
                inside = slice(strip.offsets[i, 0], strip.offsets[i, -1])
                if not np.array_equal(digest(rows[inside], cols[inside], values[inside]), stored):
                    raise FormatError(
                        f"{self.path}: is damaged in the {part} ratings of row-block {first + i}; convert again"
                    )
        return strip

    def ids(self, side: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """Read and verify the ids of the row-blocks (side "rows") or column-blocks ("cols") first … last − 1.

        Returns
        -------
        int64[count] or bytes (UTF-8, fixed length) [count]
        """
        return self._table(side, first, last)[0]

    def order(self, side: str) -> np.ndarray:
        """int64[count]: the positions of a side's ids in ascending order of id."""
        return self._table(side, 0, None)[1]

    def ratings_of(self, side: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """int64[count]: how many training ratings each row (or column) of these blocks has."""
        return self._table(side, first, last)[2]

    def _table(self, side: str, first: int, last: int | None) -> tuple[np.ndarray, ...]:
        last = self.grid.size if last is None else last
        with self._reading(f"ids of the {side}"):
            group = self._file[side]
            cuts = group["cuts"][first : last + 1]
            ids, order, counts = (group[name][cuts[0] : cuts[-1]] for name in ("ids", "order", "counts"))
            for b, stored in enumerate(group["checksums"][first:last]):
                inside = slice(cuts[b] - cuts[0], cuts[b + 1] - cuts[0])
                if not np.array_equal(digest(ids[inside], order[inside], counts[inside]), stored):
                    raise FormatError(
                        f"{self.path}: is damaged in the ids of the {side}, block {first + b}; convert again"
                    )
        return ids, order, counts

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        with reading(self.path, what):
            yield

    def counts(self, part: str = "train") -> np.ndarray:
        """int64[G, G]: ratings of each block."""
        with self._reading("block offsets"):
            return np.diff(self._file[part]["offsets"][()]).reshape(self.grid.size, self.grid.size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever h5py raises on a bad file into one FormatError that names the file and the part."""
    try:
        yield
    except FormatError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError, MemoryError) as error:
        text = str(error)
        if "signature not found" in text:
            raise FormatError(f"{path}: is not an HDF5 file; make one with mfpar convert") from error
        if "truncated" in text or "eof" in text:
            raise FormatError(f"{path}: is truncated; make it again") from error
        if isinstance(error, PermissionError):
            raise StorageError(f"{path}: no permission to read it") from error
        raise FormatError(
            f"{path}: is damaged or foreign: its {what} can't be read ({text.splitlines()[0] if text else error!r})"
        ) from error


class BlockedWriter:
    """Writes a blocked file in order: ids of both sides, then all blocks of both parts, then `finish`.

    Parameters
    ----------
    path : a temporary name (see `mfpar.atomic.replacing`)
    grid : Grid
    """

    def __init__(self, path: Path, grid: Grid):
        self.grid = grid
        self._cuts = dict(zip(SIDES, (grid.row_cuts, grid.col_cuts), strict=True))
        self._counts = {side: np.zeros(int(cuts[-1]), np.int64) for side, cuts in self._cuts.items()}
        self._disk = DiskFile(path)
        self._file = h5py.File(self._disk, "w", libver="latest")
        dtypes: dict[str, Any] = {
            "rows": index_dtype(grid.row_sizes),
            "cols": index_dtype(grid.col_sizes),
            "values": np.dtype(np.float32),
        }
        self._parts = {part: _PartWriter(self._file.create_group(part), grid.size, dtypes) for part in PARTS}

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

    def append(self, part: str, i: int, j: int, rows: np.ndarray, cols: np.ndarray, values: np.ndarray) -> None:
        """Append block (i, j) of a part; blocks come in row-major order, empty ones may be left out.

        Parameters
        ----------
        rows, cols : integer[nnz]
            Indices inside the blocks.
        values : float32[nnz]
        """
        self._parts[part].append(i * self.grid.size + j, rows, cols, values)
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
        checksum = _checksum(header, self._file)
        self._file.attrs.update({"format": FORMAT, "version": VERSION, "checksum": checksum})
        self.close()
        self._disk.check()
        return checksum

    def close(self) -> None:
        """Close the file, finished or not."""
        self._file.close()
        self._disk.close()


class _PartWriter:
    """One part's three arrays, written through a buffer, with running checksums of the strip at hand."""

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
            self._checksums = np.vstack([self._checksums, _combine(self._shas)])
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
