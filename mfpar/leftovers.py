"""Temporary files and folders: held by a process while it lives; what one that was killed has left, the next removes.

To hold is a shared lock (flock), which ends with the process, however that ends. On file systems without locks nothing
is ever removed.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def held(path: Path, folder: bool = False) -> Iterator[None]:
    """Hold a file, or a folder, which is made if it is missing; inside nobody takes it for left behind. Local.

    Raises
    ------
    OSError
        It can't be made.
    """
    descriptor = _hold(path, folder)
    try:
        yield
    finally:
        os.close(descriptor)


def remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove the files and folders of these names in a folder that nobody holds; never raises. Local."""
    with contextlib.suppress(OSError):
        for path in folder.glob(pattern):
            with unheld(path) as abandoned:
                if abandoned and path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif abandoned:
                    path.unlink(missing_ok=True)


@contextlib.contextmanager
def unheld(path: Path) -> Iterator[bool]:
    """Whether nobody holds a file or folder; inside nobody can begin to. Local."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def _hold(path: Path, folder: bool) -> int:
    while True:
        if folder:
            path.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDONLY | (0 if folder else os.O_CREAT), 0o666)
        except FileNotFoundError:
            if folder and path.parent.is_dir():
                continue  # removed again by somebody who found it empty
            raise
        with contextlib.suppress(OSError):  # no locks here
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        try:
            found = os.stat(path)
        except OSError:
            found = None
        if found and (found.st_dev, found.st_ino) == (os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino):
            return descriptor
        os.close(descriptor)  # somebody took it for left behind just before it was held
