"""Updates per second of the bare kernels on one block that stays in the cache, and how far that is from the limit.

The limit is measured, not computed: a kernel that reads and writes the same rows of P and Q in the same order, without
the arithmetic whose results the next update may have to wait for. `python bench/kernels.py [--factors 32,64]`
"""

import argparse
import time

import numpy as np
from numba import njit
from report import report

from mfpar.kernels.update import update_kernel
from mfpar.kernels.vector import add_scaled, load, store
from mfpar.ratings.convert import STREAMS
from mfpar.ratings.ordering import interleave
from mfpar.shards import Layout

ROWS, COLS, RATINGS = 4000, 700, 400_000
ROUNDS = 9


def best_rate(call) -> float:
    """Million ratings a second, best of several rounds."""
    call()
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return RATINGS / min(seconds) / 1e6


def traffic_kernel(stride: int):
    """The loads and stores of an update, and next to nothing else."""

    @njit(nogil=True)
    def traffic(rows, cols, P, Q, scalar):
        for t in range(len(rows)):
            p_at, q_at = np.int64(rows[t]) * stride, np.int64(cols[t]) * stride
            p, q = load(P, p_at, stride), load(Q, q_at, stride)
            store(P, p_at, add_scaled(p, q, scalar))
            store(Q, q_at, add_scaled(q, p, scalar))

    return traffic


def measure(factors: int) -> list[dict]:
    """A row of figures for each kernel with this many factors."""
    rng = np.random.default_rng(0)
    order = interleave(RATINGS, STREAMS)
    rows = np.sort(rng.integers(0, ROWS, RATINGS)).astype(np.uint16)[order]
    cols = rng.integers(0, COLS, RATINGS).astype(np.uint16)[order]
    values = rng.normal(size=RATINGS).astype(np.float32)
    ratings = rows, cols, values
    return [
        measure_one(Layout(factors, biases, int(optimizer == "adagrad")), optimizer, ratings)
        for optimizer in ("sgd", "adagrad")
        for biases in (False, True)
    ]


def measure_one(layout: Layout, optimizer: str, ratings: tuple[np.ndarray, ...]) -> dict:
    """Figures of one kernel."""
    rng = np.random.default_rng(1)
    P, Q = (rng.normal(0, 0.1, layout.floats(size)).astype(np.float32) for size in (ROWS, COLS))
    layout.state(P, ROWS)[:] = layout.state(Q, COLS)[:] = 1
    update = update_kernel(layout.stride, layout.factors, layout.biases, optimizer == "adagrad", "uint16", "uint16")
    traffic = traffic_kernel(layout.stride)
    zero, counts = np.zeros(1, np.int64), np.array([[ROWS + 1], [COLS + 1]])
    places = P, zero, counts[0], Q, zero, counts[1]
    settings = np.float32(0), np.float32(0.01), np.float32(0.05), np.zeros((1, 2))
    rate = best_rate(lambda: update(0, 1, zero, np.array([[0, RATINGS]]), *ratings, *places, *settings))
    limit = best_rate(lambda: traffic(*ratings[:2], P, Q, np.float32(0.0)))
    return {
        "factors": layout.factors,
        "optimizer": optimizer,
        "biases": "yes" if layout.biases else "no",
        "M updates/s": rate,
        "GB/s": rate * 16 * layout.factors / 1e3,
        "limit M/s": limit,
        "share of limit": rate / limit,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--factors", default="16,32,64,128", type=lambda text: [int(k) for k in text.split(",")])
    found = [row for k in parser.parse_args().factors for row in measure(k)]
    report("kernels", f"kernels, one core, one block of {ROWS} × {COLS} with {RATINGS:,} ratings", found)
