"""All tests of `mfpar doctor`."""

from collections.abc import Sequence
from pathlib import Path

from mfpar.doctor.facts import facts
from mfpar.doctor.finding import Finding
from mfpar.doctor.judgements import judge
from mfpar.doctor.trials import try_all
from mfpar.parallel.comm import Communicator
from mfpar.parallel.launch import expected_size


def examine(comm: Communicator, folders: Sequence[Path], threads: int = 1) -> list[Finding]:
    """Examine the ranks and their hosts. Collective, within the guard; the same list on every rank.

    Parameters
    ----------
    folders : in which files are to be written
    threads : of each rank that a run will have
    """
    return [*judge(comm.gather(facts()), threads, expected_size()[0] > 1), *try_all(comm, list(folders))]
