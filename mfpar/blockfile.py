"""The blocked HDF5 file: ratings cut into a G × G grid, id tables, checksums. Byte for byte: docs/format.md.

The G blocks of a row-block lie one after the other (a *strip*), strips in row-block order, so that a rank reads one
contiguous slice. Every byte is under a SHA-256 that is verified when it is read.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_type_hints

import h5py
import numpy as np

from mfpar.blockreader import Reader
from mfpar.errors import FormatError, StorageError
from mfpar.formats import reading, require_ascent, require_dataset, require_format, require_hdf5
from mfpar.grid import Grid
from mfpar.sharded import require_shards, size_of

FORMAT = "mfpar blocked ratings"
VERSION = 2
SIDES = ("rows", "cols")
PARTS = ("train", "test")
CACHE = 1 << 20  # bytes of chunks that HDF5 keeps for each dataset: what is read once needs no more


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
    streams: int  # from which the ratings of a block of the training part come in turn
    mean: float  # of the training ratings
    deviation: float  # their standard deviation
    minimum: float
    maximum: float
    implicit: bool = False  # every pair is a rating of 1
    weighted: bool = False  # training ratings have weights


@dataclass(frozen=True)
class Strip:
    """Ratings of the row-blocks first … last − 1.

    Attributes
    ----------
    offsets : int64[last − first, G + 1]
        Block (first + i, j) lies at offsets[i, j] … offsets[i, j + 1] − 1 of the arrays below.
    rows, cols : uint16 or uint32 [nnz]
        Indices inside the row-block and the column-block. In the test part the index one past the block's last stands
        for an unknown id.
    values : float32[nnz]
    weights : float32[nnz] or None
        None where the file has none, and in the test part.
    """

    offsets: np.ndarray
    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray
    weights: np.ndarray | None = None


def arrays_of(part: str, weighted: bool) -> tuple[str, ...]:
    """Names of the datasets that hold a number for each rating of a part, in the order of their digest."""
    return ("rows", "cols", "values", *(("weights",) if weighted and part == "train" else ()))


def index_dtype(sizes: np.ndarray) -> np.dtype:
    """uint16 where every block's side, and the index one past it, allows; uint32 otherwise."""
    return np.dtype(np.uint16 if int(np.max(sizes)) < 2**16 else np.uint32)


def digest(*arrays: np.ndarray) -> np.ndarray:
    """uint8[32]: SHA-256 over the SHA-256 of each array's bytes."""
    return combined([hashlib.sha256(np.ascontiguousarray(array).view(np.uint8)) for array in arrays])


def combined(shas: list[Any]) -> np.ndarray:
    """uint8[32]: SHA-256 over the digests of some hashes."""
    return np.frombuffer(hashlib.sha256(b"".join(sha.digest() for sha in shas)).digest(), np.uint8)


