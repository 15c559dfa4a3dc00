"""Time to a ranking as good as implicit's (BPR and weighted ALS), on MovieLens 1M with ratings ≥ 4 as positives.

One thread each, seconds of training alone. Settings are chosen on a validation part: implicit's by NDCG@10, mfpar's by
the fewest epochs to implicit's figure there. Epochs of mfpar are tried in steps, so its time is rounded up.
`python bench/peer_ranking.py PEER_PYTHON [--shared ../shared] [--factors 32] [--rounds 5]`
"""

import argparse
import itertools
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import divide
from picture import Bars
from ranking import Pairs, positives, ranking
from report import median_and_spread, numbers, report
from runs import alternating

import mfpar

PEER = """
import json, sys, time
import numpy as np, scipy.sparse as sp
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking
data = np.load(sys.argv[1])
shape = int(data["users"].max()) + 1, int(data["items"].max()) + 1
matrix = sp.csr_matrix((np.ones(len(data["users"]), np.float32), (data["users"], data["items"])), shape=shape)
kind = {"ALS": AlternatingLeastSquares, "BPR": BayesianPersonalizedRanking}[sys.argv[3]]
model = kind(num_threads=1, random_state=1, **json.loads(sys.argv[4]))
started = time.perf_counter()
model.fit(matrix, show_progress=False)
print(time.perf_counter() - started)
np.savez(sys.argv[2], P=model.user_factors, Q=model.item_factors)
"""
THEIRS = {
    "BPR": [
        {"learning_rate": lr, "regularization": 0.01, "iterations": count}
        for lr, count in itertools.product((0.01, 0.03), (50, 100))
    ],
    "ALS": [
        {"regularization": reg, "alpha": alpha, "iterations": 10}
        for reg, alpha in itertools.product((0.01, 1.0, 10.0), (1.0, 5.0, 20.0))
    ],
}
OURS = [
    {"loss": "bpr-row", "lr": 0.1, "reg": 0.01},
    {"loss": "bpr-row", "lr": 0.2, "reg": 0.01},
    *({"loss": "one-class", "negatives": "all", "lr": 0.05, "reg": reg} for reg in (0.005, 0.02)),
]
STEPS = (2, 4, 7, 11, 16, 24, 40)  # epochs after which mfpar is looked at


def theirs(args: argparse.Namespace, kind: str, training: Pairs, folder: Path, settings: dict[str, Any]) -> tuple:
    """Seconds of implicit's training, and its scores of all cells."""
    np.savez(folder / "in.npz", users=training[0], items=training[1])
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    files = str(folder / "in.npz"), str(folder / "out.npz")
    done = subprocess.run(
        [args.python, "-c", PEER, *files, kind, json.dumps(settings)],
        check=True, timeout=600, capture_output=True, text=True, env=os.environ | one_thread,
    )  # fmt: skip
    with np.load(folder / "out.npz") as found:
        return float(done.stdout.split()[-1]), found["P"] @ found["Q"].T


class Ours:
    """mfpar on the positives of a part."""

    def __init__(self, training: Pairs, folder: Path):
        self.training, self.file = training, folder / f"{len(training[0])}.h5"
        if not self.file.exists():
            mfpar.convert(training, self.file, implicit=True)

    def train(self, settings: dict[str, Any]) -> tuple[float, mfpar.Model]:
        """Seconds of the epochs, and the model."""
        epochs: list[mfpar.EpochReport] = []
        model = mfpar.factorize(self.file, callback=epochs.append, **settings)
        return sum(epoch.seconds for epoch in epochs), model

    def ndcg(self, settings: dict[str, Any], heldout: Pairs) -> float:
        """NDCG@10 of what is held out."""
        _, model = self.train(settings)
        scores = np.full([int(side.max()) + 1 for side in self.training], -np.inf)
        rows, cols = (np.concatenate(list(ids.chunks(1 << 20))) for ids in (model.row_ids, model.col_ids))
        scores[np.ix_(rows, cols)] = np.asarray(model.P) @ np.asarray(model.Q).T + np.asarray(model.col_bias)
        return ranking(scores, self.training, heldout)[0]

    def soonest(self, target: float, heldout: Pairs, candidates: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The settings that reach an NDCG@10 in the fewest epochs, these among them; None: none does."""
        for epochs in STEPS:
            tried = [(self.ndcg(settings | {"epochs": epochs}, heldout), settings) for settings in candidates]
            ndcg, chosen = max(tried, key=lambda pair: pair[0])
            if ndcg >= target:
                return chosen | {"epochs": epochs}
        return None


def measure(kind: str, factors: int, parts: tuple[Pairs, Pairs], args: argparse.Namespace, folder: Path) -> dict:
    """A row: what implicit takes to its NDCG@10, and mfpar to the same."""
    training, heldout = parts
    inner, validation = divide(training, 11)
    candidates = [settings | {"factors": factors} for settings in THEIRS[kind]]
    tried = [(ranking(theirs(args, kind, inner, folder, one)[1], inner, validation)[0], one) for one in candidates]
    aim, chosen = max(tried, key=lambda pair: pair[0])
    best = ranking(theirs(args, kind, training, folder, chosen)[1], training, heldout)[0]
    told = " ".join(f"{key}={value}" for key, value in chosen.items())
    row = {"system": f"implicit {kind}", "settings": told, "NDCG@10": f"{best:.4f}"}
    own = Ours(inner, folder).soonest(aim, validation, [settings | {"factors": factors} for settings in OURS])
    mine = Ours(training, folder)
    there = own and mine.soonest(best, heldout, [own])
    contestants: dict[str, Any] = {"theirs": lambda: theirs(args, kind, training, folder, chosen)[0]}
    if there:
        contestants["ours"] = lambda: mine.train(there)[0]
    spent = alternating(contestants, args.rounds)
    row["seconds"], row["range"] = median_and_spread(spent["theirs"])
    if not there:
        return row | {"mfpar": "never", "mfpar s": "", "times": "", "its range": ""}
    row["mfpar"] = " ".join(f"{key}={value}" for key, value in there.items() if key != "factors")
    row["mfpar s"] = median_and_spread(spent["ours"])[0]
    ratios = [a / b for a, b in zip(spent["theirs"], spent["ours"], strict=True)]
    return row | dict(zip(("times", "its range"), median_and_spread(ratios), strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", metavar="PEER_PYTHON")
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("MFPAR_SHARED", "../shared")))
    parser.add_argument("--factors", type=numbers, default=[32])
    parser.add_argument("--rounds", type=int, default=5)
    parsed = parser.parse_args()
    if not (parsed.shared / "data/ml-1m.npz").exists():
        raise SystemExit(f"{parsed.shared}: no data/ml-1m.npz; name the folder with --shared or MFPAR_SHARED")
    split = positives(parsed.shared / "data")
    with tempfile.TemporaryDirectory(prefix="mfpar-bench-") as made:
        found = [measure(kind, k, split, parsed, Path(made)) for k in parsed.factors for kind in THEIRS]
    bars = Bars(
        "time to implicit's NDCG@10",
        "times mfpar's",
        [row["system"] for row in found],
        {"": [row["times"] or 0 for row in found]},
    )
    report("peer-ranking", "time to a ranking, MovieLens 1M, ratings ≥ 4, one thread each", found, [bars])
