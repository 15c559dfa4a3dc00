"""What the MPI library that is installed says of itself."""

import os
import sys
import warnings
from collections.abc import Mapping
from typing import Any

FAULT_TOLERANCE = "OMPI_MCA_mpi_ft_enable"  # set by `mpirun --with-ft ulfm`, for every rank and those that it starts
LEVELS = ("single", "funneled", "serialized", "multiple")


def about_mpi(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Facts as plain JSON values; does not start MPI. Local.

    Returns
    -------
    dict
        `library` (None where there is none, and `reason` says why), `standard`, `threads` (None where MPI does not
        run), `revoke`: whether the library knows MPI_Comm_revoke, `tolerant`: whether ranks were started with ULFM.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            if "mpi4py.MPI" not in sys.modules:
                import mpi4py

                mpi4py.rc.initialize = False
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        return {"library": None, "reason": str(error).splitlines()[0]}
    running = MPI.Is_initialized() and not MPI.Is_finalized()
    return {
        "library": " ".join(MPI.Get_library_version().splitlines()[0].split(",")[0].split()),
        "standard": ".".join(map(str, MPI.Get_version())),
        "threads": _level(MPI) if running else None,
        "revoke": revokes(MPI) if running else None,
        "tolerant": enabled(environment),
    }


def _level(MPI: Any) -> str:
    known = (MPI.THREAD_SINGLE, MPI.THREAD_FUNNELED, MPI.THREAD_SERIALIZED, MPI.THREAD_MULTIPLE)
    return LEVELS[known.index(MPI.Query_thread())]


def enabled(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the launcher was told to let ranks go on when others die. Local."""
    return environment.get(FAULT_TOLERANCE, "").lower() in ("1", "true", "yes", "enabled")


def revokes(MPI: Any) -> bool:
    """Whether a communicator can be asked if it was revoked; mpi4py raises NotImplementedError where it can't."""
    try:
        MPI.COMM_SELF.Is_revoked()
    except (AttributeError, NotImplementedError, MPI.Exception):
        return False
    return True
