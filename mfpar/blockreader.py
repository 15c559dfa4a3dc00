"""Ratings of a blocked file read straight from where they lie, into arrays that are there already.

HDF5 keeps Python's lock while it reads, and its chunk cache is one copy more. The datasets of a blocked file have no
filters: each is a number of extents, runs of bytes somewhere in one file or, if it is virtual, in several. HDF5 is
asked where they are, once; the reading itself is the operating system's.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import h5py
import numpy as np

from mfpar.errors import FormatError, StorageError

Extent = tuple[int, int, Path, int]  # first element, elements, file, byte where they begin


def extents(dataset: h5py.Dataset, path: Path, begin: int, end: int) -> Iterator[Extent]:
    """Where the elements begin … end − 1 of a one-dimensional dataset of the file `path` lie, in order.

    Raises
    ------
    FormatError
        They are compressed, or not stored at all.
    """
    if begin >= end:
        return
    if dataset.is_virtual:
        for source in sorted(dataset.virtual_sources(), key=lambda source: source.vspace.get_select_bounds()[0]):
            (first,), (last,) = source.vspace.get_select_bounds()
            if first < end and begin <= last:
                other = path.resolve().parent / source.file_name  # HDF5 too follows a link to the master
                with h5py.File(other, "r") as file:
                    inside = max(begin - first, 0), min(end, last + 1) - first
                    for at, count, where, byte in extents(file[source.dset_name], other, *inside):
                        yield first + at, count, where, byte
        return
    if dataset.id.get_create_plist().get_nfilters():
        raise FormatError(f"{path}: {dataset.name} is compressed, and only plain data can be streamed; convert again")
    size = dataset.chunks[0] if dataset.chunks else len(dataset)
    for at in range(begin // size * size, end, size):
        byte = dataset.id.get_chunk_info_by_coord((at,)).byte_offset if dataset.chunks else dataset.id.get_offset()
        if byte is None:
            raise FormatError(f"{path}: {dataset.name} is incomplete; convert again")
        yield at, min(size, len(dataset) - at), path, byte


class Reader:
    """Reads elements of a one-dimensional dataset, in any thread, without Python's lock; a context manager. Local.

    Parameters
    ----------
    dataset : h5py.Dataset
    path : its file
    begin, end : the elements that will be asked for

    Attributes
    ----------
    dtype : numpy.dtype
    """

    def __init__(self, dataset: h5py.Dataset, path: Path, begin: int, end: int):
        self.dtype = np.dtype(dataset.dtype)
        self._path, self._name = path, dataset.name
        found = list(extents(dataset, path, begin, end))
        self._firsts = [first for first, *_ in found]
        self._descriptors: dict[Path, int] = {}
        try:
            for _, _, file, _ in found:
                if file not in self._descriptors:
                    self._descriptors[file] = os.open(file, os.O_RDONLY)
        except OSError as error:
            self.close()
            raise StorageError(f"{path}: {error.filename} can't be read: {os.strerror(error.errno or 0)}") from error
        self._extents = [(count, self._descriptors[file], byte) for _, count, file, byte in found]

    def read(self, begin: int, out: np.ndarray) -> None:
        """Fill `out`, contiguous and of this dtype, with the elements from `begin` on.

        Raises
        ------
        FormatError
            The file ends before.
        StorageError
            It can't be read.
        """
        done = 0
        while done < len(out):
            number = bisect_right(self._firsts, begin + done) - 1
            count, descriptor, byte = self._extents[number]
            skip = begin + done - self._firsts[number]
            part = out[done : done + count - skip]
            self._fill(descriptor, part, byte + skip * self.dtype.itemsize)
            done += len(part)

    def _fill(self, descriptor: int, part: np.ndarray, byte: int) -> None:
        rest = memoryview(part).cast("B")
        while len(rest):
            try:
                got = os.preadv(descriptor, [rest], byte)
            except OSError as error:
                raise StorageError(f"{self._path}: {self._name} can't be read: {error.strerror}") from error
            if not got:
                raise FormatError(f"{self._path}: is truncated in {self._name}; make it again")
            rest, byte = rest[got:], byte + got

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors = {}
