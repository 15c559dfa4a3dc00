"""What each rank knows of its process and its host, as plain JSON values. Local, all of it."""

import ctypes
import importlib.metadata
import os
import platform
import shutil
import socket
from pathlib import Path
from typing import Any

from mfpar.kernels.machine import cache_folder, target
from mfpar.parallel.installed import about_mpi
from mfpar.parallel.limits import allowed_memory
from mfpar.parallel.memory import Address, Offer

PACKAGES = ("mfpar", "numpy", "scipy", "numba", "llvmlite", "h5py", "mpi4py", "duckdb")
FUTEX = {"x86_64": 202, "aarch64": 98}  # number of the system call
WAKE = 1
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where MPI libraries keep theirs on Linux


def facts() -> dict[str, Any]:
    """All that a rank knows."""
    return {
        "host": socket.gethostname(),
        "mpi": about_mpi(),
        "cpu": target(),
        "cache": cache_folder(),
        "cores": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(_cores())),
        "blas": os.environ.get("OPENBLAS_NUM_THREADS"),
        "memory": allowed_memory(1),
        "shm": shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None,
        "memfd": memfd_works(),
        "futex": futex_works(),
        "versions": {"Python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def memfd_works() -> str:
    """Why memory can't be shared by way of /proc; "" where it can."""
    try:
        offer = Offer(1 << 16)
    except OSError as error:
        return str(error)
    try:
        mapped = Address(os.getpid(), offer.address.descriptor, offer.address.name).map(1 << 16)
        return "" if mapped is not None else f"/proc/{os.getpid()}/fd can't be read"
    finally:
        offer.close()


def futex_works() -> bool:
    """Whether the kernel of the operating system lets threads sleep until a number changes."""
    number = FUTEX.get(platform.machine())
    if platform.system() != "Linux" or number is None:
        return False
    word = ctypes.c_int32(0)
    return int(ctypes.CDLL(None).syscall(number, ctypes.byref(word), WAKE, 1, None, None, 0)) >= 0


def _cores() -> int:
    return os.cpu_count() or 1


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
