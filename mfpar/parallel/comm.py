"""What the engine asks of its ranks, and the answer of a single one.

`Serial` is the communicator of size 1, so that a serial run takes the same path as a parallel one.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mfpar.errors import LaunchError
from mfpar.parallel.memory import aligned

PATIENCE = 5e-4  # seconds between looks of a wait


@dataclass(frozen=True)
class Message:
    """A flat, contiguous buffer of any length on its way to, or from, another rank, which gives one of the same length.

    `tag` (0 … 32767 is safe with any MPI) tells apart the messages that are under way between two ranks.
    """

    buffer: np.ndarray
    peer: int
    tag: int


class Pending(Protocol):
    """Messages under way; they progress while somebody asks whether they have arrived, or waits."""

    def arrived(self) -> bool:
        """Whether all have been sent and received."""

    def wait(self) -> None:
        """Return once all have been sent and received. Raises what another rank has failed with."""


class Communicator(Protocol):
    """Ranks that compute together.

    Attributes
    ----------
    rank, size : int
    library : str
        Name and version of the MPI library.
    leaders : list[int]
        Of each rank the first one of its team: ranks that share memory, and follow one on the other.
    bytes_sent : int
        Bytes of messages this rank has started to send so far.
    tolerant : bool
        Whether the ranks that are left can go on when others die; see `guard` and `survivors`.
    joined : bool
        Whether this rank was started to take the place of one that died: it comes in while others recover. Not on
        communicators of later survivors.
    warning : str
        What went wrong when this communicator was made of survivors, as a sentence; "" as a rule.
    """

    rank: int
    size: int
    library: str
    leaders: list[int]
    bytes_sent: int
    tolerant: bool
    joined: bool
    warning: str

    def start(self, sends: list[Message], receives: list[Message]) -> Pending:
        """Start messages and return at once; buffers belong to the messages until `wait` returns. Local."""

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds. Raises what another rank has failed with. Local.

        Between two looks at the condition it sleeps, at most for half a millisecond.
        """

    def share(self, size: int) -> np.ndarray:
        """uint8[size] full of zeros, aligned to cache lines: memory that all ranks of this team see. Collective."""

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, in rank order, on every rank; for small JSON-like values. Collective."""

    def split(self, group: int) -> "Communicator":
        """The communicator of the ranks that name the same group, in their order. Collective; within `guard`.

        An error inside the group's guard is one of all ranks: it interrupts the waits of other groups too, and has to
        leave the guard of this communicator as well. What is split off is closed before this communicator is.
        """

    def close(self) -> None:
        """Give back what this communicator holds. Collective."""

    def guard(self) -> contextlib.AbstractContextManager[None]:
        """A region that all ranks leave together, or that raises on all of them the error of one. Collective.

        An error inside it on one rank interrupts the waits of the others within a second. A rank that fails with an
        error that is not mfpar's makes the others raise RankError.

        If a rank of a tolerant communicator dies, all that are left raise RankLostError, wherever in here they are,
        within a second; so they do if the region itself raises it. Nothing but `survivors` can be done with the
        communicator then. If a rank fails by itself at that moment, the others raise RankError: the run has failed.
        """

    def watch(self, timeout: float) -> contextlib.AbstractContextManager[None]:
        """A region in which ranks watch each other, so that none waits for ever for one that hangs. Collective.

        Who has made no progress for `timeout` seconds (0: nobody is watched) is taken for dead, and killed where that
        can be done. If the others can go on without it, they notice as they notice any death; if not, the waits of all
        raise RankError with a sentence that names it. The region ends for a rank once all that live have come to
        its end.
        """

    def survivors(self, respawn: int = 0) -> "Communicator":
        """The communicator of the ranks that are left, in their order. Collective among them, after RankLostError.

        Parameters
        ----------
        respawn : number of processes to start anew; they come last, and have `joined` set. If they can't be started,
            the others go on without them, and `warning` says so.

        Raises
        ------
        LaunchError
            Ranks of this communicator can't outlive each other.
        """


class Serial:
    """One rank alone."""

    rank = 0
    size = 1
    library = "none"
    bytes_sent = 0
    tolerant = False
    joined = False
    warning = ""

    def __init__(self) -> None:
        self.leaders = [0]

    def start(self, sends: list[Message], receives: list[Message]) -> Pending:
        """There is nobody to send to: blocks that stay on their rank are not messages."""
        raise NotImplementedError("a single rank has nobody to exchange messages with")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for threads of its own, as there is nobody else."""
        while not condition():
            time.sleep(PATIENCE)

    def share(self, size: int) -> np.ndarray:
        """Memory of its own."""
        return aligned(size)

    def gather(self, value: Any) -> list[Any]:
        """The one value."""
        return [value]

    def split(self, group: int) -> Communicator:
        """The one rank is the one group."""
        return self

    def close(self) -> None:
        """There is nothing to give back."""

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Errors raise as they are."""
        yield

    def watch(self, timeout: float) -> contextlib.AbstractContextManager[None]:
        """A rank alone has nobody to watch."""
        return contextlib.nullcontext()

    def survivors(self, respawn: int = 0) -> Communicator:
        """Nobody survives a single rank."""
        raise LaunchError("a single rank has no others that could go on without it")
