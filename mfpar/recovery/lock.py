"""One run at a time in a folder of checkpoints: a lock that ends with the process that holds it, however that ends."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from mfpar.atomic import storage_errors
from mfpar.errors import StorageError

NAME = ".lock"
PATIENCE = 5.0  # seconds that a process which was killed has to be gone
ELSEWHERE = 30.0  # on another host: a file server gives back what a host that died had locked within a minute or two
INTERVAL = 0.05


class Lock:
    """Held from here on, until `release`. Local.

    Attributes
    ----------
    held : bool
        False on file systems that have no locks.

    Raises
    ------
    StorageError
        Another run holds it, or the folder can't be written to.
    """

    def __init__(self, folder: Path):
        path, self.held = folder / NAME, False
        with storage_errors(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        begun = time.monotonic()
        while not self._acquire():
            holder = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip() or "unknown"
            here = holder.endswith(f" on {socket.gethostname()}") or holder == "unknown"
            if time.monotonic() - begun > (PATIENCE if here else ELSEWHERE):
                self.release()
                raise StorageError(
                    f"{folder}: another run keeps its checkpoints there ({holder}); "
                    f"choose another folder, or end that run first"
                )
            time.sleep(INTERVAL)

    def release(self) -> None:
        """Let another run have it; never raises."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _acquire(self) -> bool:
        """Whether there is nothing to wait for any more."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR)
        self.held = True
        with contextlib.suppress(OSError):  # who it is matters to messages only
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return True
