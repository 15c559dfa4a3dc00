"""`mfpar doctor`: whether machines, MPI and settings are fit for a run."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from mfpar.errors import LaunchError, MfparError
from mfpar.parallel import launch
from mfpar.parallel.comm import Communicator, Serial


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser("doctor", help="test MPI, memory, folders and settings", description=_TEXT)
    parser.add_argument("--folder", metavar="DIR", action="append", default=[], help="test files there, too")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads that each rank shall have")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run, collective=True)


_TEXT = """Tests what a run needs, a line for each test. Run it as it is, or under mpirun or srun as a run would be:
then it also tests what ranks do together. It fails only if something is found that a run would fail on."""


def run(args: argparse.Namespace) -> None:
    """Run the verb. Collective under a launcher."""
    from mfpar.doctor.examine import examine
    from mfpar.doctor.finding import FAILED, Finding

    comm, trouble = _world()
    with comm.guard():
        found = examine(comm, [Path(), *map(Path, args.folder)], args.threads)
    found = [*([Finding("ranks", FAILED, trouble)] if trouble else []), *found]
    if comm.rank == 0 and launch.launched_rank() == 0:
        if args.json:
            print(json.dumps([asdict(one) for one in found]))
        else:
            for one in found:
                print(f"{one.state + ':':<9} {one.name}: {one.message}" + (f"; {one.advice}" if one.advice else ""))
    failed = [one.name for one in found if one.state == FAILED]
    if failed:
        raise MfparError(f"doctor: {', '.join(failed)} failed; see above for what to do")


def _world() -> tuple[Communicator, str]:
    """All ranks; one alone, and why, where they can't be had."""
    try:
        return launch.world(), ""
    except LaunchError as error:
        return Serial(), str(error)
