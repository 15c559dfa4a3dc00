"""Ranking on implicit data: BPR beside the BPR of the package implicit, with the same number of factors.

MovieLens 1M, ratings ≥ 4 as positives, the held-out tenth of ML-1M's split as what is to be found. Both sides' settings
and epochs are chosen by NDCG@10 on a validation part (a tenth of the training positives); the test part is looked at
once for each. `python bench/ranking.py PEER_PYTHON [--shared ../shared] [--factors 32,64]`, where PEER_PYTHON has
implicit installed (`make bench-ranking` sees to it).
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import divide
from report import report

import mfpar

AT = 10
OURS = [
    {"lr": lr, "lr_decay": decay, "reg": reg, "epochs": epochs}
    for lr, (epochs, decay), reg in itertools.product((0.05, 0.1), ((30, 0.95), (100, 0.98)), (0.007, 0.01, 0.015))
]
THEIRS = [
    {"learning_rate": lr, "regularization": reg, "iterations": iterations}
    for lr, reg, iterations in itertools.product((0.003, 0.01, 0.03), (0.01, 0.03, 0.1), (50, 100, 200))
]
PEER = """
import sys, numpy as np, scipy.sparse as sp
from implicit.bpr import BayesianPersonalizedRanking
data = np.load(sys.argv[1])
shape = int(data["users"].max()) + 1, int(data["items"].max()) + 1
matrix = sp.csr_matrix((np.ones(len(data["users"]), np.float32), (data["users"], data["items"])), shape=shape)
settings = {name: (int if name in ("iterations", "factors") else float)(value) for name, value in
            (pair.split("=") for pair in sys.argv[3:])}
model = BayesianPersonalizedRanking(num_threads=1, random_state=1, **settings)
model.fit(matrix, show_progress=False)
np.savez(sys.argv[2], P=model.user_factors, Q=model.item_factors)
"""
Pairs = tuple[np.ndarray, np.ndarray]


def positives(data: Path) -> tuple[Pairs, Pairs]:
    """Training and held-out positives, as numbers of users and items; items that training has not are left out."""
    with np.load(data / "ml-1m.npz") as file:
        users, items, ratings = (file[name].astype("i8") for name in ("user", "item", "rating"))
    held = np.random.default_rng(7).random(len(users)) < 0.1
    _, users = np.unique(users, return_inverse=True)
    kept, places = np.unique(items[(ratings >= 4) & ~held], return_inverse=True)
    known = np.isin(items, kept) & (ratings >= 4)
    training = users[(ratings >= 4) & ~held], places
    return training, (users[known & held], np.searchsorted(kept, items[known & held]))


def ranking(scores: np.ndarray, training: Pairs, heldout: Pairs) -> tuple[float, float]:
    """NDCG@10 and recall@10: mean over users with a held-out positive, training positives left out of the ranking."""
    scores = scores.copy()
    scores[training] = -np.inf
    relevant = np.zeros(scores.shape, bool)
    relevant[heldout] = True
    users = np.flatnonzero(relevant.any(axis=1))
    chosen = -scores[users]
    best = np.argpartition(chosen, AT, axis=1)[:, :AT]
    best = np.take_along_axis(best, np.argsort(np.take_along_axis(chosen, best, axis=1), axis=1, kind="stable"), axis=1)
    hits = np.take_along_axis(relevant[users], best, axis=1)
    discounts = 1 / np.log2(np.arange(2, AT + 2))
    count = relevant[users].sum(axis=1)
    ideal = np.cumsum(discounts)[np.minimum(count, AT) - 1]
    return float(((hits @ discounts) / ideal).mean()), float((hits.sum(axis=1) / count).mean())


def ours(training: Pairs, folder: Path, **settings: Any) -> np.ndarray:
    """Scores of all cells by mfpar."""
    model = mfpar.factorize(training, implicit=True, loss="bpr-row", output=folder / "m.h5", force=True, **settings)
    shape = tuple(int(side.max()) + 1 for side in training)
    scores = np.full(shape, -np.inf)
    rows, cols = (np.concatenate(list(ids.chunks(1 << 20))) for ids in (model.row_ids, model.col_ids))
    scores[np.ix_(rows, cols)] = np.asarray(model.P) @ np.asarray(model.Q).T + np.asarray(model.col_bias)
    return scores


def theirs(python: str, training: Pairs, folder: Path, **settings: Any) -> np.ndarray:
    """Scores of all cells by implicit, in an environment of its own."""
    np.savez(folder / "in.npz", users=training[0], items=training[1])
    arguments = [f"{name}={value}" for name, value in settings.items()]
    command = [python, "-c", PEER, folder / "in.npz", folder / "out.npz", *arguments]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    subprocess.run(command, check=True, timeout=600, env=environment, stderr=subprocess.DEVNULL)
    with np.load(folder / "out.npz") as found:
        return found["P"] @ found["Q"].T


def measure(name: str, system: Any, candidates: list[dict[str, Any]], parts: tuple[Pairs, Pairs], factors: int) -> dict:
    """Choose settings on a validation part, then look at the test part."""
    training, heldout = parts
    inner, validation = divide(training, 11)
    tried = [(ranking(system(inner, factors=factors, **one), inner, validation)[0], one) for one in candidates]
    best, chosen = max(tried, key=lambda pair: pair[0])
    ndcg, recall = ranking(system(training, factors=factors, **chosen), training, heldout)
    return {
        "system": name,
        "factors": factors,
        "chosen": " ".join(f"{key}={value}" for key, value in chosen.items()),
        "validation NDCG@10": f"{best:.4f}",
        "test NDCG@10": f"{ndcg:.4f}",
        "test recall@10": f"{recall:.4f}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", metavar="PEER_PYTHON")
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("MFPAR_SHARED", "../shared")))
    parser.add_argument("--factors", default="32,64", type=lambda text: [int(k) for k in text.split(",")])
    parsed = parser.parse_args()
    split = positives(parsed.shared / "data")
    found = []
    with tempfile.TemporaryDirectory(prefix="mfpar-bench-") as made:
        for k in parsed.factors:
            for label, system, candidates in (
                ("mfpar", lambda *a, **s: ours(*a, Path(made), **s), OURS),
                ("implicit", lambda *a, **s: theirs(parsed.peer, *a, Path(made), **s), THEIRS),
            ):
                found.append(measure(label, system, candidates, split, k))
                print(found[-1], file=sys.stderr)
    report("ranking", "BPR on MovieLens 1M, ratings ≥ 4 as positives; settings chosen on validation", found)
