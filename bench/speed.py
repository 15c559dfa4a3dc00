"""Updates per second and core beside LIBMF: same data, same number of factors, one thread each, loading not counted.

All take turns: each build of LIBMF that LIBMF_TRAIN names, mfpar with SGD (with biases, and without as LIBMF), with
AdaGrad (LIBMF's own rule), and a kernel that only loads and stores, over the same blocks in the same order. Ratios are
to the build with the best median; a ratio's range is over the rounds.
`LIBMF_TRAIN=… python bench/speed.py [--ratings 8_000_000] [--factors 32,64,128] [--rounds 5]`
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import libmf
import numpy as np
from accuracy import ml_1m
from limits import epoch_limit, gigabytes
from matrix import SHAPES, ratings
from picture import Bars
from report import median_and_spread, numbers, report
from runs import alternating, train

import mfpar

OURS = {
    "mfpar SGD, no biases": {"biases": False},
    "mfpar SGD": {},
    "mfpar AdaGrad, no biases": {"biases": False, "optimizer": "adagrad"},
    "mfpar AdaGrad": {"optimizer": "adagrad"},
}
LIMIT = "loads and stores"
MANY = 11  # epochs of LIBMF that are timed, and one


def measure(
    name: str, data: tuple[np.ndarray, ...], folder: Path, factors: int, args: argparse.Namespace
) -> list[dict]:
    """A row for each contestant."""
    count, file, text = len(data[0]), folder / f"{name}.h5", folder / f"{name}.txt"
    if not file.exists():
        mfpar.convert(data, file)
        libmf.write(text, data)
    contestants: dict[str, Any] = {
        f"LIBMF {build}": lambda path=path: count / libmf.epoch_seconds(path, text, factors, MANY) / 1e6
        for build, path in libmf.builds().items()
    }
    theirs = list(contestants)
    for label, settings in OURS.items():
        contestants[label] = lambda settings=settings: train(file, factors, epochs=args.epochs, **settings).rate
    contestants[LIMIT] = epoch_limit(file, factors)
    for label in OURS:
        contestants[label]()  # compiles
    rates = alternating(contestants, args.rounds)
    yardstick = max((rates[label] for label in theirs), key=statistics.median, default=None)
    rows = []
    for label, measured in rates.items():
        rate, spread = median_and_spread(measured)
        row = {"data": name, "factors": factors, "system": label, "M updates/s": rate, "range": spread}
        row["GB/s"] = gigabytes(rate, factors)
        row["share of limit"] = rate / statistics.median(rates[LIMIT])
        if yardstick is not None:
            ratio, spread = median_and_spread([a / b for a, b in zip(measured, yardstick, strict=True)])
            row |= {"times LIBMF": ratio, "its range": spread}
        rows.append(row)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="ml-10m")
    parser.add_argument("--ratings", type=int, default=8_000_000)
    parser.add_argument("--factors", type=numbers, default=[32, 64, 128])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("MFPAR_SHARED", "../shared")))
    parsed = parser.parse_args()
    sets = {f"{parsed.ratings / 1e6:g} M, {parsed.shape}": (SHAPES[parsed.shape], parsed.factors)}
    if (parsed.shared / "data/ml-1m.npz").exists():
        sets["ML-1M split"] = None, [32]
    found = []
    with tempfile.TemporaryDirectory(prefix="mfpar-bench-") as made:
        for title, (shape, ks) in sets.items():
            columns = ratings(shape.with_ratings(parsed.ratings)) if shape else ml_1m(parsed.shared / "data")[0][0]
            for k in ks:
                found += measure(title, columns, Path(made), k, parsed)
    groups = list(dict.fromkeys((row["data"], row["factors"]) for row in found))
    systems = list(dict.fromkeys(row["system"] for row in found))
    heights = {
        label: [
            row["M updates/s"]
            for group in groups
            for row in found
            if (row["data"], row["factors"], row["system"]) == (*group, label)
        ]
        for label in systems
    }
    bars = Bars("one core", "M updates/s", [f"{data}\nk = {k}" for data, k in groups], heights)
    report("speed", "updates per second, one thread each", found, [bars])
