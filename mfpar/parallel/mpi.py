"""Ranks under MPI (any library that mpi4py finds).

MPI moves nothing while nobody calls it, and its blocking waits burn the cores that neighbours need. So every wait, of
collectives too, is a poll that sleeps, while other threads compute. Each poll also looks for notices of failure: a rank
that fails sends one to all others, wherever they wait.
"""

import contextlib
import dataclasses
import json
import mmap
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mfpar import errors
from mfpar.parallel import flight
from mfpar.parallel.comm import Message, Pending
from mfpar.parallel.flight import Flight, pieces_of
from mfpar.parallel.memory import Address, Offer, aligned
from mfpar.parallel.watch import Watch

PATIENCE = 5e-4  # seconds between polls of a wait that has become long
LEAST_ROOM = 512  # bytes that a gather has for what a rank says, before it knows
NOTICE_EVERY = 0.05  # seconds between looks for notices
FAREWELL = 10.0  # seconds that a failing rank gives the others to take notice and to clean up


class Mpi:
    """The ranks of an mpi4py communicator, which is duplicated. Collective; use within `guard`.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    joined, warning : see `Communicator`
    """

    tolerant = False

    def __init__(self, comm: Any, joined: bool = False, warning: str = ""):
        from mpi4py import MPI

        self.mpi = MPI
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise errors.LaunchError(
                "MPI was initialised without support for threads; let mpi4py initialise it, with MPI.THREAD_MULTIPLE"
            )
        self._comm = self._alike(comm)  # for messages
        self._notices = self._alike(comm)
        self._watch = Watch(self._alike(comm))
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self.library: str = " ".join(MPI.Get_library_version().splitlines()[0].split(",")[0].split())
        self.bytes_sent = 0
        self.joined, self.warning = joined, warning
        self._room = LEAST_ROOM
        self._failed = False
        self.under_way: set[Flight] = set()  # MPI may write to their buffers any time
        self._notified: Any = None  # the notice that this rank has sent, with its requests: alive until it has gone out
        self.leaders = self._teams()

    def _alike(self, comm: Any) -> Any:
        """Another communicator of the same ranks. Collective."""
        return comm.Dup()

    def start(self, sends: list[Message], receives: list[Message]) -> Pending:
        """See `Communicator.start`."""
        flight = Flight(self)
        # Pieces have one tag: between two ranks messages of one tag keep their order.
        for message in receives:
            for piece in pieces_of(message.buffer):
                flight.add(self._comm.Irecv(piece, message.peer, message.tag))
        for message in sends:
            for piece in pieces_of(message.buffer):
                flight.add(self._comm.Isend(piece, message.peer, message.tag))
            self.bytes_sent += message.buffer.nbytes
        return flight

    def gather(self, value: Any) -> list[Any]:
        """See `Communicator.gather`."""
        # One collective as a rule: what everybody says is about as long as it was the last time.
        said = json.dumps(value).encode()
        mine, all_said = np.zeros(8 + self._room, np.uint8), np.empty((self.size, 8 + self._room), np.uint8)
        mine[:8] = np.frombuffer(len(said).to_bytes(8, "little"), np.uint8)
        mine[8 : 8 + len(said)] = np.frombuffer(said[: self._room], np.uint8)
        self._complete(self._comm.Iallgather(mine, all_said))
        lengths = [int.from_bytes(one[:8].tobytes(), "little") for one in all_said]
        room = self._room
        self._room = max(LEAST_ROOM, min(1 << max(lengths).bit_length(), flight.PIECE // self.size))
        parts = [one[8 : 8 + length] for one, length in zip(all_said, lengths, strict=True)]
        if max(lengths) > room:
            parts = self._gather_long(np.frombuffer(said, np.uint8), lengths)
        text = b",".join(part.tobytes() for part in parts).decode()
        return list(json.loads(f"[{text}]"))  # faster than one by one

    def _gather_long(self, said: np.ndarray, lengths: list[int]) -> list[np.ndarray]:
        """Everybody's uint8[lengths[rank]], as much of each at a time as MPI can count together. Collective."""
        parts = [np.empty(length, np.uint8) for length in lengths]
        share = flight.PIECE // self.size
        for first in range(0, max(lengths), share):
            here = [part[first : first + share] for part in parts]
            counts = np.array([len(piece) for piece in here])
            together = np.empty(counts.sum(), np.uint8)
            self._complete(self._comm.Iallgatherv(said[first : first + share], (together, counts)))
            for piece, come in zip(here, np.split(together, np.cumsum(counts)[:-1]), strict=True):
                piece[:] = come
        return parts

    def _complete(self, request: Any) -> None:
        flight = Flight(self)
        flight.add(request)
        flight.wait()

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """See `Communicator.guard`."""
        try:
            yield
            self._complete(self._comm.Ibarrier())
        except BaseException as error:
            self._tell(error)
            self._part()
            named = self._named(error)
            if named is error:
                raise
            raise named from error
        self._leave()

    def survivors(self, respawn: int = 0) -> "Mpi":
        """See `Communicator.survivors`."""
        raise errors.LaunchError(
            "ranks go on without those that were lost only under Open MPI's `mpirun --with-ft ulfm`"
        )

    def split(self, group: int) -> "Mpi":
        """See `Communicator.split`."""
        self.gather(None)  # MPI's split burns the core while it waits, and hears no notice: all are there first
        part = self._comm.Split(group, self.rank)
        team = _Group(part, self)
        part.Free()
        return team

    def close(self) -> None:
        """See `Communicator.close`."""
        self._comm.Free()
        self._notices.Free()
        self._watch.close()

    def watch(self, timeout: float) -> contextlib.AbstractContextManager[None]:
        """See `Communicator.watch`."""
        return self._watch.over(self, timeout)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """See `Communicator.wait_until`: polls ever more slowly, so that neighbours get the core."""
        started = looked = time.perf_counter()
        pause, used = 0.0, None
        while not condition():
            now = time.perf_counter()
            if now - looked > NOTICE_EVERY:
                looked = now
                self._look_for_notice()
                used = self._watch.waits.look(used)
            if now - started > 50e-6:
                pause = min(PATIENCE, pause + 20e-6)
            time.sleep(pause)

    def share(self, size: int) -> np.ndarray:
        """See `Communicator.share`."""
        array = self._shared(size, self.leaders)
        if not all(self.gather(array is not None)):
            raise errors.StorageError(f"no {size:,} bytes of shared memory are to be had on some node")
        return array  # type: ignore[return-value]

    def _teams(self) -> list[int]:
        """Runs of ranks on one host, if they can share memory; the first rank of each rank's. Collective."""
        self._hosts = hosts = self.gather(socket.gethostname())
        leaders = list(range(self.size))
        for rank in range(1, self.size):
            if hosts[rank] == hosts[rank - 1]:
                leaders[rank] = leaders[rank - 1]
        able = self.gather(self._shared(mmap.PAGESIZE, leaders) is not None)
        teams = [[rank for rank in range(self.size) if leaders[rank] == leader] for leader in leaders]
        return [team[0] if all(able[rank] for rank in team) else rank for rank, team in enumerate(teams)]

    def _shared(self, size: int, leaders: list[int]) -> np.ndarray | None:
        """Memory that the ranks of a leader share; None where that can't be. Collective."""
        leader = leaders[self.rank]
        if leaders.count(leader) == 1:
            self.gather(None)
            self.gather(None)
            return aligned(size)
        offer = None
        if leader == self.rank:
            with contextlib.suppress(OSError):
                offer = Offer(size)
        address = self.gather(dataclasses.asdict(offer.address) if offer else None)[leader]
        array = offer.array if offer else Address(**address).map(size) if address else None
        self.gather(None)  # all have mapped it
        if offer:
            offer.close()
        return array

    def _tell(self, error: BaseException) -> None:
        """Tell all other ranks why this one fails, unless they know."""
        if self._failed:
            return
        self._failed = True
        name, text = "RankError", f"rank {self.rank} failed: {type(error).__name__}: {error}"
        if isinstance(error, errors.MfparError):
            name, text = type(error).__name__, str(error)
        elif isinstance(error, KeyboardInterrupt):
            name, text = "RankInterruptedError", f"rank {self.rank} was interrupted"
        notice = json.dumps([name, text]).encode()
        requests: list[Any] = []
        self._notified = notice, requests
        requests.extend(self._notices.Isend(notice, peer, 0) for peer in range(self.size) if peer != self.rank)

    def _part(self) -> None:
        """Wait until every rank has left the guard, so that the end of one cuts off no other while that cleans up."""
        barrier, until = self._notices.Ibarrier(), time.perf_counter() + self._watch.patience(FAREWELL)
        while not barrier.Test() and time.perf_counter() < until:
            time.sleep(PATIENCE)

    def _named(self, error: BaseException) -> BaseException:
        """The error that a guard is left with."""
        return error

    def _leave(self) -> None:
        """What there is to do when all ranks have come to the end of a guard."""

    def _look_for_notice(self) -> None:
        try:
            self._watch.check()
        except errors.RankError:
            self._failed = True  # all have been told
            raise
        status = self.mpi.Status()
        if self._notices.Iprobe(self.mpi.ANY_SOURCE, 0, status):
            notice = bytearray(status.Get_count(self.mpi.BYTE))
            self._notices.Recv(notice, status.Get_source(), 0)
            self._failed = True
            name, text = json.loads(notice)
            raise getattr(errors, name)(text)


class _Group(Mpi):
    """Some ranks of another communicator. Who fails, fails for all ranks of that one: notices are its affair."""

    def __init__(self, comm: Any, whole: Mpi):
        self._whole = whole
        super().__init__(comm)
        self.tolerant = whole.tolerant
        self.under_way = whole.under_way
        self._watch.waits = whole._watch.waits

    def gather(self, value: Any) -> list[Any]:
        """See `Communicator.gather`; a group of one hears of failures here, as it never waits."""
        self._whole._look_for_notice()
        return super().gather(value)

    def survivors(self, respawn: int = 0) -> Mpi:
        """Those of the whole."""
        return self._whole.survivors(respawn)

    def _tell(self, error: BaseException) -> None:
        self._whole._tell(error)

    def _named(self, error: BaseException) -> BaseException:
        return self._whole._named(error)

    def _look_for_notice(self) -> None:
        self._whole._look_for_notice()

    def _part(self) -> None:
        """The guard of the whole, which the error passes next, waits for everybody."""
