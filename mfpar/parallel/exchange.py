"""Every rank sends every rank bytes: in pairs, one after the other, so that memory holds a message or two at a time."""

from collections.abc import Iterator, Sequence

import numpy as np

from mfpar.parallel.comm import Communicator, Message

WINDOW = 1 << 26  # bytes that a rank has under way in a swap, if a buffer alone is not longer
FEW = 256  # buffers under way at most
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
        comm.start([Message(parcels[to], to, TAG)], [Message(parcel, source, TAG)]).wait()
        yield parcel


def swap(comm: Communicator, sending: Sequence[np.ndarray], to: int, coming: Sequence[np.ndarray], source: int) -> None:
    """Send buffers to one rank while those of another one come, some at a time. All take part, each in one ring.

    Parameters
    ----------
    sending : flat contiguous arrays, which keep their values
        The other rank gives `coming` of the same number, order, and lengths in bytes.
    to, source : other ranks, source the one whose `to` this rank is
    """
    leaving, entering = _windows(sending), _windows(coming)
    for turn in range(max(len(leaving), len(entering))):
        sends = [Message(_sealed(buffer), to, TAG) for buffer in _at(leaving, turn)]
        comm.start(sends, [Message(buffer, source, TAG) for buffer in _at(entering, turn)]).wait()


def _windows(buffers: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """The buffers that are not empty, in runs; both ends make the same of the same lengths."""
    windows: list[list[np.ndarray]] = []
    room = 0
    for buffer in buffers:
        if not buffer.nbytes:
            continue
        if room < buffer.nbytes or len(windows[-1]) == FEW:
            windows.append([])
            room = max(WINDOW, buffer.nbytes)
        windows[-1].append(buffer)
        room -= buffer.nbytes
    return windows


def _at(windows: list[list[np.ndarray]], turn: int) -> list[np.ndarray]:
    return windows[turn] if turn < len(windows) else []


def _sealed(buffer: np.ndarray) -> np.ndarray:
    """A view that can't be written through."""
    view = buffer.view()
    view.flags.writeable = False
    return view
