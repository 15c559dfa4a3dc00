"""One fingerprint for all ranks × threads, on MovieLens, for both optimizers; with the MPI library of this environment.

`python bench/fingerprints.py [--shared ../shared] [--epochs 10]`
"""

import argparse
import itertools
import os
import sys
import tempfile
from pathlib import Path

from accuracy import ml_1m, ml_100k
from report import report

import mfpar

RANKS, THREADS = (1, 2, 3, 4, 8), (1, 2)


def measure(name: str, file: Path, optimizer: str, epochs: int) -> dict[str, object]:
    """The fingerprints of all ways to run one configuration."""
    seen: dict[str, list[str]] = {}
    libraries = set()
    for ranks, threads in itertools.product(RANKS, THREADS):
        model = mfpar.factorize(
            file, optimizer=optimizer, epochs=epochs, threads=threads, ranks=ranks if ranks > 1 else None
        )
        seen.setdefault(model.fingerprint, []).append(f"{ranks}×{threads}")
        libraries.add(model.versions["mpi"])
    return {
        "data": name,
        "optimizer": optimizer,
        "ranks×threads": " ".join(run for runs in seen.values() for run in runs),
        "MPI": ", ".join(sorted(libraries - {"none"})),
        "fingerprints": len(seen),
        "fingerprint": " ".join(fingerprint[:16] for fingerprint in seen),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("MFPAR_SHARED", "../shared")))
    parser.add_argument("--epochs", type=int, default=10)
    parsed = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory(prefix="mfpar-bench-") as made:
        for data_name, splits in (("ML-100K u1", ml_100k), ("ML-1M", ml_1m)):
            training, heldout = splits(parsed.shared / "data")[0]
            blocked = Path(made) / f"{data_name}.h5"
            mfpar.convert(training, blocked, test=heldout)
            found += [measure(data_name, blocked, optimizer, parsed.epochs) for optimizer in ("sgd", "adagrad")]
    report("fingerprints", "the same bits on any number of ranks and threads, with biases", found)
    sys.exit(any(row["fingerprints"] != 1 for row in found))
