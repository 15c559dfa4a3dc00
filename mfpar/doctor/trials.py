"""What only trying tells: messages, shared memory, clocks, folders. Collective, within the ranks' guard."""

import contextlib
import fcntl
import os
import secrets
import socket
import time
from pathlib import Path

import numpy as np

from mfpar.atomic import sync
from mfpar.doctor.finding import FAILED, OK, Finding, judged
from mfpar.errors import StorageError
from mfpar.parallel.comm import Communicator, Message

TAG = 7
LARGE = 4 << 20  # bytes
ROUNDS = 5
CLOCKS = 1.0  # seconds that clocks may differ


def try_all(comm: Communicator, folders: list[Path]) -> list[Finding]:
    """All trials, in the order in which they are shown."""
    return [ring(comm), shared_memory(comm), clocks(comm), *(folder(comm, path) for path in folders)]


def ring(comm: Communicator) -> Finding:
    """Every rank sends to the next, and gets from the one before."""
    if comm.size == 1:
        return Finding("messages", OK, "a single rank has nobody to send to")
    to, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    best, right = [], True
    for size in (8, LARGE):
        seconds = []
        for turn in range(ROUNDS):
            sent, come = np.full(size, (comm.rank + turn) % 256, np.uint8), np.zeros(size, np.uint8)
            comm.gather(None)
            started = time.perf_counter()
            comm.start([Message(sent, to, TAG)], [Message(come, source, TAG)]).wait()
            seconds.append(time.perf_counter() - started)
            right = right and bool((come == (source + turn) % 256).all())
        best.append(max(comm.gather(min(seconds))))
    message = f"round the ring, slowest neighbours: {best[0] * 1e6:.0f} µs, {LARGE / best[1] / 1e6:,.0f} MB/s"
    arrived = all(comm.gather(right))
    advice = "messages arrive changed: try another transport (--mca pml ob1 --mca btl self,sm,tcp)"
    return judged("messages", arrived, message, advice, FAILED)


def shared_memory(comm: Communicator) -> Finding:
    """Whether ranks of a host see each other's writing."""
    hosts = comm.gather(socket.gethostname())
    if len(set(hosts)) == comm.size:
        return Finding("shared memory", OK, "no host has several ranks")
    apart = sum(
        hosts[rank] == hosts[rank - 1] and comm.leaders[rank] != comm.leaders[rank - 1] for rank in range(1, comm.size)
    )
    scattered = sum(hosts[rank] != hosts[rank - 1] for rank in range(1, comm.size)) >= len(set(hosts))
    try:
        array = comm.share(8 * comm.size).view(np.int64)
    except StorageError as error:
        return Finding("shared memory", "warning", str(error), "raise the limit of memory")
    array[comm.rank] = comm.rank + 1
    comm.gather(None)
    team = [rank for rank in range(comm.size) if comm.leaders[rank] == comm.leaders[comm.rank]]
    seen = comm.gather(all(int(array[rank]) == rank + 1 for rank in team))
    if not all(seen):
        return Finding("shared memory", FAILED, "a rank does not see what another wrote", "report it")
    if apart:
        message = f"{apart} neighbours on one host can't share memory, and send messages"
        return Finding("shared memory", "warning", message, "run ranks of a host as one user in one PID namespace")
    advice = "place ranks of a host one after the other: --map-by slot, --distribution=block"
    return judged("shared memory", not scattered, f"{len(set(comm.leaders))} team(s) of ranks share memory", advice)


def clocks(comm: Communicator) -> Finding:
    """Clocks of the ranks, right after all have met."""
    comm.gather(None)
    times = comm.gather(time.time())
    spread = max(times) - min(times)
    message = f"clocks of ranks differ by {spread * 1e3:.1f} ms at most, the time of a message included"
    return judged("clocks", spread < CLOCKS, message, "run chrony or ntpd: file times and logs will not fit")


def folder(comm: Communicator, path: Path) -> Finding:
    """Whether files can be locked, synced and renamed there, on all ranks, who see the same folder."""
    name = f"folder {path}"
    reasons = [reason for reason in comm.gather(_file_trouble(path)) if reason]
    if reasons:
        return Finding(name, FAILED, reasons[0], "choose a folder that all ranks may write to")
    marker = path / f".mfpar-{comm.gather(secrets.token_hex(8))[0]}.tmp"
    if comm.rank == 0:
        with contextlib.suppress(OSError):
            marker.touch()
    comm.gather(None)
    with contextlib.suppress(OSError):
        os.listdir(path)  # a network file system may have an old list
    blind = comm.gather(marker.exists()).count(False)
    if comm.rank == 0:
        marker.unlink(missing_ok=True)
    if blind:
        message = f"{blind} rank(s) do not see what the first one writes there"
        return Finding(name, "warning", message, "keep ratings and models on a file system that all hosts share")
    locks = comm.gather(_locks(path))
    message = "rename and fsync work" + (", locks too" if all(locks) else ", locks do not")
    return judged(name, all(locks), message, "set HDF5_USE_FILE_LOCKING=FALSE")


def _file_trouble(path: Path) -> str:
    """Why a file can't be written, synced and renamed; "" if it can."""
    first = path / f".mfpar-{secrets.token_hex(8)}.tmp"
    second = first.with_suffix(".new")
    try:
        first.write_bytes(b"mfpar")
        sync(first)
        os.replace(first, second)
        return "" if second.read_bytes() == b"mfpar" else "a file reads otherwise than it was written"
    except OSError as error:
        return f"{socket.gethostname()}: {error.strerror or error}"
    finally:
        for one in (first, second):
            with contextlib.suppress(OSError):
                one.unlink(missing_ok=True)


def _locks(path: Path) -> bool:
    """Whether a file there can be locked."""
    file = path / f".mfpar-{secrets.token_hex(8)}.tmp"
    try:
        with file.open("wb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
