"""How much memory the processes of a job may take, and have taken: what cgroups, SLURM and the machine say."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

SHARE = 0.9  # of it, to leave room for what is not ours
LIBRARIES = 100_000_000  # bytes of libraries, which all ranks of a node share, but which count for each of them
CONTROLLERS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60  # bytes: what version 1 says where nothing is set is above


def allowed_memory(ranks: int) -> int | None:
    """Bytes that each of so many ranks on this node may take; None where nothing says how much there is."""
    known = [*_cgroup_limits(), *_slurm_limits(), *_machine()]
    if not known:
        return None
    allowed = int(SHARE * min(known))
    shared = LIBRARIES if allowed > LIBRARIES else 0
    return (allowed - shared) // ranks + shared


def peak_memory() -> int:
    """Bytes that this process had in memory at most, shared ones included."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1 << 10)


def _cgroup_limits() -> Iterator[int]:
    """Limits of this process's memory cgroup and of those above it, version 1 and 2."""
    with suppress(OSError):
        for line in OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            top, name = CONTROLLERS, "memory.max"
            if controllers:
                top, name = CONTROLLERS / "memory", "memory.limit_in_bytes"
            folder = top / path.lstrip("/")
            for group in (folder, *folder.parents):
                if group == top.parent:
                    break
                with suppress(OSError, ValueError):
                    limit = int((group / name).read_text())
                    if limit < UNLIMITED:
                        yield limit


def _slurm_limits() -> Iterator[int]:
    """What SLURM has given this job on each node, in MiB."""
    with suppress(KeyError, ValueError):
        yield int(os.environ["SLURM_MEM_PER_NODE"]) << 20
    with suppress(KeyError, ValueError):
        yield int(os.environ["SLURM_MEM_PER_CPU"]) * int(os.environ["SLURM_CPUS_ON_NODE"]) << 20


def _machine() -> Iterator[int]:
    """Memory that this node has free, caches included."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        yield int(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))) << 10
        return
    with suppress(OSError, ValueError):
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