def checksum_of(header: Header, file: h5py.File) -> str:
    """SHA-256 (hex) over the header and every table that vouches for the rest."""
    sha = hashlib.sha256(json.dumps(dataclasses.asdict(header), sort_keys=True).encode())
    names = [f"{side}/{name}" for side in SIDES for name in ("cuts", "checksums")]
    names += [f"{part}/{name}" for part in PARTS for name in ("offsets", "checksums")]
    for name in names:
        sha.update(np.ascontiguousarray(file[name][()]).view(np.uint8))
    return sha.hexdigest()


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
        require_hdf5(self.path)
        with self._reading("header"):
            self._closing = contextlib.ExitStack()
            self._file = self._closing.enter_context(h5py.File(self.path, "r", rdcc_nbytes=CACHE))
        try:
            with self._reading("header"):
                self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        attributes = self._file.attrs
        require_format(self._file, self.path, FORMAT, VERSION, "a blocked ratings file", "mfpar convert")
        require_shards(self._file, self.path, "blocked file")
        types = get_type_hints(Header)
        self.header = Header(**{name: kind(attributes[name].item()) for name, kind in types.items()})
        header, self.checksum = self.header, str(attributes["checksum"])
        self._require_datasets()
        if checksum_of(self.header, self._file) != self.checksum:
            raise FormatError(
                f"{self.path}: is damaged: header and tables do not match their checksum; convert the source again"
            )
        self.grid = Grid(self._file["rows/cuts"][()], self._file["cols/cuts"][()])
        for side, count in zip(SIDES, (header.rows, header.cols), strict=True):
            require_ascent(self.path, f"{side}/cuts", self.grid.cuts(side), count, 1)
        for part, count in zip(PARTS, (header.ratings, header.test_ratings), strict=True):
            require_ascent(self.path, f"{part}/offsets", self._file[f"{part}/offsets"][()], count, 0)

    def _require_datasets(self) -> None:
        """Raise FormatError unless every dataset has the type and shape that the header tells, and a file behind it."""
        file, path, header, most = self._file, self.path, self.header, size_of(self._file, self.path)
        grid = len(require_dataset(file, path, "rows/cuts", ("int64",), (None,), most)) - 1
        for side, count in zip(SIDES, (header.rows, header.cols), strict=True):
            require_dataset(file, path, f"{side}/cuts", ("int64",), (grid + 1,), most)
            require_dataset(file, path, f"{side}/checksums", ("uint8",), (grid, 32), most)
            require_dataset(file, path, f"{side}/ids", ("int64", "S"), (count,), most)
            for name in ("order", "counts"):
                require_dataset(file, path, f"{side}/{name}", ("int64",), (count,), most)
        for part, count in zip(PARTS, (header.ratings, header.test_ratings), strict=True):
            require_dataset(file, path, f"{part}/offsets", ("int64",), (grid**2 + 1,), most)
            require_dataset(file, path, f"{part}/checksums", ("uint8",), (grid, 32), most)
            for name in arrays_of(part, header.weighted):
                dtypes = ("uint16", "uint32") if name in SIDES else ("float32",)
                require_dataset(file, path, f"{part}/{name}", dtypes, (count,), most)

    def strip(self, part: str, first: int, last: int) -> Strip:
        """Read and verify the ratings of the row-blocks first … last − 1 of `part` ("train" or "test")."""
        size = self.grid.size
        with self._reading(f"{part} ratings"):
            group = self._file[part]
            offsets = group["offsets"][first * size : last * size + 1]
            begin, end = offsets[0], offsets[-1]
            arrays = {name: group[name][begin:end] for name in arrays_of(part, self.header.weighted)}
            strip = Strip(
                np.stack([offsets[i * size : (i + 1) * size + 1] for i in range(last - first)]) - begin, **arrays
            )
            for i, stored in enumerate(group["checksums"][first:last]):
                inside = slice(strip.offsets[i, 0], strip.offsets[i, -1])
                if not np.array_equal(digest(*(array[inside] for array in arrays.values())), stored):
                    raise FormatError(
                        f"{self.path}: is damaged in the {part} ratings of row-block {first + i}; convert again"
                    )
        if not self.grid.holds(first, strip.offsets, strip.rows, strip.cols, int(part == "test")):
            raise FormatError(f"{self.path}: has {part} ratings with indices outside their blocks; convert again")
        return strip

    def readers(self, part: str, first: int, last: int) -> tuple[np.ndarray, dict[str, Reader], np.ndarray]:
        """What it takes to read the ratings of the row-blocks first … last − 1 piece by piece, and to verify them.

        Returns
        -------
        offsets : int64[(last − first)·G + 1]
            Where each block of them begins in the datasets.
        readers : dict of Reader
            By the names of `arrays_of`, in their order; closed with this file.
        checksums : uint8[last − first, 32]
            The `digest` of each row-block's arrays.
        """
        size = self.grid.size
        with self._reading(f"{part} ratings"):
            group = self._file[part]
            offsets = group["offsets"][first * size : last * size + 1]
            ends = int(offsets[0]), int(offsets[-1])
            names = arrays_of(part, self.header.weighted)
            readers = {name: self._closing.enter_context(Reader(group[name], self.path, *ends)) for name in names}
            return offsets, readers, group["checksums"][first:last]

    def dtypes(self, part: str) -> dict[str, np.dtype]:
        """Types of the arrays of a part, by name."""
        with self._reading(f"{part} ratings"):
            return {name: self._file[part][name].dtype for name in arrays_of(part, self.header.weighted)}

    def pieces(self, part: str, i: int, most: int) -> Iterator[Strip]:
        """Read the ratings of row-block i of `part`, at most `most` at a time; they are verified when all have come."""
        size = self.grid.size
        with self._reading(f"{part} ratings"):
            group = self._file[part]
            offsets = group["offsets"][i * size : (i + 1) * size + 1]
            names = arrays_of(part, self.header.weighted)
            shas = [hashlib.sha256() for _ in names]
        for begin in range(int(offsets[0]), int(offsets[-1]), most):
            end = min(begin + most, int(offsets[-1]))
            with self._reading(f"{part} ratings"):
                arrays = {name: group[name][begin:end] for name in names}
            for sha, array in zip(shas, arrays.values(), strict=True):
                sha.update(array.view(np.uint8))
            yield Strip(np.clip(offsets - begin, 0, end - begin)[None], **arrays)
        if not np.array_equal(combined(shas), group["checksums"][i]):
            raise FormatError(f"{self.path}: is damaged in the {part} ratings of row-block {i}; convert again")

    def ids(self, side: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """Read and verify the ids of the row-blocks (side "rows") or column-blocks ("cols") first … last − 1.

        Returns
        -------
        int64[count] or bytes (UTF-8, fixed length) [count]
        """
        return self._table(side, first, last)[0]

    def id_dtype(self, side: str) -> np.dtype:
        """The type of a side's ids: int64, or h5py's string of UTF-8 of a fixed length."""
        with self._reading(f"ids of the {side}"):
            dtype: np.dtype = self._file[side]["ids"].dtype
            return dtype

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

    def counts(self, part: str = "train", first: int = 0, last: int | None = None) -> np.ndarray:
        """int64[last − first, G]: ratings of each block of the row-blocks first … last − 1 (None: G)."""
        size = self.grid.size
        last = size if last is None else last
        with self._reading("block offsets"):
            offsets: np.ndarray = self._file[part]["offsets"][first * size : last * size + 1]
            return np.diff(offsets).reshape(-1, size)

    def close(self) -> None:
        """Close the file, and what reads it."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
