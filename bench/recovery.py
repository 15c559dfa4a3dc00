"""What happens when a rank is killed, and what it costs to be prepared: checkpoints on disk, replicas in memory.

`python bench/recovery.py [kill|cost] [--ratings 8_000_000] [--factors 64]`. `kill`: seconds from the end of one of
four ranks in mid-epoch, under Open MPI with ULFM, until the others have agreed, gone back, and done an epoch. `cost`:
epochs of two ranks with checkpoints and with replicas beside epochs without, taking turns. Checkpoints are begun far
more often there than anybody would, so that their cost shows; what it is at one a minute is reckoned from that. Runs
have to be long, compared with a first refresh of replicas: the pace that bounds their cost begins with that.
"""

import argparse
import itertools
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matrix import SHAPES, ratings
from report import median_and_spread, report

import mfpar
from mfpar.parallel.launch import ONE_NODE

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from victims import Job  # type: ignore[import-not-found]  # noqa: E402

MPIRUN = Path(sys.executable).parent / "mpirun"
EPOCHS, KILLED = 150, 75  # of a run in which a rank is killed; how many are done by then
TIMEOUT = 600.0  # seconds of a run
PREPARED = {
    "replica in memory": ["--replicas", "1"],
    "checkpoint on disk": ["--checkpoint", "saved", "--checkpoint-every", "2ep"],
    "both": ["--replicas", "1", "--checkpoint", "saved", "--checkpoint-every", "2ep"],
    "nothing": [],
}
Row = dict[str, Any]


class Site:
    """A folder with ratings, and runs on them."""

    def __init__(self, folder: Path, args: argparse.Namespace):
        self.folder, self.args, self._count = folder, args, itertools.count()
        self.data = folder / "ratings.h5"
        mfpar.convert(ratings(SHAPES["ml-10m"].with_ratings(args.ratings)), self.data, grid=16)
        with self.start(2, EPOCHS) as job:  # compiles, too
            self.fingerprint = next(job.after(0, "saved"))[1]["fingerprint"]

    def start(self, ranks: int, epochs: int, *options: str, wait: bool = True) -> Job:
        """A run under mpirun with ULFM; by default it has ended, and well."""
        shutil.rmtree(self.folder / "saved", ignore_errors=True)
        command = [str(MPIRUN), "--with-ft", "ulfm", "-n", str(ranks), sys.executable, "-m", "mfpar", "train"]
        command += [str(self.data), "-o", "model.h5", "--force", "--progress", "json", "--epochs", str(epochs)]
        command += ["--factors", str(self.args.factors), *options]
        environment = {**os.environ, **ONE_NODE, "PYTHONPATH": str(ROOT)}
        job = Job(command, self.folder, "run", f"bench-{os.getpid()}-{next(self._count)}", environment)
        if wait and job.wait(TIMEOUT) != 0:
            said = (self.folder / "run.err").read_text()
            job.end()
            raise RuntimeError(f"{' '.join(command)}: ended with {job.code}: {said}")
        return job


def kill(site: Site) -> Iterator[Row]:
    """Seconds from the kill to what came then, for each way to be prepared, in the median and at worst."""
    chance = random.Random(0)
    for name, options in PREPARED.items():
        found: dict[str, list[float]] = {
            "until it is noticed": [],
            "until they go on": [],
            "until an epoch is done": [],
        }
        epoch, lost, same = 0.0, [], True
        for _ in range(site.args.rounds):
            with site.start(4, EPOCHS, *options, wait=False) as job:
                job.until(lambda job=job: job.epoch >= KILLED, TIMEOUT)
                epochs = [when for when, _ in job.after(0, "epoch")]
                epoch = statistics.median(b - a for a, b in itertools.pairwise(epochs))
                time.sleep(chance.uniform(0.1, 0.9) * epoch)
                victim = chance.choice([one for one in job.processes() if one.role == "rank"])
                moment, done = time.monotonic(), job.epoch
                job.signal(victim, signal.SIGKILL)
                if job.wait(TIMEOUT) != 0:
                    raise RuntimeError(f"{name}: ended with {job.code}: {(site.folder / 'run.err').read_text()}")
                resumed, event = next(job.after(moment, "resume"))
                found["until it is noticed"].append(next(job.after(moment, "lost"))[0] - moment)
                found["until they go on"].append(resumed - moment)
                found["until an epoch is done"].append(next(job.after(resumed, "epoch"))[0] - moment)
                lost.append(done + 1 - event["epoch"])
                same &= next(job.after(moment, "saved"))[1]["fingerprint"] == site.fingerprint
        row: Row = {"prepared": name, "epoch s": epoch}
        for what, seconds in found.items():
            row[what], row[what + ": range"] = median_and_spread(seconds)
        yield row | {"epochs lost": max(lost), "same fingerprint": same}


def cost(site: Site) -> Iterator[Row]:
    """Seconds of an epoch, from one to the next, and what checkpoints and replicas add."""
    every = site.args.every
    ways = {
        "nothing": [],
        f"checkpoint every {every} epochs": ["--checkpoint", "saved", "--checkpoint-every", f"{every}ep"],
        "replicas": ["--replicas", "1"],
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    whole: dict[str, list[int]] = {name: [] for name in ways}
    for _ in range(site.args.rounds):  # in turn, so that none has the quiet hours for itself
        for name, options in ways.items():
            with site.start(2, site.args.epochs, *options) as job:
                epochs = [when for when, _ in job.after(0, "epoch")]
                took[name].append((epochs[-1] - epochs[0]) / (len(epochs) - 1))
                whole[name].append(sum(epochs[0] < when <= epochs[-1] for when, _ in job.after(0, "checkpoint")))
    for name, seconds in took.items():
        more = [with_ - without for with_, without in zip(seconds, took["nothing"], strict=True)]  # of the same round
        percent = [100 * extra / without for extra, without in zip(more, took["nothing"], strict=True)]
        row: Row = {"with": name, "epoch s": statistics.median(seconds)}
        row["percent more"], row["range"] = median_and_spread(percent)
        if count := statistics.median(whole[name]):
            each = statistics.median(more) * (site.args.epochs - 1) / count
            row |= {"checkpoints": count, "s each": each, "percent at one a minute": 100 * each / 60}
        yield row


KINDS = {"kill": kill, "cost": cost}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], default=[])
    parser.add_argument("--ratings", type=int, default=8_000_000)
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=401)
    parser.add_argument("--every", type=int, default=40, help="epochs from one checkpoint to the next")
    parser.add_argument("--rounds", type=int, default=5)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mfpar-bench-") as scratch:
        site = Site(Path(scratch), parsed)
        for kind in parsed.kinds or KINDS:
            title = f"recovery: {kind}, {parsed.ratings:,} ratings, {parsed.factors} factors"
            report(f"recovery-{kind}", title, list(KINDS[kind](site)))
