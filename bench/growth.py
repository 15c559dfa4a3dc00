"""How the time of an epoch grows: with the number of ratings, of factors, and of blocks; one rank, one thread.

Ratings: matrices of one density, whose sides grow with the root, in the grid that `mfpar convert` chooses. The straight
line is fitted to the relative errors from `--line-from` on. Runs of all sizes take turns.
`python bench/growth.py [--ratings 1_000_000,…,100_000_000] [--factors 8,…,256] [--grids 4,…,256] [--rounds 5]`
"""

import argparse
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matrix import SHAPES, ratings
from picture import Lines
from report import median_and_spread, numbers, report
from runs import Run, alternating, train

import mfpar

MEMORY = 4 << 30  # bytes for a conversion


def converted(path: Path, shape: str, count: int, grid: int | None = None) -> Path:
    """A blocked file with so many ratings, made once."""
    if not path.exists():
        mfpar.convert(ratings(SHAPES[shape].with_ratings(count)), path, grid=grid, memory=MEMORY)
    return path


def line_through(x: Sequence[float], y: Sequence[float]) -> np.ndarray:
    """float64[n]: values at x of the straight line with the least squares of relative errors of y.

    >>> line_through([1.0, 2.0, 3.0], [3.0, 5.0, 7.0]).round(6).tolist()
    [3.0, 5.0, 7.0]
    """
    table = np.column_stack((np.ones(len(x)), x))
    weights = 1 / np.asarray(y, np.float64)
    solved = np.linalg.lstsq(table * weights[:, None], np.ones(len(x)), rcond=None)[0]
    return table @ solved


def measure(name: str, calls: dict[int, Callable[[], Run]], rounds: int) -> list[dict[str, Any]]:
    """A row for each size."""
    for call in calls.values():
        call()  # compiles, and brings files into memory
    rows = []
    for size, runs in alternating(calls, rounds).items():
        seconds, spread = median_and_spread([run.seconds for run in runs])
        rate = median_and_spread([run.rate for run in runs])[0]
        rows.append({"growing": name, "size": size, "epoch s": seconds, "range": spread, "M updates/s": rate})
        rows[-1]["ns a rating"] = 1e3 / rate
    return rows


def against_line(rows: list[dict[str, Any]], start: int) -> None:
    """Add to rows from a size on how far they are off the straight line."""
    rows = [row for row in rows if row["size"] >= start]
    if len(rows) > 2:
        fitted = line_through([row["size"] for row in rows], [row["epoch s"] for row in rows])
        for row, value in zip(rows, fitted, strict=True):
            row["off the line"] = f"{100 * (row['epoch s'] / value - 1):+.1f} %"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="netflix", help="whose density the matrices have")
    parser.add_argument("--ratings", type=numbers, default=[n * 1_000_000 for n in (1, 2, 5, 10, 20, 50, 100)])
    parser.add_argument("--line-from", type=int, default=2_000_000)
    parser.add_argument("--factors", type=numbers, default=[8, 16, 32, 64, 128, 256])
    parser.add_argument("--grids", type=numbers, default=[4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--fixed", type=int, default=8_000_000, help="ratings for the growth with factors and blocks")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parsed = parser.parse_args()
    run = functools.partial(train, epochs=parsed.epochs)
    with tempfile.TemporaryDirectory(prefix="mfpar-bench-") as scratch:
        folder = Path(scratch)
        middle = converted(folder / "middle.h5", "ml-10m", parsed.fixed, 16)
        by_factors = {k: functools.partial(run, middle, k) for k in parsed.factors}
        found = measure("factors", by_factors, parsed.rounds)
        cut = {size: converted(folder / f"grid-{size}.h5", "ml-10m", parsed.fixed, size) for size in parsed.grids}
        found += measure("grid", {size: functools.partial(run, file, 32) for size, file in cut.items()}, parsed.rounds)
        grown = {count: converted(folder / f"{count}.h5", parsed.shape, count) for count in parsed.ratings}
        sizes = measure("ratings", {n: functools.partial(run, file, 32) for n, file in grown.items()}, parsed.rounds)
    against_line(sizes, parsed.line_from)
    found += sizes
    panels = []
    for growing, y in (("ratings", "epoch s"), ("factors", "ns a rating"), ("grid", "ns a rating")):
        rows = [row for row in found if row["growing"] == growing]
        series: dict[str, Any] = {"measured": ([row["size"] for row in rows], [row[y] for row in rows])}
        if growing == "ratings":
            straight = line_through(*series["measured"])
            series["(straight line)"] = series["measured"][0], straight.tolist()
        panels.append(Lines(f"growing {growing}", growing, y, series, "x" if growing == "grid" else "xy"))
    report("growth", "time of an epoch, one rank, one thread, SGD with biases", found, panels)
