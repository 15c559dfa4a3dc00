"""Memory for tables: aligned to cache lines, of this process alone or of all processes of a node that map it.

Shared memory is a file without a name (Linux's memfd) that others open by way of /proc: it ends with the last process
that maps it, however that ends, and no limit of /dev/shm applies.
"""

import mmap
import os
import secrets
from dataclasses import dataclass

import numpy as np

ALIGNMENT = 64  # bytes: a cache line


def aligned(size: int) -> np.ndarray:
    """uint8[size] full of zeros, for this process alone."""
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    skip = -raw.ctypes.data % ALIGNMENT
    return raw[skip : skip + size]


@dataclass(frozen=True)
class Address:
    """Where another process of this node finds shared memory, as plain JSON values."""

    process: int
    descriptor: int
    name: str  # random: tells that it is the one that is meant

    def map(self, size: int) -> np.ndarray | None:
        """uint8[size] that the process at this address has offered; None where it can't be reached from here."""
        path = f"/proc/{self.process}/fd/{self.descriptor}"
        try:
            if self.name not in os.readlink(path):
                return None
            descriptor = os.open(path, os.O_RDWR)
        except OSError:
            return None
        try:
            return _mapped(descriptor, size)
        except OSError:
            return None
        finally:
            os.close(descriptor)


class Offer:
    """Shared memory that this process offers to others, who map it before it is closed.

    Attributes
    ----------
    address : Address
    array : uint8[size] full of zeros

    Raises
    ------
    OSError
        This system has no such memory, or no room for it.
    """

    def __init__(self, size: int):
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memfd_create")
        name = f"mfpar-{secrets.token_hex(8)}"
        self._descriptor = os.memfd_create(name)
        try:
            os.ftruncate(self._descriptor, size)
            self.array = _mapped(self._descriptor, size)
        except OSError:
            os.close(self._descriptor)
            raise
        self.address = Address(os.getpid(), self._descriptor, name)

    def close(self) -> None:
        """Nobody can map it from now on; who has, keeps it."""
        os.close(self._descriptor)


def _mapped(descriptor: int, size: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
