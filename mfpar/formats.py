"""Opening HDF5 files of ours: what one says that it is, and what is said of one that can't be read."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import h5py

from mfpar.errors import FormatError, MfparError, StorageError


def format_of(path: Path) -> str:
    """What an HDF5 file says it is, or "" for anything else."""
    try:
        with h5py.File(path, "r") as file:
            return str(file.attrs.get("format", ""))
    except (OSError, KeyError, ValueError, RuntimeError):  # whoever opens it as what it should be says what is wrong
        return ""


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
    if file.attrs["version"] != version:
        has = f"has format version {file.attrs['version']}"
        raise FormatError(f"{path}: {has}, this mfpar reads {version}; make it again with {maker}")


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever h5py raises on a bad file into one FormatError that names the file and the part."""
    try:
        yield
    except MfparError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
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
