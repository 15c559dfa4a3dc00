"""What a source is: paths found, files told apart by what they begin with, the things in memory named."""

import glob
import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mfpar.errors import RatingsError, StorageError

HEAD = 1 << 16  # bytes that are looked at to find out what a file is
KINDS = {b"PAR1": "parquet", b"%%MatrixMarket": "mtx", b"PK\3\4": "npz", b"\x89HDF": "hdf5"}


def expand(sources: Any) -> Iterator[Any]:
    """All sources one by one: files as Path (patterns and lists resolved, in order), things in memory as they are.

    Raises
    ------
    RatingsError
        A file is missing, a pattern matches nothing, or a list is empty.
    """
    listed = isinstance(sources, list) or (
        isinstance(sources, tuple) and any(isinstance(source, (str, os.PathLike)) for source in sources)
    )
    if listed:
        if not sources:
            raise RatingsError("no source of ratings is given; name a file at least")
        for source in sources:
            yield from expand(source)
    elif isinstance(sources, (str, os.PathLike)):
        yield from _files(Path(sources))
    else:
        yield sources


def files_of(sources: Any) -> list[Path]:
    """The files among all sources; raises what `expand` raises."""
    return [source for source in expand(sources) if isinstance(source, Path)]


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        raise RatingsError(f"{path}: is a folder; name files, or a pattern like {path / '*.csv'}")
    if path.is_file():
        yield path
    elif path.exists():  # what was read of a pipe to see what comes would be lost
        raise RatingsError(f"{path}: is no regular file, and can't be read more than once; write it to a file first")
    elif glob.has_magic(str(path)):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        files = [name for name in found if name.is_file()]
        if not files:
            raise RatingsError(f"{path}: no file matches this pattern")
        yield from files
    else:
        raise RatingsError(f"{path}: no such file")


def name_of(source: Any) -> str:
    """What to call a source in a message."""
    if isinstance(source, Path):
        return str(source)
    if hasattr(source, "tocoo"):
        return "the given matrix"
    return "the given arrays" if isinstance(source, (tuple, dict)) else "the given table"


def look_at(path: Path) -> tuple[str, bool, bytes]:
    """Tell what a file is by how it begins.

    Returns
    -------
    kind : "parquet", "mtx", "npz", "hdf5" or "text"
    gzipped : bool
    head : bytes
        Its first bytes, decompressed.

    Raises
    ------
    RatingsError
        A gzip file that is damaged from the start.
    StorageError
        The file can't be opened.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
        gzipped = head.startswith(b"\x1f\x8b")
        if gzipped:
            with gzip.open(path) as file:
                head = file.read(HEAD)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise damaged_gzip(path) from error
    except OSError as error:
        raise StorageError(f"{path}: can't be read: {error.strerror or error}") from error
    kind = next((kind for magic, kind in KINDS.items() if head.startswith(magic)), "text")
    return kind, gzipped, head


def damaged_gzip(path: Path) -> RatingsError:
    """The error for a gzip file that does not decompress to its end."""
    return RatingsError(f"{path}: is a truncated or damaged gzip file; get it again")
