"""A run that outlives its ranks: when some are lost, those that are left try again, from the last cut there is."""

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mfpar import errors
from mfpar.api.runs import Event, train_file
from mfpar.config import ModelConfig, SafetyConfig, TrainConfig
from mfpar.parallel import launch
from mfpar.parallel.bounded import bounded
from mfpar.parallel.comm import Communicator
from mfpar.parallel.watch import TIMES
from mfpar.recovery.keeper import Precautions
from mfpar.supervise.folder import remove_abandoned

LOG = logging.getLogger(__name__)


def train_enduringly(
    path: str | Path,
    output: str | Path,
    model: ModelConfig,
    train: TrainConfig,
    comm: Communicator,
    listen: Callable[[Event], None],
    *,
    safety: SafetyConfig,
    stop: Callable[[], bool],
    **options: Any,
) -> str:
    """`mfpar.api.runs.train_file` on all ranks, and on those that are left where MPI lets them go on. Collective.

    It enters `guard` itself, and may return on another communicator than `comm`, which is of no use then.

    Parameters
    ----------
    safety : SafetyConfig
    stop : whether this process is asked to end the run before its time
    options : `log`, `trace`, `force` of `train_file`

    Raises
    ------
    RankLostError
        A rank was lost, and MPI does not let the others go on.
    """
    if comm.rank == 0:
        remove_abandoned(Path(output))  # of a supervisor that was killed: this run goes on in its place
    precautions = Precautions(safety, stop)
    # One that was started anew may have come to fewer than there were.
    ranks = max(comm.size, launch.expected_size()[0])
    while True:
        try:
            with _watched(comm, safety.hang_timeout), comm.guard():
                return train_file(path, output, model, train, comm, listen, precautions=precautions, **options)
        except errors.RankLostError as error:
            if not comm.tolerant:
                raise
            lost = str(error)
            LOG.debug("%s", lost, exc_info=True)
        comm = comm.survivors()
        if safety.respawn and comm.size < ranks:
            comm = comm.survivors(ranks - comm.size)
        gc.collect()  # what the attempt had in memory, all that the old ranks knew of, goes before the next
        LOG.debug("rank %d of %d from here on", comm.rank, comm.size)
        precautions.lost = f"{lost}; {comm.size} rank{'s go' if comm.size > 1 else ' goes'} on"
        precautions.lost += f" ({comm.warning})" * bool(comm.warning)


@contextlib.contextmanager
def _watched(comm: Communicator, timeout: float) -> Iterator[None]:
    """See `Communicator.watch`; who has come, but does not begin, is not waited for either."""
    with contextlib.ExitStack() as beginning:
        patience = TIMES * timeout if comm.size > 1 else 0.0
        beginning.enter_context(bounded(patience, "the ranks did not begin together"))
        with comm.watch(timeout):
            beginning.close()
            yield
