"""Requests of MPI under way: what they read and write belongs to MPI until they rest."""

from typing import Any

import numpy as np

PIECE = 1 << 30  # bytes of a message at most, or of all that a collective brings: MPI 3 counts in 32 bits


class Flight:
    """Messages of an `mfpar.parallel.mpi.Mpi` under way, or a collective. Local."""

    def __init__(self, comm: Any):
        self._comm = comm
        self.requests: list[Any] = []

    def add(self, request: Any) -> None:
        """One more."""
        self._comm.under_way.add(self)
        self.requests.append(request)

    def arrived(self) -> bool:
        """See `Pending.arrived`."""
        if self in self._comm.under_way and self._comm.mpi.Request.Testall(self.requests):
            self._comm.under_way.discard(self)
        return bool(self not in self._comm.under_way)

    def wait(self) -> None:
        """See `Pending.wait`."""
        self._comm.wait_until(self.arrived)


def pieces_of(buffer: np.ndarray) -> list[np.ndarray]:
    """Views uint8[≤ PIECE] of a flat buffer, end to end."""
    flat = buffer.view(np.uint8)
    return [flat[first : first + PIECE] for first in range(0, len(flat), PIECE)]
