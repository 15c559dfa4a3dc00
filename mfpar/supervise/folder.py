"""The folder of a supervised job: small files, on a file system that all its hosts share, by which all know of all.

Every rank writes a file that says where it is and that it lives; the supervisor writes one that says the same of
itself, and what it wants. A rank that finds the folder gone, or the supervisor silent, ends itself: so a job that was
given up ends everywhere, also on hosts that no message reaches any more.
"""

import contextlib
import glob
import json
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from mfpar.atomic import storage_errors
from mfpar.parallel.processes import Process

PERIOD = 1.0  # seconds between beats
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Open MPI keeps it on Linux
ROOM = 32 << 20  # bytes of it that mpirun and its ranks need; those with too little for messages find another way
ENDING, ORDER, TICKS = ".beat", "supervisor", ("tick", "tock")
OLD = 86_400.0  # seconds; clocks of hosts differ by less
SIZE = 1000  # bytes of such a file
Word = TypeVar("Word", "Beat", "Order")


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself.

    Attributes
    ----------
    rank : int
    process : Process
    count : int
        Of its beats so far.
    used : float
        Seconds of CPU time; see `mfpar.parallel.progress`.
    """

    rank: int
    process: Process
    count: int
    used: float

    def write(self, path: Path) -> None:
        """Write it over the one before; only the first creates the file."""
        _write(path, asdict(self), new=not self.count)

    @staticmethod
    def read(path: Path) -> "Beat | None":
        """A rank's last beat; None where there is none that can be read."""
        return _read(Beat, path)


@dataclass(frozen=True)
class Order:
    """What a supervisor says: that it lives, and whether ranks shall stop.

    Attributes
    ----------
    process : Process
    count : int
        Of its beats so far.
    limit : float
        Seconds without one after which ranks end themselves; 0: they never do.
    stop : bool
    """

    process: Process
    count: int
    limit: float
    stop: bool

    @staticmethod
    def read(folder: Path) -> "Order | None":
        """The supervisor's last word; None where there is none that can be read."""
        return _read(Order, folder / ORDER)


class RunFolder:
    """The folder, on the side of the supervisor, whose thread keeps it alive; a context manager that removes it.

    Parameters
    ----------
    output : Path
        Beside which it lies.
    limit : seconds, see `Order`

    Raises
    ------
    StorageError
        It can't be made.
    """

    def __init__(self, output: Path, limit: float):
        self.token = secrets.token_hex(4)
        self.path = output.absolute().with_name(f".{output.name}.{self.token}.run")
        self._limit, self._stop = limit, threading.Event()
        self._over = threading.Event()
        self._count = 0
        with storage_errors(self.path):
            remove_abandoned(output)
            self.path.mkdir(0o700)
            try:
                self._tell()
            except OSError:
                _remove(self.path)
                raise
        self._thread = threading.Thread(target=self._beat, name="mfpar-supervisor", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def stop(self) -> None:
        """Tell all ranks to stop, within a second or so."""
        self._stop.set()

    def beats(self) -> Iterator[tuple[str, Beat]]:
        """The last beats of all ranks, with a name for each."""
        with contextlib.suppress(OSError):
            for path in sorted(self.path.glob(f"*{ENDING}")):
                if beat := Beat.read(path):
                    yield path.name, beat

    def remove(self) -> None:
        """Remove the folder: ranks that are left end themselves."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(PERIOD)
        _remove(self.path)

    def _beat(self) -> None:
        while not self._over.wait(PERIOD):
            with contextlib.suppress(OSError):
                self._tell()

    def _tell(self) -> None:
        order = Order(Process.own(), self._count, self._limit, self._stop.is_set())
        _write(self.path / ORDER, asdict(order), new=not self._count)
        # A change of the folder itself lets NFS notice what others have changed in it.
        names = [self.path / TICKS[(self._count + shift) % 2] for shift in (0, 1)]
        if self._count:
            names[1].rename(names[0])
        else:
            names[0].touch()
        self._count += 1


def _write(path: Path, content: dict[str, Any], new: bool) -> None:
    """Write over what is there, which takes no room of a disk that is full; what is read meanwhile may be torn."""
    descriptor = os.open(path, os.O_WRONLY | (os.O_CREAT if new else 0), 0o600)
    try:
        os.pwrite(descriptor, json.dumps(content).ljust(SIZE).encode(), 0)
    finally:
        os.close(descriptor)  # now a file system of several machines shows it to the others


def _read(kind: type[Word], path: Path) -> Word | None:
    """What somebody has written; None where it can't be read, or is something else."""
    try:
        content = json.loads(path.read_text())
        return kind(**content | {"process": Process(**content["process"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _age(folder: Path) -> float:
    """Seconds since a folder has changed, as every beat of a supervisor changes its own; 0 where it is gone."""
    with contextlib.suppress(OSError):
        return time.time() - folder.stat().st_mtime
    return 0.0


def _remove(folder: Path) -> None:
    """Take away its name, so that nobody writes into it any more, and then the folder."""
    gone = folder.with_suffix(".over")
    with contextlib.suppress(OSError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def shared_folder(token: str) -> Path:
    """Where on a host the ranks of a job have Open MPI's shared memory, which stays behind where ranks are killed.

    A page of it that finds no room ends a process by SIGBUS: where there is little, it lies on the disk.
    """
    memory, disk = _shared_folders(token)
    if not os.access(SHARED_MEMORY, os.W_OK):
        return disk
    room = os.statvfs(SHARED_MEMORY)
    return memory if room.f_bavail * room.f_frsize >= ROOM else disk


def _shared_folders(token: str) -> tuple[Path, Path]:
    """All that such a folder may be: in memory, on the disk."""
    name = f"mfpar-{token}"
    return SHARED_MEMORY / name, Path(tempfile.gettempdir()) / name


def remove_abandoned(output: Path) -> None:
    """Remove what supervisors of this output have left, which ends their ranks: those that were killed on this machine.

    Of others only what nobody has touched for a day, as where a machine was started anew since.
    """
    here = Process.own()
    folder = output.absolute().parent
    for path in folder.glob(f".{glob.escape(output.name)}.????????.over"):  # half removed
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f".{glob.escape(output.name)}.????????.run"):
        order = Order.read(path)
        if (order and order.process.near(here) and not order.process.alive) or _age(path) > OLD:
            _remove(path)
            for shared in _shared_folders(path.suffixes[-2][1:]):
                shutil.rmtree(shared, ignore_errors=True)
