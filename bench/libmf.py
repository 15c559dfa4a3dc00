"""LIBMF (Chin, Yuan, Yang, Zhuang, Juan, Lin: JMLR 2016) as a contestant: its program mf-train, timed from outside.

The environment variable LIBMF_TRAIN names it, or several builds of it with colons between, of which the fastest counts.
"""

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np

REG, RATE = 0.05, 0.1  # the settings that all figures of LIBMF here were taken with
TIMEOUT = 1200


def builds() -> dict[str, Path]:
    """The builds that LIBMF_TRAIN names, by the name of the folder that each lies in."""
    named = [Path(name) for name in os.environ.get("LIBMF_TRAIN", "").split(":") if name]
    for path in named:
        if not os.access(path, os.X_OK):
            raise SystemExit(f"LIBMF_TRAIN: {path} is no program")
    return {path.parent.name: path for path in named}


def write(path: Path, ratings: Sequence[np.ndarray]) -> Path:
    """Write users, items and ratings as the lines of text that mf-train reads."""
    table = dict(zip(("u", "i", "r"), map(np.ascontiguousarray, ratings), strict=True))
    with duckdb.connect() as database:
        database.register("ratings", table)
        database.execute(f"COPY ratings TO '{path}' (HEADER false, DELIMITER ' ')")
    return path


def run(build: Path, training: Path, factors: int, epochs: int, *options: str) -> tuple[float, str]:
    """Seconds of a whole run on one thread, loading of the text included, and what it printed."""
    with tempfile.TemporaryDirectory(prefix="mfpar-libmf-") as folder:
        command = [build, "-s", "1", "-k", str(factors), "-t", str(epochs), "-l2", str(REG), "-r", str(RATE), *options]
        started = time.perf_counter()
        done = subprocess.run(
            [*map(str, command), str(training), f"{folder}/model"],
            check=True, timeout=TIMEOUT, capture_output=True, text=True,
        )  # fmt: skip
        return time.perf_counter() - started, done.stdout


def epoch_seconds(build: Path, training: Path, factors: int, many: int = 11) -> float:
    """Seconds of an epoch: the difference of a run with `many` epochs and one with one, in which loading falls out."""
    few, more = (run(build, training, factors, epochs, "--quiet")[0] for epochs in (1, many))
    return (more - few) / (many - 1)


def curve(build: Path, training: Path, test: Path, factors: int, epochs: int) -> list[float]:
    """The test RMSE after each epoch."""
    _, printed = run(build, training, factors, epochs, "-p", str(test))
    return parsed(printed)


def parsed(printed: str) -> list[float]:
    r"""The column va_rmse of what mf-train prints.

    >>> parsed("iter  tr_rmse  va_rmse    obj\n   0      1.1     0.95  3e+06\n   1      1.0     0.93  2e+06\n")
    [0.95, 0.93]
    """
    lines = re.findall(r"^\s*\d+\s+\S+\s+(\S+)\s+\S+\s*$", printed, re.MULTILINE)
    return [float(rmse) for rmse in lines]
