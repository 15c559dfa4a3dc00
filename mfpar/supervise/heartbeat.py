"""The side of a rank: signs of life for the supervisor, and an eye on what it wants."""

import atexit
import contextlib
import os
import secrets
import signal
import socket
import threading
import time
from pathlib import Path

from mfpar.parallel import progress
from mfpar.parallel.launch import SHARED_FOLDER, launched_rank
from mfpar.parallel.processes import Process
from mfpar.supervise.folder import ENDING, PERIOD, Beat, Order

FOLDER = "MFPAR_HEARTBEAT"  # the variable that names the folder of the job


def start() -> None:
    """Give signs of life from now on, if this process is a rank of a supervised job. Local, before MPI starts.

    A daemon thread writes one every second. It ends the process at once where the job is over: the folder is gone, or
    the supervisor is, or it has been silent for too long. Where the supervisor asks to stop, it sends the process
    SIGUSR1, as soon as something handles it.
    """
    if folder := os.environ.get(FOLDER):
        _make_shared_folder()
        heart = _Heart(Path(folder))
        heart.say()  # the first sign is given by the time that this returns
        threading.Thread(target=heart.run, name="mfpar-heartbeat", daemon=True).start()


class _Heart:
    """What beats."""

    def __init__(self, folder: Path):
        self._folder = folder
        # Process ids of two containers may be alike, and so may the names of their hosts.
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}{ENDING}"
        self._path = folder / name
        self._process = Process.own()
        self._count = 0
        self._heard, self._silence = 0, 0.0  # of the supervisor: its last beat, and the seconds since
        self._stopping = False

    def run(self) -> None:
        """Beat until the job is over, then end the process."""
        presence = progress.Presence(PERIOD)
        while self.say():
            time.sleep(PERIOD)
            self._silence += presence.look()
            if not self._obey():
                break
        os.kill(os.getpid(), signal.SIGKILL)

    def say(self) -> bool:
        """Whether there is still somebody to say it to."""
        beat = Beat(launched_rank(), self._process, self._count, progress.used())
        try:
            beat.write(self._path)
            self._count += 1
        except FileNotFoundError:
            with contextlib.suppress(OSError):
                return self._folder.exists()
        except OSError:  # of the file system, and nothing that ends a job
            return True
        return True

    def _obey(self) -> bool:
        """Whether the supervisor lives."""
        order = Order.read(self._folder)
        if order is None:
            return True  # what could not be read once is not gone
        if order.process.near(self._process) and not order.process.alive:
            return False
        if order.count != self._heard:
            self._heard, self._silence = order.count, 0.0
        if order.stop and not self._stopping and callable(signal.getsignal(signal.SIGUSR1)):
            self._stopping = True
            os.kill(os.getpid(), signal.SIGUSR1)
        return not order.limit or self._silence < order.limit


def _make_shared_folder() -> None:
    """Make this host's folder for Open MPI's shared memory, or let it choose one where that can't be."""
    folder = os.environ.get(SHARED_FOLDER)
    if not folder:
        return
    try:
        Path(folder).mkdir(0o700, exist_ok=True)
    except OSError:
        del os.environ[SHARED_FOLDER]
        return
    atexit.register(_leave, folder)


def _leave(folder: str) -> None:
    with contextlib.suppress(OSError):  # the last rank of a host removes it
        os.rmdir(folder)
