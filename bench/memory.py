"""What ranks planned to take in memory, and what they took: resident, streamed and spilled, by kind of run.

`python bench/memory.py [--rows 480_000] [--cols 120_000] [--ratings 4_000_000]`
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from matrix import Shape, ratings
from picture import Bars
from report import report

import mfpar

WAYS: list[tuple[str, list[str]]] = [
    ("all in memory", []),
    ("copies on the disk", ["--memory", "{most}"]),
    ("streamed", ["--memory", "{some}"]),
    ("spilled", ["--memory", "{least}", "--spill", "{folder}"]),
]
SETTINGS: list[tuple[str, list[str]]] = [
    ("1 rank", []),
    ("2 threads", ["--threads", "2"]),
    ("2 ranks", ["--ranks", "2"]),
    ("4 ranks", ["--ranks", "4"]),
    ("AdaGrad, k = 32", ["--optimizer", "adagrad", "--factors", "32"]),
    ("validation, k = 128", ["--factors", "128", "--no-biases", "--validation-fraction", "0.1"]),
]


def run(file: Path, folder: Path, options: list[str]) -> dict[str, Any]:
    """Train, and return the log's line about memory."""
    log = folder / "run.jsonl"
    command = [sys.executable, "-m", "mfpar", "train", str(file), "-o", str(folder / "model.h5"), "--force"]
    command += ["--factors", "64", "--epochs", "4", "--progress", "none", "--log", str(log), *options]
    subprocess.run(command, check=True, timeout=600)
    first, *_, last, _ = map(json.loads, log.read_text().splitlines())
    return first["memory"] | {"peak": last["peak_memory"]}


def rows_of(file: Path, folder: Path) -> list[dict[str, Any]]:
    """A row of figures for each way to run, with shares of the ranks farthest from, and nearest to, their plans."""
    rows = []
    for name, options in SETTINGS:
        whole = max(run(file, folder, options)["planned"])
        floor = 245_000_000
        bounds = {"most": whole - 1, "least": floor + (whole - floor) // 6}
        for way, more in WAYS:
            given = [part.format(**bounds, folder=folder) for part in more]
            try:
                found = run(file, folder, [*options, *given])
            except subprocess.CalledProcessError:
                continue  # said why
            bounds["some"] = max(found["planned"]) - 1
            shares = [peak / planned for peak, planned in zip(found["peak"], found["planned"], strict=True)]
            rows.append(
                {
                    "settings": name,
                    "way": way,
                    "planned MB": max(found["planned"]) / 1e6,
                    "peak MB": max(found["peak"]) / 1e6,
                    "least share": min(shares),
                    "largest share": max(shares),
                    "streamed": any(found["streamed"]),
                    "spilled": any(found["spilled"]),
                }
            )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=480_000)
    parser.add_argument("--cols", type=int, default=120_000)
    parser.add_argument("--ratings", type=int, default=4_000_000)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mfpar-bench-") as scratch:
        data = Path(scratch) / "ratings.h5"
        mfpar.convert(ratings(Shape(parsed.rows, parsed.cols, parsed.ratings)), data, test_fraction=0.01, grid=16)
        found = rows_of(data, Path(scratch))
    labels = [f"{row['settings']}, {row['way']}" for row in found]
    bars = Bars("peak, share of the plan", "", labels, {"share": [row["largest share"] for row in found]})
    report("memory", f"memory of a rank, {parsed.rows:,} × {parsed.cols:,}", found, [bars])
