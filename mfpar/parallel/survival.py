"""What the ranks that are left do when others die, under an MPI that knows revoke, agree and shrink: ULFM.

Of a communicator that has lost a rank nothing but these works. `agree` does, whatever has happened, so it is what ranks
go by where all have to decide alike.
"""

import contextlib
import ctypes
import math
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from mfpar.errors import RankLostError
from mfpar.parallel.installed import enabled, revokes
from mfpar.parallel.processes import Process

TIMEOUT = 600.0  # seconds for which ranks wait at the end of what is not watched: the first may have to tidy up
PATIENCE = 5e-4  # seconds between polls
QUIET = 0.1  # seconds without a death before ranks go on without the dead
REST = 1.0  # seconds that messages of a communicator that was revoked get to come to rest
SIGNATURES = 9  # parts of MPI that may have begun with PMIx, at most, each of which has to end it
LOSSES = ("ERR_PROC_FAILED", "ERR_PROC_FAILED_PENDING", "ERR_REVOKED")

_never_freed: list[Any] = []  # requests that did not come to rest, with their buffers: MPI may write there any time


class Fate:
    """What this process has been through.

    Attributes
    ----------
    outlived : whether it has outlived another rank
    first : whether it is the first one of those that were left then
    others : processes of the ranks with which it was watched last
    timeout : seconds after which one of those is taken for dead
    """

    def __init__(self) -> None:
        self.outlived = False
        self.first = False
        self.others: Sequence[Process] = ()
        self.timeout = TIMEOUT


fate = Fate()


def tolerates(MPI: Any) -> bool:
    """Whether ranks go on when others die: MPI knows how, and the launcher was told to let them. Local."""
    return enabled() and revokes(MPI)


def is_loss(MPI: Any, error: BaseException, comm: Any) -> bool:
    """Whether an error says that a rank of a communicator was lost. Local.

    Where it says something else, as that a connection has failed, it comes out within a second why.
    """
    if isinstance(error, RankLostError):
        return True
    if not isinstance(error, MPI.Exception):
        return False
    if error.Get_error_class() in [getattr(MPI, name) for name in LOSSES]:
        return True
    until = time.perf_counter() + REST
    while not is_over(comm):
        if time.perf_counter() > until:
            return False
        with contextlib.suppress(MPI.Exception):
            comm.Iprobe()  # MPI hears of nothing while nobody calls it
        time.sleep(PATIENCE)
    return True


def is_over(comm: Any) -> bool:
    """Whether it is known here that the communicator has lost a rank, or was revoked. Local."""
    return bool(comm.Is_revoked() or lost(comm))


def lost(comm: Any) -> list[int]:
    """Ranks of the communicator that are known here to have died. Local."""
    group = comm.Get_failed()
    return sorted(group.Translate_ranks(list(range(group.Get_size())), comm.Get_group()))


def sentence(comm: Any, hosts: list[str]) -> str:
    """Who has died, as far as that is known here."""
    names = [f"rank {rank} on host {hosts[rank]}" if hosts else f"rank {rank}" for rank in lost(comm)]
    return f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'} died" if names else "a rank was lost"


def revoke(*comms: Any) -> None:
    """End communicators for all their ranks, wherever those wait; None is left out. Local."""
    for comm in filter(None, comms):
        with contextlib.suppress(RuntimeError):  # MPI.Exception is one
            comm.Revoke()


def shrunk(comm: Any) -> Any:
    """A communicator of the ranks that are left of one that was revoked. Collective."""
    _let_settle(comm)
    agree(comm)  # MPI's own waits burn the core: all are there first
    return comm.Shrink()


def _let_settle(comm: Any) -> None:
    """Wait until no further rank has been found dead for a while. Local.

    What kills several at a time, as want of memory does, kills the second while the others are about to go on without
    the first: Open MPI (5.0.11) crashes if it hears of that in the midst of making a communicator.
    """
    known, since = lost(comm), time.perf_counter()
    while time.perf_counter() < since + QUIET:
        with contextlib.suppress(RuntimeError):
            comm.Iprobe()  # MPI hears of nothing while nobody calls it
        time.sleep(PATIENCE)
        if (now := lost(comm)) != known:
            known, since = now, time.perf_counter()


def agree(comm: Any, *flags: bool, patience: float = math.inf) -> list[bool]:
    """What all ranks of a communicator that are left say yes to; to all the same. Collective.

    Parameters
    ----------
    flags : to the first nobody says yes if it comes out that a rank has died
    patience : seconds after which the answer is no, whatever the others say
    """
    said = np.array([sum(int(flag) << place for place, flag in enumerate(flags))], np.int32)
    request, until = comm.Iagree(said), time.perf_counter() + patience
    try:
        while not request.Test():
            if time.perf_counter() > until:
                _never_freed.append((request, said))
                return [False for _ in flags]
            time.sleep(PATIENCE)
    except RuntimeError:  # a rank has died; the flags are what they would be
        said &= ~1
    return [bool(said[0] >> place & 1) for place in range(len(flags))]


def rest(requests: list[Any]) -> None:
    """Let go of messages of a communicator that was revoked: none of their buffers is written to any more. Local."""
    until = time.perf_counter() + REST
    for request in requests:
        with contextlib.suppress(RuntimeError):
            while not request.Test():
                if time.perf_counter() > until:
                    _never_freed.append(request)
                    break
                time.sleep(PATIENCE)


def sign_off() -> None:
    """Let mpirun know that this process, which was started anew, ends well: the last thing that it does. Local.

    It takes those for failed that end without MPI's end, but that waits for all others, and for ever if one has died
    since. What MPI would tell mpirun then is told without it, by PMIx (https://pmix.org), if MPI is based on that.
    """
    from mpi4py import MPI

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # MPI, which is still at work, may complain
    with contextlib.suppress(AttributeError):
        pmix = ctypes.CDLL(MPI.__file__)
        for _ in range(SIGNATURES):
            if pmix.PMIx_Initialized():
                pmix.PMIx_Finalize(None, 0)
