"""Opening HDF5 files of ours: what one says that it is, and what is said of one that can't be read.

Nothing of a file is believed before it was checked: HDF5 gets to see only files whose metadata have checksums, and no
array is read before its type and shape are known to be right, and its size to be no larger than the files it lies in.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from mfpar.errors import FormatError, MfparError, StorageError
from mfpar.heaps import damaged_heap

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SUPERBLOCK = 2  # the least version of what an HDF5 file begins with; before, HDF5 kept no checksums of its metadata
PACKED = 1100  # bytes that one compressed byte stands for at most; deflate reaches 1,032


def format_of(path: Path) -> str:
    """What an HDF5 file says it is, or "" for anything else, one that is damaged among them."""
    try:
        with reading(path, "header"):
            require_hdf5(path)
            with h5py.File(path, "r") as file:
                return str(file.attrs.get("format", ""))
    except MfparError:
        return ""


def require_hdf5(path: Path, maker: str = "mfpar convert") -> None:
    """Raise an error unless a file begins as HDF5 files with checksums of their metadata do (h5py's libver="latest").

    HDF5 may go astray in damaged metadata that have none, and not come back.

    Raises
    ------
    FormatError
        It is another kind of file, or in HDF5's old format.
    StorageError
        It can't be read, or is no regular file, of which there might be no end, nor a beginning.
    """
    if path.exists() and not path.is_file():
        raise StorageError(f"{path}: is no regular file")
    try:
        with open(path, "rb") as file:
            start = file.read(len(SIGNATURE) + 1)
        heap = damaged_heap(path) if start.startswith(SIGNATURE) else None
    except OSError as error:
        reason = (
            "no permission to read it" if isinstance(error, PermissionError) else f"can't be read: {error.strerror}"
        )
        raise StorageError(f"{path}: {reason}") from error
    if not start.startswith(SIGNATURE):
        raise FormatError(f"{path}: is not an HDF5 file; make one with {maker}")
    if start[-1] < SUPERBLOCK or len(start) == len(SIGNATURE):
        raise FormatError(
            f"{path}: is in HDF5's old format, which has no checksums (or damaged); make it again with {maker}"
        )
    if heap is not None:
        raise FormatError(f"{path}: is damaged or truncated: its heap of strings at byte {heap}; make it again")


def require_dataset(
    file: h5py.File, path: Path, name: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...], most: int
) -> h5py.Dataset:
    """The dataset of a name; raises FormatError unless it is what it should be.

    Parameters
    ----------
    dtypes : as NumPy writes them, or "S" for strings of a fixed length
    shape : None stands for any number
    most : bytes of the files in which it may lie: it can't be larger, or there is nothing behind what it says
    """
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise FormatError(f"{path}: is damaged or foreign: it has no dataset {name}; make it again")
    kind = "S" if found.dtype.kind == "S" else found.dtype.name
    fits = found.shape is not None and len(found.shape) == len(shape)
    if kind not in dtypes or not fits or any(b not in (None, a) for a, b in zip(found.shape, shape, strict=True)):
        expected = f"{' or '.join(dtypes)} ({', '.join('any' if side is None else f'{side}' for side in shape)})"
        raise FormatError(
            f"{path}: is damaged or foreign: {name} is {found.dtype} {found.shape}, expected {expected}; make it again"
        )
    if not _is_held(found, most):
        raise _not_held(path, name, found)
    return found


def require_held(file: h5py.File, path: Path, most: int) -> None:
    """Raise FormatError if there is a dataset that is larger than `most` bytes, those of the files it may lie in."""

    def look(name: str, thing: object) -> FormatError | None:
        is_sound = not isinstance(thing, h5py.Dataset) or _is_held(thing, most)
        return None if is_sound else _not_held(path, name, thing)

    if problem := file.visititems(look):
        raise problem


def _is_held(dataset: h5py.Dataset, most: int) -> bool:
    packed = PACKED if dataset.id.get_create_plist().get_nfilters() else 1
    return bool((dataset.size or 0) * dataset.dtype.itemsize <= most * packed)


def _not_held(path: Path, name: str, dataset: h5py.Dataset) -> FormatError:
    return FormatError(f"{path}: is damaged: {name} is to be {dataset.shape}, more than the file holds; make it again")


def ascends(array: np.ndarray, last: int | None, least: int) -> bool:
    """Whether integers go from 0 to `last` (None: wherever) in steps of at least `least`."""
    sound = len(array) and array[0] == 0 and (last is None or array[-1] == last)
    return bool(sound and (array[:-1] <= array[1:] - least).all())


def require_ascent(path: Path, name: str, array: np.ndarray, last: int | None, least: int) -> None:
    """Raise FormatError unless an array goes from 0 to `last` (None: wherever) in steps of at least `least`."""
    if not ascends(array, last, least):
        where = "" if last is None else f" to {last}"
        raise FormatError(f"{path}: is damaged: {name} does not ascend from 0{where}; make it again")


def require_format(file: h5py.File, path: Path, expected: str, version: int, name: str, maker: str) -> None:
    """Raise FormatError unless an HDF5 file says that it is what is expected, in the version that this mfpar reads.

    Parameters
    ----------
    name, maker : what such a file is called, and the command that makes one; for the message
    """
    found = file.attrs.get("format")
    if found != expected:
        kind = "is HDF5" if found is None else f"is a file of kind {found!r}"
        raise FormatError(f"{path}: {kind}, not {name} of mfpar; make one with {maker}")
    has_version = file.attrs["version"]
    if not isinstance(has_version, np.integer) or has_version != version:
        has = f"has format version {has_version}"
        raise FormatError(f"{path}: {has}, this mfpar reads {version}; make it again with {maker}")


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever h5py raises on a bad file into one FormatError that names the file and the part."""
    try:
        yield
    except MfparError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError, OverflowError) as error:
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
