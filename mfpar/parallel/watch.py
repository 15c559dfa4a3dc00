"""A communicator's watch over its ranks: what its main thread has to do with the pulse."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mfpar.errors import RankError, RankLostError
from mfpar.parallel import survival
from mfpar.parallel.bounded import bounded
from mfpar.parallel.processes import Process
from mfpar.parallel.progress import Waits
from mfpar.parallel.pulse import Pulse

if TYPE_CHECKING:
    from mfpar.parallel.comm import Communicator

TIMES = 3  # as long as the timeout, for ranks to come together: at the start, or those that are left after a loss
SHORTLY = 2.0  # seconds for which others are waited for, where one of them will not come


class Watch:
    """Watches over the ranks of a communicator, one after the other.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        For the pulse alone; it is freed by `close`.
    """

    def __init__(self, comm: Any):
        self.waits = Waits()
        self._comm, self._number = comm, 0
        self._pulse: Pulse | None = None
        self._processes: Sequence[Process] = ()
        self._timeout = 0.0

    @contextlib.contextmanager
    def over(self, comm: "Communicator", timeout: float) -> Iterator[None]:
        """See `Communicator.watch`. Collective."""
        if not timeout:
            yield
            return
        self._number += 1
        with comm.guard():
            self._processes = [Process(**said) for said in comm.gather(Process.own().as_dict())]
        self._timeout = timeout
        survival.fate.others, survival.fate.timeout = self._processes, timeout
        with Pulse(self._comm, self._number, self._processes, self.waits, timeout, comm.tolerant) as self._pulse:
            yield
            # All are watched until all are done. Who dies after that has left nothing undone.
            with contextlib.suppress(RankLostError), comm.guard():
                pass

    def check(self) -> None:
        """Raise what has been found, if the main thread shall know of it. Local.

        Raises
        ------
        RankError
            The job has to end.
        RankLostError
            A rank was killed, but MPI has not noticed.
        """
        if not self._pulse:
            return
        try:
            self._pulse.check()
        except RankError:
            if self._pulse.ends:  # MPI may never come to its end, and the first rank may be the one that hangs
                survival.fate.outlived = True
                survival.fate.first = self._pulse.speaks
            raise

    def patience(self, seconds: float) -> float:
        """For how long to wait for all ranks, if one would wait so many seconds for those that are well."""
        return SHORTLY if self._pulse and self._pulse.ends else seconds

    def meeting(self, more: float = 0.0) -> contextlib.AbstractContextManager[None]:
        """Where those that are left after a loss come together: not for ever, if ranks are watched. Local.

        Parameters
        ----------
        more : seconds that it may take besides
        """
        seconds = TIMES * self._timeout + more if self._timeout else 0.0
        return bounded(seconds, "the ranks that are left after a loss did not come together", self._processes)

    def inherit(self, other: "Watch") -> None:
        """Have the bounds of another: they hold between two regions that are watched, too. Local."""
        self._timeout, self._processes = other._timeout, other._processes

    @property
    def sentence(self) -> str:
        """Who hangs; "" as a rule."""
        return self._pulse.sentence if self._pulse else ""

    def close(self) -> None:
        """Give the communicator back. Collective."""
        self._comm.Free()
