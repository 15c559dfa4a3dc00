"""Ranks that watch each other, so that nobody waits for ever for one that hangs.

A thread of each rank sends a beat to the next rank of a ring every second or so, and looks for that of the one before.
It never waits in MPI. Three things are told by it:

- A rank that is *silent*: no beat has come for so long. Its process is stopped, or its machine is gone.
- A rank that is *stuck*: its main thread waits for no other rank (see `Waits`), and nothing in the process has used the
  CPU for so long; a read from a dead disk looks like that. Its own thread tells.
- Ranks that are all *idle*: everybody waits, and no process has used the CPU for so long but for looking whether the
  wait is over. Beats count the ranks for which that holds, from one to the next, round the ring; twice round is proof.

What is found is a verdict, which goes to all; main threads raise it where they wait. A rank that hangs is killed: by
itself if it is stuck, else by those on its machine. If ranks outlive each other, its death is then noticed like any
other, and that is all. Otherwise it is killed only after the others have had time to say why the job ends, as its death
ends them too; and where a main thread does not come back, its process ends without it.
"""

import contextlib
import json
import math
import os
import signal
import struct
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

from mfpar import errors
from mfpar.parallel.processes import Process
from mfpar.parallel.progress import Activity, Presence, Waits, used

PERIOD = 1.0  # seconds between beats, or a sixth of the timeout
AMENDS = 4.0  # seconds from a verdict that ends the job to the death of whom it names
LAST = 8.0  # seconds from such a verdict until the process ends, if its main thread has not come back
ABORT = 3.0  # seconds that MPI has to end the job

BEAT, VERDICT = 0, 1  # tags
FORM = struct.Struct("=q?q")  # of a beat: number of the watch, whether it is the last one, how many ranks idle


@dataclass(frozen=True)
class Verdict:
    """Somebody hangs.

    Attributes
    ----------
    rank : int
        Who is to be killed; −1: nobody, as nobody knows which one it is.
    by : int
        The rank that found it out.
    sentence : str
    """

    rank: int
    by: int
    sentence: str


