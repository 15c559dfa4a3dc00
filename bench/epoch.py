"""Whole epochs from conversion to model: updates per second on ranks × threads, and the fingerprint of each.

All ways to run take turns, several times. `python bench/epoch.py [--shape ml-10m] [--scale 1.0] [--factors 32]`
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from limits import epoch_limit, gigabytes
from matrix import SHAPES, ratings
from picture import Bars
from report import median_and_spread, report
from runs import Run, alternating, train

import mfpar

WAYS = ((1, 1), (1, 2), (2, 1))  # ranks, threads
KINDS: dict[str, dict[str, Any]] = {
    "SGD, no biases": {"biases": False},
    "SGD": {},
    "AdaGrad": {"optimizer": "adagrad"},
}


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row of figures for each number of ranks and threads, of each kind of model."""
    started = time.perf_counter()
    file = folder / "ratings.h5"
    header = mfpar.convert(ratings(SHAPES[args.shape].scaled(args.scale)), file, grid=args.grid)
    print(f"generated and converted {header.ratings:,} ratings in {time.perf_counter() - started:.1f} s")
    contestants: dict[Any, Any] = {
        (kind, ranks, threads): lambda ranks=ranks, threads=threads, settings=settings: train(
            file, args.factors, ranks, threads, epochs=args.epochs, **settings
        )
        for kind, settings in KINDS.items()
        for ranks, threads in WAYS
    }
    for kind in KINDS:
        contestants[kind, 1, 1]()  # compiles
    runs: dict[Any, list[Run]] = alternating(contestants, args.rounds)
    limit = epoch_limit(file, args.factors)()
    return [row_of(*key, several, limit, args.factors) for key, several in runs.items()]


def row_of(kind: str, ranks: int, threads: int, runs: list[Run], limit: float, factors: int) -> dict[str, Any]:
    """The figures of one way to run; `limit` is what memory allows one core, in million updates a second."""
    rate, spread = median_and_spread([run.rate for run in runs])
    return {
        "kind": kind,
        "ranks": ranks,
        "threads": threads,
        "M updates/s": rate,
        "range": spread,
        "GB/s": gigabytes(rate, factors),
        "share of limit": rate / limit / (ranks * threads),
        "waiting": median_and_spread([run.waiting for run in runs])[0],
        "whole call s": median_and_spread([run.whole for run in runs])[0],
        "fingerprint": " ".join({run.fingerprint[:12] for run in runs}),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="ml-10m")
    parser.add_argument("--scale", type=float, default=0.25)
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--factors", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mfpar-bench-") as scratch:
        found = measure(parsed, Path(scratch))
    title = f"epochs, {parsed.shape} × {parsed.scale:g}, {parsed.factors} factors, grid {parsed.grid}"
    heights = {
        f"{ranks} × {threads}": [
            row["M updates/s"] for row in found if (row["ranks"], row["threads"]) == (ranks, threads)
        ]
        for ranks, threads in WAYS
    }
    report("epoch", title, found, [Bars("ranks × threads", "M updates/s", list(KINDS), heights)])
