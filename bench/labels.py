"""Binarised MovieLens 1M (rating ≥ 4 is a 1): logistic loss with biases, beside what LIBMF does, both on our kernels.

LIBMF's logistic loss has no biases and no mean, starts from uniform factors in [0, 1/√k), and steps by AdaGrad per row.
Settings and epochs of either are chosen by log loss on a validation part of the training ratings; the test part of the
split is looked at once. `python bench/labels.py [--shared ../shared] [--factors 32,64]`
"""

import argparse
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import ml_1m
from report import report

import mfpar

EPOCHS, PATIENCE = 80, 5
MEASURES = "log_loss,accuracy,auc,row_auc"
REGS = (0.015, 0.02, 0.025, 0.03)


def candidates(factors: int) -> dict[str, list[dict[str, Any]]]:
    """Settings to choose from, by what they are called."""
    libmf = {
        "biases": False,
        "mean": False,
        "optimizer": "adagrad",
        "lr_rule": "constant",
        "init": "positive",
        "init_scale": (3 * factors) ** -0.5,
    }
    return {
        "mfpar": [
            {"lr": lr, "lr_decay": decay, "reg": reg}
            for (lr, decay), reg in itertools.product(((0.05, 0.95), (0.03, 0.97)), REGS)
        ],
        "as LIBMF": [{**libmf, "lr": lr, "reg": reg} for lr, reg in itertools.product((0.05, 0.1), (*REGS, 0.05))],
    }


def measure(name: str, tried: list[dict[str, Any]], file: Path, factors: int) -> dict[str, Any]:
    """Choose settings and the number of epochs, train on all training ratings, and look at the test part."""
    found = []
    for settings in tried:
        model = mfpar.factorize(
            file, factors, loss="logistic", epochs=EPOCHS, validation_fraction=0.1, patience=PATIENCE, **settings
        )
        best = min(model.curve, key=lambda epoch: epoch["validation"]["log_loss"])
        found.append((best["validation"]["log_loss"], best["epoch"], settings))
    validation, epochs, chosen = min(found, key=lambda one: one[0])
    model = mfpar.factorize(file, factors, loss="logistic", epochs=epochs, **chosen)
    return {
        "system": name,
        "factors": factors,
        **{key: chosen[key] for key in ("lr", "reg")},
        "epochs": epochs,
        "validation": f"{validation:.4f}",
        **{key: f"{value:.4f}" for key, value in model.evaluate(metrics=MEASURES).measures.items()},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("MFPAR_SHARED", "../shared")))
    parser.add_argument("--factors", default="32,64", type=lambda text: [int(k) for k in text.split(",")])
    parsed = parser.parse_args()
    parts = [
        (users, items, (ratings >= 4).astype(np.float32)) for users, items, ratings in ml_1m(parsed.shared / "data")[0]
    ]
    with tempfile.TemporaryDirectory(prefix="mfpar-bench-") as made:
        blocked = Path(made) / "ratings.h5"
        mfpar.convert(parts[0], blocked, test=parts[1])
        rows = [measure(name, tried, blocked, k) for k in parsed.factors for name, tried in candidates(k).items()]
    report("labels", "logistic loss, MovieLens 1M, rating ≥ 4; settings chosen on validation, test part", rows)
