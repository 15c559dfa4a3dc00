"""Starting ranks anew in place of those that have died; and how a process that was started so joins the others.

A rank may die at any moment of it. What was started is let in only when all have met it; the others may give it up
until then, and it them. MPI does not come back from making a communicator with somebody who does not come.
"""

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mfpar.errors import RankNotNeededError
from mfpar.parallel.survival import PATIENCE, REST, agree, fate, is_over, revoke

START = 60.0  # seconds that a process gets to start and to call MPI
JOINS = "MFPAR_JOINS"  # tells a process started anew its rank, and how many more will be started: "2 1"
TAG = 0
WORD = np.ones(1, np.int8)  # what the first rank says to such a process, when others come to it, and when it is let in


def command() -> list[str]:
    """What to run for a rank that is started anew; nothing where this process is not mfpar's own command line."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if (spec and spec.name == "mfpar.__main__") or Path(sys.argv[0]).name == "mfpar":
        return [sys.executable, "-m", "mfpar", *sys.argv[1:]]
    return []


def enlarged(comm: Any, count: int) -> tuple[Any, str]:
    """A communicator with so many new processes behind the others, and what went wrong, "" if nothing. Collective.

    What has kept them from starting is known to the first rank alone.

    One after the other, as MPI ends all processes that were started together with the first of them that dies; and by
    the first rank alone, as none of the others could leave MPI's spawn if a rank died meanwhile.
    """
    for number in range(count):
        pair, problem = None, ""
        if comm.Get_rank() == 0:
            pair, problem = _started(comm.Get_size(), count - number - 1)
        together = None
        if agree(comm, not problem)[0]:
            _say(pair)
            with contextlib.suppress(RuntimeError):  # at a pair MPI looks on the first rank alone
                together = comm.Create_intercomm(0, pair or comm, 1, TAG).Merge(high=False)
            if agree(comm, together is not None)[0] and agree(comm, _met(together))[0]:
                _say(pair)
                comm = together
                continue
        revoke(together, pair)
        reason = f": {problem}" if problem else ""
        return comm, f"{count - number} of {count} ranks could not be started again{reason}"
    return comm, ""


def _met(comm: Any) -> bool:
    """Whether all ranks have exchanged messages, by a new communicator, that is revoked if not. Collective.

    A process that has had no message of another one yet may never hear of its death, and waits for it for ever wherever
    all have to agree (Open MPI 5.0.11). From here on it hears of it.
    """
    try:
        request = comm.Ibarrier()
        while not request.Test():
            time.sleep(PATIENCE)
    except RuntimeError:
        revoke(comm)
        return False
    return True


def _say(pair: Any) -> None:
    """Give the process that was started anew the word that it waits for; of the others nobody has a pair. Local."""
    with contextlib.suppress(RuntimeError):
        if pair:
            pair.Send(WORD, 1, TAG)


def _told(pair: Any, together: Any = None) -> bool:
    """Whether the first of those that have started this process gives it the word, before they give it up. Local.

    If that one dies, the others are of one mind nevertheless, and revoke at once what they do not go on with.
    """
    request, until = pair.Irecv(np.empty_like(WORD), 0, TAG), math.inf
    while time.perf_counter() < until:
        try:
            if until == math.inf and request.Test():
                return True
        except RuntimeError:
            until = time.perf_counter() + REST
        if (together or pair).Is_revoked():
            return False
        time.sleep(PATIENCE)
    return together is not None


def _started(rank: int, more: int) -> tuple[Any, str]:
    """A communicator of this process and a new one, and why there is none; at most so long as `START`. Local."""
    from mpi4py import MPI

    line = command()
    if not line:
        return None, "only mfpar's command line can start itself again"

    def start() -> tuple[Any, str]:
        try:
            # A variable tells it who it is before it starts MPI; on another host it has none of ours by itself.
            ours = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("MFPAR_")]
            inter = MPI.COMM_SELF.Spawn("env", [*ours, f"{JOINS}={rank} {more}", *line], maxprocs=1)
            return inter.Merge(high=False), ""
        except MPI.Exception as error:
            return None, f"MPI says {error}"

    until = time.perf_counter() + START  # of a process that never calls MPI this hears nothing
    return _apart(start, lambda: time.perf_counter() > until) or (None, f"no answer in {START:.0f} s")


def _apart(make: Callable[[], Any], over: Callable[[], bool]) -> Any:
    """What is made in a thread of its own, which MPI may never come back from; None if it is over before. Local."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(make()), daemon=True)
    thread.start()
    while thread.is_alive() and not over():
        thread.join(PATIENCE)
    return found[0] if found else None


def joins(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """Rank of a process started anew, and how many more will be; None for any other process."""
    if JOINS not in environment:
        return None
    rank, more = environment[JOINS].split()
    return int(rank), int(more)


def joined(more: int) -> tuple[Any, str]:
    """In a process started anew: see `enlarged`, of which this is the other side. Collective.

    Raises
    ------
    RankNotNeededError
        The ranks that have started it have given it up, or are gone.
    """
    from mpi4py import MPI

    fate.outlived = True  # those in whose place it is
    try:
        pair = MPI.Comm.Get_parent().Merge(high=True)
    except MPI.Exception as error:
        raise RankNotNeededError(f"the rank that has started this one is gone: {error}") from error

    def make() -> Any:
        with contextlib.suppress(MPI.Exception):
            return MPI.COMM_SELF.Create_intercomm(0, pair, 0, TAG).Merge(high=True)

    together = _apart(make, lambda: is_over(pair)) if _told(pair) else None
    if together is None or not _met(together) or not _told(pair, together):
        raise RankNotNeededError("the ranks that have started this one have given it up")
    return enlarged(together, more)
