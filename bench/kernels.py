"""Updates per second of the bare kernels on one block in the L2 cache, by loss, optimizer and number of factors.

The block is like one of MovieLens 10M's in a grid of 32 × 16, cut smaller where more than 64 factors would not fit a
cache of 1 MB. Beside each figure stands its share of what memory allows on the same block, which is measured, not
computed (see `limits`), and beside these the limits of L1, L2 and memory. All kernels of a number of factors take turns
on the same memory, from the same values, and the best of many rounds counts, so that the ratios hold although the
machine's speed drifts. `python bench/kernels.py [--factors 32,64] [--rounds 60]`
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from limits import gigabytes, levels, traffic
from picture import Bars, Lines, Panel
from report import numbers, report
from runs import one_step

import mfpar
from mfpar.kernels import DONE, SUMS, Kind, Knobs, pairs_kernel, register, update_kernel
from mfpar.losses import BUILTIN, Loss
from mfpar.ratings.ordering import spread
from mfpar.shards import Layout

ROWS, COLS, RATINGS = 2236, 668, 15_600
FITTING = 64  # factors up to which the whole block stays in the cache
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


@dataclass(frozen=True)
class Block:
    """Rows and columns of distinct random cells, in the order of a blocked file."""

    row_count: int
    col_count: int
    rows: np.ndarray
    cols: np.ndarray

    @classmethod
    def for_factors(cls, factors: int) -> "Block":
        """The block at its full size, or with both sides smaller to make room for many factors."""
        row_count, col_count = (side * FITTING // max(FITTING, factors) for side in (ROWS, COLS))
        cells = np.sort(np.random.default_rng(0).choice(row_count * col_count, RATINGS, replace=False))
        rows, cols = np.divmod(cells, col_count)
        order = spread(rows, cols)
        rows, cols = rows[order], cols[order]
        return cls(row_count, col_count, rows.astype(np.uint16), cols.astype(np.uint16))


class Memory:
    """Where all kernels work, one after the other: which pages an array has got makes a tenth of its speed."""

    def __init__(self, factors: int, block: Block):
        largest = Layout(factors, True, 1, True)
        self.sizes = block.row_count, block.col_count
        self.sides = [np.zeros(largest.floats(size), np.float32) for size in self.sizes]
        self.values = np.zeros(RATINGS, np.float32)

    def take(self, layout: Layout, values: np.ndarray) -> None:
        """Put in starting values and ratings."""
        rng = np.random.default_rng(1)
        self.values[:] = values
        for side, size in zip(self.sides, self.sizes, strict=True):
            side[:] = rng.normal(0, 0.1, len(side))
            layout.state(side, size)[:] = layout.scales(side, size)[:] = 1


Call = tuple[Callable[[], None], Callable[[], None]]  # what prepares the memory, and what visits the block once


def call_of(case: Case, factors: int, block: Block, memory: Memory) -> Call:
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
    zero, counts = np.zeros(1, np.int64), np.array([[block.row_count + 1], [block.col_count + 1]])
    turns = one_step(zero, zero, held=1)
    ratings = np.array([[0, RATINGS]]), block.rows, block.cols, memory.values, weights
    sides = memory.sides[0], zero, counts[0], memory.sides[1], counts[1]
    sums = np.zeros((1, SUMS))

    def visit() -> None:
        turns.board[0, DONE] = 0
        kernel(turns, *ratings, *sides, knobs, np.uint64(1), sums)

    return lambda: memory.take(layout, values), visit


def limit_of(factors: int, block: Block, memory: Memory) -> Call:
    """A visit of the block with the loads and stores of an update, and next to nothing else."""
    layout = Layout(factors, False)
    visit, (P, Q) = traffic(layout.stride, False), memory.sides
    return (
        lambda: memory.take(layout, memory.values),
        lambda: visit(0, RATINGS, block.rows, block.cols, P, 0, Q, 0, np.float32(0)),
    )


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


def measure(factors: int, cases: list[Case], rounds: int) -> list[dict[str, Any]]:
    """A row of figures for each kernel with this many factors."""
    block = Block.for_factors(factors)
    memory = Memory(factors, block)
    calls: dict[Any, Call] = {case: call_of(case, factors, block, memory) for case in cases}
    rates = best_rates(calls | {"limit": limit_of(factors, block, memory)}, rounds)
    return [
        {
            "factors": factors,
            "loss": case.name,
            "optimizer": case.optimizer,
            "biases": "yes" if case.biases else "no",
            "M updates/s": rates[case],
            "of squared": rates[case] / rates[cases[0]],
            "GB/s": gigabytes(rates[case], factors) * (1.5 if case.loss.pairs else 1),
            "share of limit": rates[case] / rates["limit"] * (1.5 if case.loss.pairs else 1),
        }
        for case in cases
    ]


def limits(factors: int) -> list[dict[str, Any]]:
    """A row for each level of the memory."""
    return [
        {
            "factors": factors,
            "loss": f"(loads and stores, {level})",
            "optimizer": "",
            "biases": "",
            "M updates/s": rate,
            "GB/s": gigabytes(rate, factors),
        }
        for level, rate in levels(factors).items()
    ]


def panels_of(rows: list[dict[str, Any]], every: int) -> list[Panel]:
    """Speed by number of factors beside the limits, and by loss at the number that was measured for all of them."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        plain = row["loss"] == "squared"
        if plain or row["loss"].startswith("("):
            label = (
                f"{row['optimizer']}, {'biases' if row['biases'] == 'yes' else 'no biases'}" if plain else row["loss"]
            )
            x, y = series.setdefault(label, ([], []))
            x.append(row["factors"])
            y.append(row["GB/s"])
    losses = [row for row in rows if row["factors"] == every and row["optimizer"] == "sgd" and row["biases"] == "yes"]
    heights = {"SGD, biases": [row["M updates/s"] for row in losses]}
    return [
        Lines("one block in L2, one core", "factors", "GB/s", series, "xy"),
        Bars(f"{every} factors", "M updates/s", [row["loss"] for row in losses], heights),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--factors", default=[32, 64], type=numbers)
    parser.add_argument("--all-losses", default=[32, 64], type=numbers, help="factors for which losses are measured")
    parser.add_argument("--rounds", default=60, type=int)
    parsed = parser.parse_args()
    plain_only = [case for case in CASES if case.loss.name == "squared" and not case.parts]
    found = []
    for k in parsed.factors:
        found += measure(k, CASES if k in parsed.all_losses else plain_only, parsed.rounds) + limits(k)
    title = f"kernels, one core, one block of {ROWS} × {COLS} with {RATINGS:,} ratings"
    report("kernels", title, found, panels_of(found, parsed.all_losses[0]))
