"""Every rank sends every rank bytes: in pairs, one after the other, so that memory holds a message or two at a time."""

from collections.abc import Iterator, Sequence

import numpy as np

from mfpar.parallel.comm import Communicator, Message

LONGEST = 1 << 28  # bytes of a message: MPI counts in 32 bits
TAG = 0


def exchange(comm: Communicator, parcels: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Send a parcel to every rank, and hand on those that come as they come. Collective; has to be gone through.

    Parameters
    ----------
    parcels : uint8[:] for each rank
        They belong to the exchange until it has ended.

    Yields
    ------
    uint8[:]
        First this rank's parcel to itself, then one from each of the others.
    """
    yield parcels[comm.rank]
    for step in range(1, comm.size):
        to, source = (comm.rank + step) % comm.size, (comm.rank - step) % comm.size
        length, coming = np.array([len(parcels[to])]), np.zeros(1, np.int64)
        comm.start([Message(length, to, TAG)], [Message(coming, source, TAG)]).wait()
        parcel = np.empty(int(coming[0]), np.uint8)
        sends = [Message(piece, to, TAG) for piece in _pieces(parcels[to])]
        comm.start(sends, [Message(piece, source, TAG) for piece in _pieces(parcel)]).wait()
        yield parcel


def _pieces(parcel: np.ndarray) -> list[np.ndarray]:
    return [parcel[first : first + LONGEST] for first in range(0, len(parcel), LONGEST)]
