"""Several hosts made of this machine (tests/hosts.py): a model larger than one, waits, and plans against runs.

`python bench/nodes.py larger|waits|plan` (root on Linux). `larger` trains a model of 1.2 GB on four hosts of 700 MiB
each, joined at 1 Gb/s; one of them refuses it, and trains it where rows may be spilled. `waits`: what an epoch waits
for on two hosts. `plan`: what `mfpar plan` says, on the hosts themselves, against what runs take.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matrix import Shape, ratings
from report import report

import mfpar

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from hosts import Hosts, why_not  # type: ignore[import-not-found]

LIMIT = 700 << 20  # bytes of a host
TIMEOUT = 600  # seconds
Row = dict[str, Any]


class Site:
    """A folder with ratings, and hosts that run mfpar on them."""

    def __init__(self, folder: Path, shape: Shape, grid: int):
        self.folder, self.data = folder, folder / "ratings.h5"
        mfpar.convert(ratings(shape), self.data, grid=grid, test_fraction=0.02)

    def run(
        self, commands: list[list[str]], hosts: int, rate: str, memory: int | None = None
    ) -> list[tuple[int, str, str]]:
        """Exit code and output of each command, with a rank on each host."""
        limits = dict.fromkeys(range(hosts), memory) if memory else None
        try:
            with Hosts(self.folder, hosts, limits, rate) as there:
                done = [there.run(1, *command, timeout=TIMEOUT) for command in commands]
        finally:
            shutil.rmtree(self.folder / "hosts", ignore_errors=True)
        return [(one.returncode, one.stdout, one.stderr) for one in done]

    def train(self, *options: str, name: str = "model") -> list[str]:
        """The command that trains, with a log."""
        outputs = ["-o", str(self.folder / f"{name}.h5"), "--log", str(self.folder / f"{name}.jsonl"), "--force"]
        return ["train", str(self.data), *outputs, "--progress", "none", *options]

    def log(self, name: str = "model") -> Row:
        """Medians over the epochs but the first, and the largest peak of memory."""
        lines = (self.folder / f"{name}.jsonl").read_text().splitlines()
        epochs = [event for event in map(json.loads, lines) if event["kind"] == "epoch"]
        names = ("seconds", "seconds_waiting", "seconds_exchange", "updates_per_second")
        found = {one: statistics.median(epoch[one] for epoch in epochs[1:]) for one in names}
        found["bytes_sent"] = statistics.mean(epoch["bytes_sent"] for epoch in epochs)
        return found | {
            "peak": max(epochs[-1]["peak_memory"]),
            "planned": max(json.loads(lines[0])["memory"]["planned"]),
        }


def larger(folder: Path) -> Iterator[Row]:
    """The same model on this machine without a bound, on four hosts, on one, on one that may spill."""
    site = Site(folder, Shape(3_700_000, 1_000_000, 30_000_000), 64)
    settings = ["--factors", "64", "--epochs", "2"]
    ways = {
        "no bound": (1, [], None),
        "4 hosts": (4, [], LIMIT),
        "1 host": (1, [], LIMIT),
        "1 host, spilled": (1, ["--spill", str(folder)], LIMIT),
    }
    for name, (hosts, more, limit) in ways.items():
        [(code, _, said)] = site.run([site.train(*settings, *more)], hosts, "1gbit", limit)
        row = {"way": name, "exit code": code}
        if code == 0:
            log = site.log()
            row |= {"M updates/s": log["updates_per_second"] / 1e6, "peak MB": log["peak"] / 1e6}
            row |= {"fingerprint": mfpar.load(folder / "model.h5").fingerprint[:16]}
        else:
            print(said)
        yield row


def waits(folder: Path) -> Iterator[Row]:
    """What threads wait for on two hosts whose compute takes more than twice the transfer."""
    site = Site(folder, Shape(138_493, 10_000, 20_000_000), 16)
    for factors in ("64", "128"):
        site.run([site.train("--factors", factors, "--epochs", "8")], 2, "1gbit")
        log = site.log()
        transfer = log["bytes_sent"] / 2 / 117e6  # what TCP gets out of 1 Gb/s
        yield {
            "factors": int(factors),
            "epoch s": log["seconds"],
            "transfer s": transfer,
            "waiting": log["seconds_waiting"] / log["seconds"],
            "exchange s": log["seconds_exchange"],
        }


def plan(folder: Path) -> Iterator[Row]:
    """Seconds and bytes of an epoch, planned on the hosts and taken."""
    site = Site(folder, Shape(138_493, 20_000, 20_000_000), 32)
    for hosts in (2, 4):
        for rate in ("1gbit", "200mbit"):
            settings = ["--factors", "64", "--epochs", "8"]
            asked = ["plan", str(site.data), *settings, "--ranks", str(hosts), "--json"]
            (_, said, _), _ = site.run([asked, site.train(*settings)], hosts, rate)
            planned = json.loads(next(line for line in said.splitlines() if line.startswith("{")))["plan"][0]
            log = site.log()
            yield {
                "hosts": hosts,
                "link": rate,
                "planned s": planned["seconds"],
                "epoch s": log["seconds"],
                "time off": planned["seconds"] / log["seconds"] - 1,
                "planned MB": planned["bytes_sent"] / 1e6,
                "MB sent": log["bytes_sent"] / 1e6,
                "bytes off": planned["bytes_sent"] / log["bytes_sent"] - 1,
            }


KINDS = {"larger": larger, "waits": waits, "plan": plan}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], default=[])
    chosen = parser.parse_args().kinds or KINDS
    if reason := why_not({0: LIMIT}):
        sys.exit(reason)
    os.environ.update({"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"})
    for kind in chosen:
        with tempfile.TemporaryDirectory(prefix="mfpar-bench-") as scratch:
            report(f"hosts-{kind}", f"several hosts: {kind}", list(KINDS[kind](Path(scratch))), [])
