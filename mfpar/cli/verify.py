"""`mfpar verify`: whether files are what was written."""

import argparse
import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from mfpar.cli.quantities import in_units
from mfpar.errors import FormatError

if TYPE_CHECKING:
    from mfpar.integrity.findings import Findings

SHOWN = 20  # damaged parts of a file that are named


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser("verify", help="check files against their checksums")
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="blocked files, models, checkpoints, or folders of these"
    )
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the verb."""
    from mfpar.integrity.verify import checkpoints_or_itself, verify

    damaged = []
    for name in (one for named in args.files for one in checkpoints_or_itself(named)):
        started = time.perf_counter()
        found = verify(name)
        seconds = time.perf_counter() - started
        if args.json:
            print(json.dumps({**asdict(found), "path": name, "sound": found.sound, "seconds": round(seconds, 3)}))
        else:
            _show(found, seconds)
        damaged += [] if found.sound else [name]
    if damaged:
        them = ", ".join(damaged[:SHOWN]) + (f" and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else "")
        raise FormatError(f"not sound: {them}; make what is damaged again, or take it from a copy")


def _show(found: "Findings", seconds: float) -> None:
    """One line if all is well, otherwise one for each damaged part."""
    if found.sound:
        counts = ", ".join(f"{count:,} {name}" for name, count in found.counts.items())
        read = f"{found.parts:,} parts, {in_units(found.bytes)} in {seconds:.1f} s"
        print(f"{found.path}: sound {found.kind}: {counts}; {read}")
        return
    for text in found.damage[:SHOWN]:
        print(f"{found.path}: damaged: {text}")
    if len(found.damage) > SHOWN:
        print(f"{found.path}: and {len(found.damage) - SHOWN} more")
