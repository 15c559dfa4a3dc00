"""Time to accuracy beside other packages: one dataset, one split, one thread each; seconds of training alone.

Each package aims at its own best RMSE on the test part, and mfpar at the same figure. Settings are chosen on a
validation part, a tenth of the training ratings: for mfpar those that reach LIBMF's best RMSE on that part in the
fewest epochs; for scikit-surprise and cmfrec those of the least RMSE. LIBMF has its usual settings, its epoch is the
best on the test part itself. Start-up, compilation, loading and evaluation are no part of the times, and told apart for
mfpar.

`LIBMF_TRAIN=… python bench/peers.py PEER_PYTHON [--shared ../shared] [--factors 32,64,128]`; without ../shared/data on
a generated matrix of ML-1M's shape.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libmf
import numpy as np
from accuracy import Split, divide, ml_1m
from matrix import SHAPES, ratings
from picture import Bars, Lines
from report import median_and_spread, numbers, report
from runs import Run, alternating, train

import mfpar

PEER_FIT = Path(__file__).parent / "peer_fit.py"
OURS = [
    {"lr": lr, "lr_decay": decay, "reg": reg, "init_scale": scale}
    for lr, decay, reg, scale in itertools.product(
        (0.055, 0.065, 0.075), (0.72, 0.76, 0.8), (0.036, 0.042, 0.048), (0.01, 0.03)
    )
]
ENOUGH = 24  # epochs within which settings must get there
THEIRS = {
    "surprise": [
        {"n_epochs": epochs, "lr_all": lr, "reg_all": reg}
        for epochs, lr, reg in itertools.product((20, 40), (0.005, 0.01), (0.02, 0.05, 0.08))
    ],
    "cmfrec": [
        {"niter": epochs, "lambda_": reg}
        for epochs, reg in itertools.product((3, 6, 10), (3.0, 6.0, 10.0, 15.0, 25.0, 40.0))
    ],
}
FACTORS = {"surprise": "n_factors", "cmfrec": "k"}  # what they call it
LIBMF_EPOCHS = 40


class Data:
    """A split in the forms that the packages take."""

    def __init__(self, split: Split, folder: Path):
        folder.mkdir()
        training, heldout = split
        self.file, self.arrays = folder / "ratings.h5", folder / "ratings.npz"
        mfpar.convert(training, self.file, test=heldout)
        self.texts = libmf.write(folder / "train.txt", training), libmf.write(folder / "test.txt", heldout)
        places = [np.unique(np.concatenate((a, b)), return_inverse=True)[1] for a, b in zip(*split, strict=True)][:2]
        count = len(training[0])
        np.savez(
            self.arrays,
            users=places[0][:count],
            items=places[1][:count],
            ratings=training[2],
            test_users=places[0][count:],
            test_items=places[1][count:],
            test_ratings=heldout[2],
        )


def fit(python: str, system: str, data: Data, factors: int, settings: dict[str, float]) -> dict[str, float]:
    """Seconds and RMSE of a peer's training."""
    arguments = json.dumps(settings | {FACTORS[system]: factors})
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [python, str(PEER_FIT), system, str(data.arrays), arguments],
        check=True, timeout=900, capture_output=True, text=True, env=os.environ | one_thread,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def some(settings: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """At most so many of the settings, evenly spread, the middle one among them."""
    step = -(-len(settings) // count)
    return settings[len(settings) // 2 % step :: step]


def quickest(data: Data, factors: int, target: float, candidates: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings of mfpar that reach the target in the fewest epochs, and get furthest in these."""
    reached = []
    for settings in candidates:
        run = train(data.file, factors, epochs=ENOUGH, **settings)
        if there := run.until(target):
            reached.append((there[0], run.epochs[there[0] - 1].test_rmse, settings))
    if not reached:
        raise SystemExit(f"k = {factors}: no settings reach an RMSE of {target:.4f} in {ENOUGH} epochs")
    return min(reached, key=lambda one: one[:2])[2]


def measure(parts: dict[str, Data], factors: int, args: argparse.Namespace) -> tuple[list[dict], dict[str, Any]]:
    """A row for each package, and curves for the picture."""
    validation, test = parts["validation"], parts["test"]
    contestants: dict[str, Callable[[], Any]] = {}
    best: dict[str, float] = {}  # test RMSE that each aims at
    epochs: dict[str, int] = {}
    chosen: dict[str, Any] = {}
    aims = []
    for build, path in libmf.builds().items():
        name = f"LIBMF {build}"
        aims.append(min(libmf.curve(path, *validation.texts, factors, LIBMF_EPOCHS)))
        curve = libmf.curve(path, *test.texts, factors, LIBMF_EPOCHS)
        best[name], epochs[name] = min(curve), int(np.argmin(curve)) + 1
        chosen[name] = {"l2": libmf.REG, "r": libmf.RATE}
        contestants[name] = lambda path=path, times=epochs[name]: (
            times * libmf.epoch_seconds(path, test.texts[0], factors)
        )
    for system in args.peers:
        tried = [
            (fit(args.python, system, validation, factors, one)["rmse"], one)
            for one in some(THEIRS[system], args.settings)
        ]
        aim, chosen[system] = min(tried, key=lambda pair: pair[0])
        epochs[system] = chosen[system].get("n_epochs") or chosen[system]["niter"]
        aims += [] if libmf.builds() else [aim]
        best[system] = fit(args.python, system, test, factors, chosen[system])["rmse"]
        contestants[system] = lambda system=system: fit(args.python, system, test, factors, chosen[system])["seconds"]
    settings = quickest(validation, factors, min(aims), some(OURS, args.settings))
    contestants["mfpar"] = lambda: train(test.file, factors, epochs=ENOUGH, **settings)
    contestants["mfpar"]()  # compiles
    spent = alternating(contestants, args.rounds)
    runs: list[Run] = spent.pop("mfpar")
    rows = [row_of(name, factors, chosen[name], best[name], epochs[name], spent[name], runs) for name in spent]
    told = " ".join(f"{key}={value}" for key, value in settings.items())
    rest = statistics.median(run.whole - sum(epoch.seconds for epoch in run.epochs) for run in runs)
    print(f"k = {factors}: mfpar with {told}; {rest:.2f} s a call for start-up, loading, evaluation and saving")
    mean = np.cumsum([statistics.median(run.epochs[at].seconds for run in runs) for at in range(ENOUGH)])
    curves = {f"mfpar, k = {factors}": (mean.tolist(), [epoch.test_rmse for epoch in runs[0].epochs])}
    return rows, {"factors": factors, "mfpar": settings, "rest of a call s": rest, "curves": curves}


def row_of(
    name: str, factors: int, settings: dict, best: float, epochs: int, spent: list[float], runs: list[Run]
) -> dict[str, Any]:
    """What a package took to its best RMSE, and mfpar to the same."""
    seconds, spread = median_and_spread(spent)
    row = {
        "system": name,
        "factors": factors,
        "settings": " ".join(f"{key}={value}" for key, value in settings.items()),
        "its best RMSE": f"{best:.4f}",
        "epochs": epochs,
        "seconds": seconds,
        "range": spread,
    }
    reached = [run.until(best) for run in runs]
    if not all(reached):
        return row | {"mfpar epochs": "never", "mfpar s": "", "times": "", "its range": ""}
    ours, _ = median_and_spread([there[1] for there in reached])
    times, spread = median_and_spread([theirs / there[1] for theirs, there in zip(spent, reached, strict=True)])
    return row | {"mfpar epochs": reached[0][0], "mfpar s": ours, "times": times, "its range": spread}


def splits(shared: Path) -> tuple[str, dict[str, Split]]:
    """The data's name; training and test part, and the training part without a tenth and that tenth."""
    if (shared / "data/ml-1m.npz").exists():
        name, whole = "ML-1M split", ml_1m(shared / "data")[0]
    else:
        name, whole = "planted, shape of ML-1M", divide(ratings(SHAPES["ml-1m"]), 7)
    return name, {"test": whole, "validation": divide(whole[0], 11)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", metavar="PEER_PYTHON", nargs="?")
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("MFPAR_SHARED", "../shared")))
    parser.add_argument("--factors", type=numbers, default=[32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--settings", type=int, default=100, help="how many settings of each package to choose from")
    parser.add_argument("--peers", type=lambda text: [name for name in text.split(",") if name], default=list(THEIRS))
    parsed = parser.parse_args()
    parsed.peers = parsed.peers if parsed.python else []
    data_name, both = splits(parsed.shared)
    found, notes = [], []
    with tempfile.TemporaryDirectory(prefix="mfpar-bench-") as made:
        forms = {part: Data(split, Path(made) / part) for part, split in both.items()}
        for k in parsed.factors:
            rows, note = measure(forms, k, parsed)
            found += rows
            notes.append(note)
    groups = [f"{row['system']}\nk = {row['factors']}, {row['its best RMSE']}" for row in found]
    panels = [
        Lines(
            "mfpar",
            "seconds of training",
            "test RMSE",
            {key: xy for note in notes for key, xy in note["curves"].items()},
        ),
        Bars(
            "time to each package's own best RMSE", "times mfpar's", groups, {"": [row["times"] or 0 for row in found]}
        ),
    ]
    report("peers", f"time to accuracy, {data_name}, one thread each", found, panels, runs=notes)
