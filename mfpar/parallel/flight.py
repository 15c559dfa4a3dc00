"""Requests of MPI under way: what they read and write belongs to MPI until they rest."""

from typing import Any

import numpy as np

PIECE = 1 << 30  # bytes of a message at most, or of all that a collective brings: MPI 3 counts in 32 bits


class Flight:
    """Messages of an `mfpar.parallel.mpi.Mpi` under way, or a collective. Local."""

    def __init__(self, comm: Any):
        self._comm = comm
        self.requests: list[Any] = []
        self._statuses: list[Any] = []

    def add(self, request: Any) -> None:
        """One more."""
        self._comm.under_way.add(self)
        self.requests.append(request)
        self._statuses.append(self._comm.mpi.Status())

    def arrived(self) -> bool:
        """See `Pending.arrived`."""
        MPI = self._comm.mpi
        if self in self._comm.under_way:
            try:
                arrived = MPI.Request.Testall(self.requests, self._statuses)
            except MPI.Exception as error:
                raise self._explained(error) from error
            if arrived:
                self._comm.under_way.discard(self)
        return bool(self not in self._comm.under_way)

    def _explained(self, error: Any) -> Any:
        """Of several requests together MPI says only that one has failed; its status says why."""
        MPI = self._comm.mpi
        if error.Get_error_class() != MPI.ERR_IN_STATUS:
            return error
        codes = (status.Get_error() for status in self._statuses)
        code = next((code for code in codes if code not in (MPI.SUCCESS, MPI.ERR_PENDING)), None)
        return MPI.Exception(code) if code else error

    def wait(self) -> None:
        """See `Pending.wait`."""
        self._comm.wait_until(self.arrived)


def pieces_of(buffer: np.ndarray) -> list[np.ndarray]:
    """Views uint8[≤ PIECE] of a flat buffer, end to end."""
    flat = buffer.view(np.uint8)
    return [flat[first : first + PIECE] for first in range(0, len(flat), PIECE)]
