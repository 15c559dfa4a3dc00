"""Updates per second of the bare kernels on one block in the cache, by loss, and how far that is from the limit.

The block is one of MovieLens 10M's in a grid of 32 × 16, small enough for a cache of 1 MB at 64 factors. The limit is
measured, not computed: a kernel that reads and writes the same rows of P and Q in the same order, without the
arithmetic whose results the next update may have to wait for. All kernels of a number of factors take turns on the same
memory, from the same values, and the best of many rounds counts, so that the ratios hold although the machine's speed
drifts. `python bench/kernels.py [--factors 32,64] [--rounds 60]`
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from report import report

import mfpar
from mfpar.kernels import SUMS, Kind, Knobs, pairs_kernel, register, update_kernel
from mfpar.kernels.vector import add_scaled, load, store
from mfpar.losses import BUILTIN, Loss
from mfpar.ratings.convert import STREAMS
from mfpar.ratings.ordering import interleave
from mfpar.shards import Layout

ROWS, COLS, RATINGS = 2236, 668, 15_600
VISITS = 24  # of the block, in a round

own = mfpar.Loss(lambda r, z: z - r, lambda r, z: 0.5 * (r - z) ** 2, name="bench:squared in Python")


@dataclass(frozen=True)
class Case:
    """A kernel to be timed."""

    loss: Loss
    optimizer: str = "sgd"
    biases: bool = True
    parts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is called in the table."""
        return " + ".join((self.loss.name.partition(":")[2] or self.loss.name, *self.parts))


CASES = [
    Case(BUILTIN["squared"]),
    Case(own),
    *(Case(loss) for name, loss in BUILTIN.items() if name not in ("squared", "one-class")),
    *(Case(BUILTIN["squared"], parts=(part,)) for part in ("weighted", "nonnegative", "scaled", "l1")),
    Case(BUILTIN["squared"], biases=False),
    Case(BUILTIN["squared"], "adagrad"),
    Case(BUILTIN["logistic"], "adagrad"),
    Case(BUILTIN["bpr-row"], "adagrad"),
]


def block() -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of distinct random cells, in the order of a blocked file."""
    cells = np.sort(np.random.default_rng(0).choice(ROWS * COLS, RATINGS, replace=False))
    rows, cols = np.divmod(cells[interleave(RATINGS, STREAMS)], COLS)
    return rows.astype(np.uint16), cols.astype(np.uint16)


class Memory:
    """Where all kernels work, one after the other: which pages an array has got makes a tenth of its speed."""

    def __init__(self, factors: int):
        largest = Layout(factors, True, 1, True)
        self.sides = [np.zeros(largest.floats(size), np.float32) for size in (ROWS, COLS)]
        self.values = np.zeros(RATINGS, np.float32)

    def take(self, layout: Layout, values: np.ndarray) -> None:
        """Put in starting values and ratings."""
        rng = np.random.default_rng(1)
        self.values[:] = values
        for side, size in zip(self.sides, (ROWS, COLS), strict=True):
            side[:] = rng.normal(0, 0.1, len(side))
            layout.state(side, size)[:] = layout.scales(side, size)[:] = 1


Call = tuple[Callable[[], None], Callable[[], None]]  # what prepares the memory, and what visits the block once


def call_of(case: Case, factors: int, cells: tuple[np.ndarray, np.ndarray], memory: Memory) -> Call:
    """How the case's kernel visits the block."""
    rng = np.random.default_rng(1)
    layout = Layout(factors, case.biases, int(case.optimizer == "adagrad"), "scaled" in case.parts)
    kind = Kind(
        layout.stride, factors, register(case.loss), case.biases, case.optimizer == "adagrad", "uint16", "uint16",
        cells=case.loss.cells, every=case.loss.every, **dict.fromkeys(case.parts, True),
    )  # fmt: skip
    kernel = (pairs_kernel if case.loss.pairs else update_kernel)(kind)
    labels = rng.integers(0, 2, RATINGS) * 2 - 1
    values = {"binary": labels, "counts": labels + 1}.get(case.loss.ratings, rng.normal(size=RATINGS))
    values = np.ones(RATINGS) if case.loss.pairs else values
    weights = rng.uniform(0.5, 2, RATINGS if kind.weighted else 0).astype(np.float32)
    rates, regs, l1s = (0.01,) * 4, (0.05,) * 4, (0.001,) * 4
    knobs = Knobs(*(np.float32(x) for x in (0.0, *rates, *regs, *l1s, 1 / factors, 1.0, 0.0)))
    zero, counts = np.zeros(1, np.int64), np.array([[ROWS + 1], [COLS + 1]])
    ratings = np.array([[0, RATINGS]]), *cells, memory.values, weights
    sides = memory.sides[0], zero, counts[0], memory.sides[1], zero, counts[1]
    sums = np.zeros((1, SUMS))
    return (
        lambda: memory.take(layout, values),
        lambda: kernel(0, 1, zero, *ratings, *sides, knobs, 0, np.uint64(1), sums),
    )


def limit_of(factors: int, cells: tuple[np.ndarray, np.ndarray], memory: Memory) -> Call:
    """A visit of the block with the loads and stores of an update, and next to nothing else."""
    layout = Layout(factors, False)
    stride = layout.stride

    @njit(nogil=True)
    def traffic(rows, cols, P, Q, scalar):
        for t in range(len(rows)):
            p_at, q_at = np.int64(rows[t]) * stride, np.int64(cols[t]) * stride
            p, q = load(P, p_at, stride), load(Q, q_at, stride)
            store(P, p_at, add_scaled(p, q, scalar))
            store(Q, q_at, add_scaled(q, p, scalar))

    return lambda: memory.take(layout, memory.values), lambda: traffic(*cells, *memory.sides, np.float32(0))


def best_rates(calls: dict[Any, Call], rounds: int) -> dict[Any, float]:
    """Million ratings a second of each, the best of rounds in which all take turns."""
    seconds = dict.fromkeys(calls, math.inf)
    for _ in range(rounds):
        for name, (prepare, call) in calls.items():
            prepare()
            call()
            started = time.perf_counter()
            for _ in range(VISITS):
                call()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    return {name: VISITS * RATINGS / best / 1e6 for name, best in seconds.items()}


def measure(factors: int, rounds: int) -> list[dict[str, Any]]:
    """A row of figures for each kernel with this many factors."""
    cells = block()
    memory = Memory(factors)
    calls: dict[Any, Call] = {case: call_of(case, factors, cells, memory) for case in CASES}
    rates = best_rates(calls | {"limit": limit_of(factors, cells, memory)}, rounds)
    return [
        {
            "factors": factors,
            "loss": case.name,
            "optimizer": case.optimizer,
            "biases": "yes" if case.biases else "no",
            "M updates/s": rates[case],
            "of squared": rates[case] / rates[CASES[0]],
            "GB/s": rates[case] * (24 if case.loss.pairs else 16) * factors / 1e3,
            "share of limit": rates[case] / rates["limit"],
        }
        for case in CASES
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--factors", default="32,64", type=lambda text: [int(k) for k in text.split(",")])
    parser.add_argument("--rounds", default=60, type=int)
    parsed = parser.parse_args()
    found = [row for k in parsed.factors for row in measure(k, parsed.rounds)]
    report("kernels", f"kernels, one core, one block of {ROWS} × {COLS} with {RATINGS:,} ratings", found)