class Pulse:
    """The thread that watches, and is watched. Local, but for the messages; a context manager.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        For its messages alone.
    number : int
        Of this watch, of all with `comm`.
    processes : list[Process]
        Of each rank.
    waits : Waits
    timeout : seconds after which a rank is taken for dead
    tolerant : bool
        Whether ranks outlive each other.
    """

    def __init__(self, comm: Any, number: int, processes: list[Process], waits: Waits, timeout: float, tolerant: bool):
        from mpi4py import MPI

        self._mpi, self._comm, self._number = MPI, comm, number
        self._processes, self._waits = processes, waits
        self._timeout, self._tolerant = timeout, tolerant
        self._rank: int = comm.Get_rank()
        self._size: int = comm.Get_size()
        self._before, self._after = (self._rank - 1) % self._size, (self._rank + 1) % self._size
        self._period = min(PERIOD, timeout / 6)
        self._presence = Presence(self._period)
        self._activity = Activity(timeout)
        self._looks, self._looked = 0, 0.0  # what waits had counted when that last grew
        self._heard = 0.0  # when the last beat came
        self._gone = False  # the rank before has left
        self._idlers_before = self._idlers = 0  # ranks in a row that idle, up to the one before, and to this one
        self._sent: list[tuple[bytes, Any]] = []  # messages under way, with their requests
        self._beat: Any = None  # request of the last beat
        self._verdicts: dict[int, tuple[Verdict, float]] = {}  # by rank, and when each was heard of
        self._killed: set[int] = set()
        self._spoken = False
        self._stop = threading.Event()
        self._returned = False  # the main thread has left
        self._thread = threading.Thread(target=self._run, name="mfpar-pulse", daemon=True)

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._returned = True
        self._stop.set()
        if not self._verdicts:
            self._thread.join()

    def check(self) -> None:
        """Raise the verdict, if there is one that the main thread shall know of."""
        for verdict, since in list(self._verdicts.values()):
            # Who goes on hears of the death from MPI; this is for those who don't.
            if not self._survivable(verdict) or self._time - since > LAST:
                raise self._error(verdict)

    @property
    def ends(self) -> bool:
        """Whether there is a verdict that ends the job."""
        return any(not self._survivable(verdict) for verdict, _ in list(self._verdicts.values()))

    @property
    def speaks(self) -> bool:
        """Whether this rank is the one that tells the user: the first that does not hang."""
        return next((rank for rank in range(self._size) if rank not in self._verdicts), 0) == self._rank

    @property
    def sentence(self) -> str:
        """What has been found; "" if nothing."""
        return next((verdict.sentence for verdict, _ in list(self._verdicts.values())), "")

    def _error(self, verdict: Verdict) -> errors.RankError:
        return (errors.RankLostError if self._survivable(verdict) else errors.RankError)(verdict.sentence)

    def _survivable(self, verdict: Verdict) -> bool:
        """Whether the others can go on without this rank: all say the same."""
        rank, processes = verdict.rank, self._processes
        if not self._tolerant or rank < 0:
            return False
        others = (other for other in range(self._size) if other != rank)
        return verdict.by == rank or any(processes[other].near(processes[rank]) for other in others)

    def _run(self) -> None:
        with contextlib.suppress(self._mpi.Exception):  # a rank has died: the main thread hears of it, too
            while not self._stop.wait(self._period):
                self._presence.look()
                self._listen()
                self._judge()
                self._say()
                self._execute()
            self._leave()
        while self._verdicts and not self._execute():
            time.sleep(self._period)
            self._presence.look(most=math.inf)

    @property
    def _time(self) -> float:
        """Seconds that have passed, as far as this thread was there to see."""
        return self._presence.now

    def _listen(self) -> None:
        """Take what has come."""
        status = self._mpi.Status()
        while self._comm.Iprobe(self._before, BEAT, status):
            message = bytearray(FORM.size)
            self._comm.Recv(message, self._before, BEAT)
            number, last, idlers = FORM.unpack(message)
            if number == self._number:
                self._gone = self._gone or last
                self._heard, self._idlers_before = self._time, idlers
        while self._comm.Iprobe(self._mpi.ANY_SOURCE, VERDICT, status):
            message = bytearray(status.Get_count(self._mpi.BYTE))
            self._comm.Recv(message, status.Get_source(), VERDICT)
            verdict = Verdict(**json.loads(message))
            self._verdicts.setdefault(verdict.rank, (verdict, self._time))

    def _judge(self) -> None:
        """Find out who hangs."""
        timeout = self._timeout
        idle = self._activity.idle(self._time, used() - self._waits.used, threading.active_count())
        if self._waits.looks != self._looks:
            self._looks, self._looked = self._waits.looks, self._time
        if min(idle, self._time - self._looked) >= timeout:
            self._pronounce(self._rank)
        if not self._gone and self._time - self._heard >= timeout:
            self._pronounce(self._before)
        self._idlers = self._idlers_before + 1 if idle >= timeout and not self._gone else 0
        if self._idlers > 2 * self._size:
            self._pronounce(-1)

    def _pronounce(self, rank: int) -> None:
        """Tell everybody that a rank hangs, or (−1) somebody."""
        if rank in self._verdicts or (rank < 0 and self._verdicts):
            return
        if rank < 0:
            sentence = (
                f"no rank has made progress for {self._timeout:g} s, each waits for another one or for a disk; "
                "the job is ended"
            )
        else:
            process = self._processes[rank]
            sentence = (
                f"rank {rank} on host {process.host} (process {process.pid}) has made no progress for "
                f"{self._timeout:g} s and is taken for dead"
            )
        verdict = Verdict(rank, self._rank, sentence)
        self._verdicts[rank] = verdict, self._time
        message = json.dumps(asdict(verdict)).encode()
        for other in range(self._size):
            if other != self._rank:
                self._sent.append((message, self._comm.Isend(message, other, VERDICT)))

    def _say(self, last: bool = False) -> None:
        """Send a beat, unless the one before is still on its way: who is stopped takes none."""
        self._sent = [(message, request) for message, request in self._sent if not request.Test()]
        if last or self._beat is None or self._beat.Test():
            message = FORM.pack(self._number, last, self._idlers)
            self._beat = self._comm.Isend(message, self._after, BEAT)
            self._sent.append((message, self._beat))

    def _leave(self) -> None:
        """Say farewell, and see to it that it goes out."""
        self._say(last=True)
        until = time.monotonic() + self._period
        while self._sent and time.monotonic() < until:
            self._sent = [(message, request) for message, request in self._sent if not request.Test()]
            time.sleep(1e-3)

    def _execute(self) -> bool:
        """Do what follows from verdicts when it is time to; whether nothing is left to do."""
        done = True
        for verdict, since in self._verdicts.values():
            passed, ends = self._time - since, not self._survivable(verdict)
            if ends and not self._returned and passed >= AMENDS - 2 * self._period:
                self._speak(verdict)
            # Who goes on waits for a beat, so that all have heard of it before they notice.
            if verdict.rank not in self._killed and passed >= (AMENDS if ends else self._period):
                self._kill(verdict.rank)
            if ends and not self._returned and passed >= LAST:
                self._end()
            done = done and verdict.rank in self._killed and (self._returned or not ends)
        return done

    def _speak(self, verdict: Verdict) -> None:
        """Say once why the job ends, as the main thread, which alone could raise an error, does not come back."""
        if self.speaks and not self._spoken:
            self._spoken = True
            os.write(2, f"mfpar: error: {verdict.sentence}\n".encode())

    def _kill(self, rank: int) -> None:
        self._killed.add(rank)
        if rank >= 0 and self._processes[rank].near(self._processes[self._rank]):
            self._processes[rank].kill()

    def _end(self) -> None:
        """End a process whose main thread does not come back, and the job."""
        # Under ULFM each has to do that for itself; and it is not sure that MPI comes back from it.
        threading.Thread(target=self._mpi.COMM_WORLD.Abort, args=(1,), daemon=True).start()
        time.sleep(ABORT)
        os.kill(os.getpid(), signal.SIGKILL)
