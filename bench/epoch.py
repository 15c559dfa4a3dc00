"""Whole epochs from conversion to model: updates per second on ranks × threads, and the fingerprint of each.

`python bench/epoch.py [--shape ml-10m] [--scale 1.0] [--factors 32] [--epochs 5]`
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from matrix import SHAPES, ratings
from report import report

import mfpar

RUNS = ((1, 1), (1, 2), (2, 1))  # ranks, threads


def measure(args: argparse.Namespace, folder: Path) -> list[dict]:
    """A row of figures for each number of ranks and threads, of each kind of model."""
    started = time.perf_counter()
    file = folder / "ratings.h5"
    header = mfpar.convert(ratings(SHAPES[args.shape].scaled(args.scale)), file, grid=args.grid)
    print(f"generated and converted {header.ratings:,} ratings in {time.perf_counter() - started:.1f} s")
    figures = []
    for kind in ({"biases": False}, {"biases": True}, {"biases": True, "optimizer": "adagrad"}):
        for ranks, threads in RUNS:
            epochs: list[mfpar.EpochReport] = []
            started = time.perf_counter()
            model = mfpar.factorize(
                file, args.factors, epochs=args.epochs, threads=threads, ranks=ranks if ranks > 1 else None,
                callback=epochs.append, **kind,
            )  # fmt: skip
            figures.append(
                {
                    "optimizer": kind.get("optimizer", "sgd"),
                    "biases": "yes" if kind["biases"] else "no",
                    "ranks": ranks,
                    "threads": threads,
                    "M updates/s": statistics.median(epoch.updates_per_second for epoch in epochs) / 1e6,
                    "waiting": statistics.median(epoch.seconds_waiting / epoch.seconds for epoch in epochs),
                    "whole call s": time.perf_counter() - started,
                    "fingerprint": model.fingerprint[:12],
                }
            )
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="ml-10m")
    parser.add_argument("--scale", type=float, default=0.25)
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--factors", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=5)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mfpar-bench-") as scratch:
        found = measure(parsed, Path(scratch))
    title = f"epochs, {parsed.shape} × {parsed.scale:g}, {parsed.factors} factors, grid {parsed.grid}"
    report("epoch", title, found)
