"""Test RMSE on MovieLens with settings chosen on a validation part of the training data; the test part is seen once.

`python bench/accuracy.py [--shared ../shared]`, where SHARED/data holds ml-1m.npz and ml-100k/ (the official folds).
"""

import argparse
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from report import report

import mfpar

EPOCHS = 60
CANDIDATES = [
    {"lr": lr, "lr_decay": decay, "reg": reg}
    for (lr, decay), reg in itertools.product(((0.02, 0.95), (0.03, 0.93)), (0.045, 0.05, 0.055, 0.06))
]
Split = tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]  # training and held-out users, items, ratings


def divide(ratings: tuple[np.ndarray, ...], seed: int) -> Split:
    """Hold out a tenth, drawn in the order of the file."""
    held = np.random.default_rng(seed).random(len(ratings[0])) < 0.1
    return tuple(column[~held] for column in ratings), tuple(column[held] for column in ratings)


def ml_1m(data: Path) -> list[Split]:
    """The split that every figure for ML-1M uses."""
    with np.load(data / "ml-1m.npz") as file:
        ratings = tuple(file[name].astype(kind) for name, kind in (("user", "i8"), ("item", "i8"), ("rating", "f4")))
    return [divide(ratings, 7)]


def ml_100k(data: Path) -> list[Split]:
    """The five official folds."""
    parts = [
        [np.loadtxt(data / f"ml-100k/u{fold}.{part}", np.int64) for part in ("base", "test")] for fold in range(1, 6)
    ]
    return [tuple((table[:, 0], table[:, 1], table[:, 2].astype("f4")) for table in fold) for fold in parts]


def curve(splits: list[Split], folder: Path, **settings: Any) -> np.ndarray:
    """float64[epochs]: RMSE on the held-out part after each epoch, mean over the splits."""
    curves = []
    for index, (training, heldout) in enumerate(splits):
        file = folder / f"{index}.h5"
        if not file.exists():
            mfpar.convert(training, file, test=heldout)
        model = mfpar.factorize(file, **settings)
        curves.append([epoch["test_rmse"] for epoch in model.curve])
    return np.mean(curves, axis=0)


def measure(name: str, splits: list[Split], factors: int, scratch: Path) -> dict[str, Any]:
    """Choose settings and epochs on validation parts, then look at the test parts."""
    folders = scratch / f"{name}-validation", scratch / name
    for folder in folders:
        folder.mkdir(exist_ok=True)
    validation = [divide(training, 11) for training, _ in splits]
    tried = [(curve(validation, folders[0], factors=factors, epochs=EPOCHS, **one), one) for one in CANDIDATES]
    best, chosen = min(tried, key=lambda pair: pair[0].min())
    epochs = int(best.argmin()) + 1
    return {
        "data": name,
        "factors": factors,
        **chosen,
        "epochs": epochs,
        "validation": f"{best.min():.4f}",
        "test RMSE": f"{curve(splits, folders[1], factors=factors, epochs=epochs, **chosen)[-1]:.4f}",
        "with defaults": f"{curve(splits, folders[1], factors=factors)[-1]:.4f}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("MFPAR_SHARED", "../shared")))
    data_folder = parser.parse_args().shared / "data"
    with tempfile.TemporaryDirectory(prefix="mfpar-bench-") as made:
        found = [
            measure(name, splits, factors, Path(made))
            for name, splits in (("ML-1M", ml_1m(data_folder)), ("ML-100K, five folds", ml_100k(data_folder)))
            for factors in (32, 64)
        ]
    report("accuracy", "settings chosen on validation; test RMSE of these and of the defaults", found)
