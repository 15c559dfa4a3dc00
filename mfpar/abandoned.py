"""What killed processes have left half-written, told from what is being written now: by locks.

A process holds a lock on a temporary file or folder as long as it lives, however it ends. What nobody holds was
abandoned, and goes when the next one writes in its place. On file systems without locks nothing is taken for abandoned.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path


@contextlib.contextmanager
def held(path: Path, folder: bool = False) -> Iterator[None]:
    """Hold a file, or a folder, made if it is missing: for so long it is not taken for abandoned. Local.

    Raises
    ------
    OSError
        It can't be made.
    """
    descriptor = _held(path, folder)
    try:
        yield
    finally:
        os.close(descriptor)


def _held(path: Path, folder: bool) -> int:
    """A descriptor that holds it; made again if somebody took it for abandoned before it was held."""
    while True:
        try:
            if folder:
                with contextlib.suppress(FileExistsError):
                    path.mkdir(0o700)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if folder else os.O_CREAT), 0o666)
        except FileNotFoundError:
            if folder and path.parent.is_dir():
                continue
            raise
        with contextlib.suppress(OSError):  # no locks here
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether a file or folder that is there was abandoned; if so, nobody can hold it meanwhile. Local."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags | (os.O_RDONLY if path.is_dir() else os.O_RDWR))
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another one may have removed it since it was opened, and its owner made it again.
            abandoned = os.path.samestat(os.stat(path), os.fstat(descriptor))
        except OSError:  # somebody holds it, it is gone, or there are no locks here
            abandoned = False
        yield abandoned
    finally:
        os.close(descriptor)


def remove_abandoned(paths: Iterable[Path]) -> None:
    """Remove those files and folders of these that nobody holds, as far as that is possible. Local."""
    for path in paths:
        with claimed(path) as abandoned:
            if abandoned and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif abandoned:
                with contextlib.suppress(OSError):
                    path.unlink()
