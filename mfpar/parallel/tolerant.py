"""Ranks of which some may die, under an MPI that knows ULFM: the others find it out together, and go on."""

import contextlib
import math
import time
from typing import Any

from mfpar import errors
from mfpar.parallel import survival
from mfpar.parallel.mpi import FAREWELL, PATIENCE, Mpi
from mfpar.parallel.respawn import START, enlarged

HEARSAY = 1.0  # seconds that a notice takes at most


class Tolerant(Mpi):
    """See `Mpi`. A look for notices, wherever a rank waits, finds those that have died, too."""

    tolerant = True

    def __init__(self, comm: Any, joined: bool = False, warning: str = ""):
        super().__init__(comm, joined, warning)
        self._lost = False  # a rank, as far as this one knows
        self._over = False  # a guard was left with an error on all ranks: they meet here no more
        self._groups: list[Mpi] = []
        self._told: BaseException | None = None

    def _alike(self, comm: Any) -> Any:
        """See `Mpi`: by way of what makes communicators even while ranks die; MPI's Dup may never come back then."""
        other = comm.Shrink()
        if other.Get_size() < comm.Get_size():
            raise errors.RankLostError("a rank has died while ranks came together")
        return other

    def split(self, group: int) -> Mpi:
        """See `Communicator.split`."""
        team = super().split(group)
        self._groups.append(team)
        return team

    def survivors(self, respawn: int = 0) -> Mpi:
        """See `Communicator.survivors`."""
        with self._watch.meeting(respawn * START):
            return self._joined_anew(respawn)

    def _joined_anew(self, respawn: int) -> Mpi:
        self._revoke()
        survival.rest([request for flight in self.under_way for request in flight.requests])
        self.under_way.clear()
        self._told = None  # all that its traceback leads to, an attempt's memory, may go now
        # What was revoked is not freed: MPI may still be at work on what others have sent.
        comm, warning = enlarged(survival.shrunk(self._comm), respawn)
        left = formed(comm, warning=warning)
        left._watch.inherit(self._watch)
        return left

    def close(self) -> None:
        """See `Communicator.close`; does nothing if a rank was lost."""
        if not self._over:
            super().close()

    def _tell(self, error: BaseException) -> None:
        if self._over:
            return
        self._lost = survival.is_loss(self.mpi, error, self._notices)
        if self._lost:
            self._revoke()
            return
        with contextlib.suppress(self.mpi.Exception):  # who has died needs no notice
            super()._tell(error)

    def _part(self) -> None:
        if not self._over:
            self._decide(well=False)

    def _leave(self) -> None:
        if not self._decide(well=True):
            self._revoke()
            raise self._loss()

    def _named(self, error: BaseException) -> BaseException:
        if self._lost and (isinstance(error, self.mpi.Exception) or error is self._told):
            self._told = error = self._loss()  # anew for a guard further out: more may be known now
        return error

    def _decide(self, well: bool) -> bool:
        """Whether all have come to the end of a guard and none has died. Collective among those that are left.

        Raises the error that another rank has left it with, if this one only knows that one was lost.
        """
        unfailed = not self._failed
        patience = math.inf if unfailed else self._watch.patience(FAREWELL)
        # All that are well come here soon after a loss; at the end of all work, only when that is done.
        with contextlib.nullcontext() if well else self._watch.meeting():
            all_well, all_unfailed = survival.agree(self._comm, well, unfailed, patience=patience)
        if all_well:
            return True
        self._over = True
        gone = survival.lost(self._comm)
        if gone or all_unfailed:
            survival.fate.outlived = True
            survival.fate.first = self.rank == min(set(range(self.size)) - set(gone))
        if unfailed and not all_unfailed:
            self._hear()
        return False

    def _hear(self) -> None:
        until = time.perf_counter() + HEARSAY
        with contextlib.suppress(self.mpi.Exception):  # no notice comes through any more
            while time.perf_counter() < until:
                self._look_for_notice()
                time.sleep(PATIENCE)
        raise errors.RankError("a rank has failed while another one was lost")

    def _revoke(self) -> None:
        """Let all ranks know, wherever they wait, that nothing more comes of this communicator. Local."""
        survival.revoke(self._comm, self._notices, *(group._comm for group in self._groups))

    def _loss(self) -> errors.RankLostError:
        return errors.RankLostError(self._watch.sentence or survival.sentence(self._comm, self._hosts))


def formed(comm: Any, joined: bool = False, warning: str = "") -> Mpi:
    """An `Mpi` of all ranks of one of mpi4py's, or, where ranks die meanwhile, of those that are left. Collective."""
    from mpi4py import MPI

    if not survival.tolerates(MPI):
        return Mpi(comm)
    made: Tolerant | None
    failure: BaseException | None
    while True:
        made = failure = None
        try:
            made = Tolerant(comm, joined, warning)
        except BaseException as error:  # noqa: BLE001 - raised below, when the others know of it
            failure = error
        loss = failure is None or survival.is_loss(MPI, failure, comm)
        all_well, only_losses = survival.agree(comm, made is not None, loss)
        if made and all_well:
            survival.fate.first = made.rank == 0
            return made
        survival.revoke(comm)
        if made:
            made._revoke()
        if not only_losses:
            raise failure or errors.RankError("another rank failed while ranks came together")
        survival.fate.outlived = True
        warning = warning or f"{survival.sentence(comm, [])} while ranks came together; the others go on"
        comm = survival.shrunk(comm)
