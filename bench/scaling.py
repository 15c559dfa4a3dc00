"""Ranks × threads: how much faster an epoch gets on the same ratings (strong), and on as many for each worker (weak).

All ways to run take turns, and a speed-up is a ratio inside a round. Where there are more workers than cores the ideal
is the number of cores. `python bench/scaling.py [--ratings 8_000_000] [--factors 32,128] [--rounds 5]`
"""

import argparse
import functools
import tempfile
from pathlib import Path
from typing import Any

from matrix import SHAPES, ratings
from picture import Lines, Panel
from report import cores, median_and_spread, numbers, report
from runs import Run, alternating, train

import mfpar

Way = tuple[int, int]  # ranks, threads


def ways_of(text: str) -> list[Way]:
    """The parser of an option that names ways to run.

    >>> ways_of("1x1,1x2,8x1")
    [(1, 1), (1, 2), (8, 1)]
    """
    return [tuple(int(part) for part in one.split("x")) for one in text.split(",")]  # type: ignore[misc]


def ideal(way: Way) -> int:
    """How many times as fast as one core it could be."""
    return min(way[0] * way[1], cores())


def files(args: argparse.Namespace, folder: Path, workers: set[int]) -> dict[int, Path]:
    """A blocked file for each number of workers, with as many times the ratings; all with one grid."""
    found = {}
    for count in sorted(workers):
        found[count] = folder / f"{count}.h5"
        mfpar.convert(ratings(SHAPES[args.shape].with_ratings(count * args.ratings)), found[count], grid=args.grid)
    return found


def measure(kind: str, factors: int, args: argparse.Namespace, data: dict[int, Path]) -> list[dict[str, Any]]:
    """A row for each way to run, of strong or of weak scaling."""
    weak = kind == "weak"
    ways = [way for way in args.ways if not weak or way[0] * way[1] <= cores()]
    size = {way: way[0] * way[1] if weak else 1 for way in ways}
    contestants = {
        way: functools.partial(train, data[size[way]], factors, *way, epochs=args.epochs, biases=args.biases)
        for way in ways
    }
    contestants[ways[0]]()  # compiles
    runs: dict[Way, list[Run]] = alternating(contestants, args.rounds)
    rows = []
    for way in ways:
        seconds, spread = median_and_spread([run.seconds for run in runs[way]])
        gains = [one.seconds / run.seconds * size[way] for one, run in zip(runs[ways[0]], runs[way], strict=True)]
        gain, gain_spread = median_and_spread(gains)
        rows.append(
            {
                "scaling": kind,
                "factors": factors,
                "ranks": way[0],
                "threads": way[1],
                "M ratings": size[way] * args.ratings / 1e6,
                "epoch s": seconds,
                "range": spread,
                "times one core": gain,
                "its range": gain_spread,
                "efficiency": gain / ideal(way),
                "waiting": median_and_spread([run.waiting for run in runs[way]])[0],
                "in kernels": median_and_spread([run.working for run in runs[way]])[0],
            }
        )
    return rows


def panels_of(rows: list[dict[str, Any]]) -> list[Panel]:
    """Speed-up over the number of workers, by kind of scaling and of worker."""
    panels = []
    for kind in dict.fromkeys(row["scaling"] for row in rows):
        series: dict[str, Any] = {}
        for row in rows:
            if row["scaling"] == kind:
                for label, other in (("ranks", "threads"), ("threads", "ranks")):
                    if row[other] == 1:
                        x, y = series.setdefault(f"{label}, k = {row['factors']}", ([], []))
                        x.append(row[label])
                        y.append(row["times one core"])
        most = sorted({x for xs, _ in series.values() for x in xs})
        series["(cores)"] = most, [ideal((workers, 1)) for workers in most]
        panels.append(Lines(f"{kind} scaling, {cores()} cores", "workers", "times one core", series, "x"))
    return panels


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="ml-10m")
    parser.add_argument("--ratings", type=int, default=8_000_000)
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--factors", type=numbers, default=[32, 128])
    parser.add_argument(
        "--ways", type=ways_of, default="1x1,1x2,2x1,2x2,4x1,8x1", help="ranks × threads, first of all 1x1"
    )
    parser.add_argument("--biases", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parsed = parser.parse_args()
    most = {min(ranks * threads, cores()) for ranks, threads in parsed.ways} | {1}
    found = []
    with tempfile.TemporaryDirectory(prefix="mfpar-bench-") as scratch:
        converted = files(parsed, Path(scratch), most)
        for k in parsed.factors:
            for scaling in ("strong", "weak"):
                found += measure(scaling, k, parsed, converted)
    title = f"ranks × threads, {parsed.ratings / 1e6:g} M ratings of {parsed.shape}'s shape, G = {parsed.grid}"
    report("scaling", title, found, panels_of(found))
