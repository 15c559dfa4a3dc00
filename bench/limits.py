"""The limit that memory sets, measured: a kernel with the loads and stores of an update, and next to no arithmetic.

It reads and writes the same rows of P and Q in the same order as an update does, so it knows what a formula from data
sheets would not: how well the order suits the caches, and what stores to rows cost that are soon read again. Taken on
blocks that fill half of L1, half of L2 and four times the last cache, and on whole epochs of a blocked file.
"""

import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from report import caches

from mfpar.blockfile import BlockedFile
from mfpar.kernels.vector import add_scaled, get, load, prefetch, store
from mfpar.ratings.ordering import spread
from mfpar.schedule import meetings, ring
from mfpar.shards import Layout, Slots

AHEAD = 64  # ratings; how far ahead kernels ask for rows
TYPICAL = {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}  # where the system does not tell
RATINGS = {"L1": 1 << 14, "L2": 1 << 16, "memory": 1 << 21}


@functools.cache
def traffic(stride: int, ahead: bool) -> Callable[..., None]:
    """Compile the kernel: traffic(begin, end, rows, cols, P, p_block, Q, q_block, scalar), with scalar = 0.

    Parameters
    ----------
    ahead : bool
        Ask for rows ahead, as updates do: a help beyond the caches, a cost inside them.
    """

    @njit(nogil=True)
    def visit(begin, end, rows, cols, P, p_block, Q, q_block, scalar):
        for t in range(begin, end):
            if ahead:
                later = min(t + AHEAD, end - 1)
                prefetch(P, p_block + np.int64(get(rows, later)) * stride, stride)
                prefetch(Q, q_block + np.int64(get(cols, later)) * stride, stride)
            p_at = p_block + np.int64(get(rows, t)) * stride
            q_at = q_block + np.int64(get(cols, t)) * stride
            p, q = load(P, p_at, stride), load(Q, q_at, stride)
            store(P, p_at, add_scaled(p, q, scalar))
            store(Q, q_at, add_scaled(q, p, scalar))

    return visit


@functools.cache
def traffic_of_epoch(stride: int) -> Callable[..., None]:
    """Compile the kernel that goes through all blocks of a strip in the order of an epoch."""
    visit = traffic(stride, True)

    @njit(nogil=True)
    def epoch(met, offsets, rows, cols, P, p_starts, Q, q_starts, scalar):
        for step in range(len(met)):
            for i in range(len(p_starts)):
                j = met[step, i]
                visit(offsets[i, j], offsets[i, j + 1], rows, cols, P, p_starts[i], Q, q_starts[j], scalar)

    return epoch


def best_seconds(call: Callable[[], Any], least: float = 0.3) -> float:
    """The shortest time of a call, of five and as many more as fit in `least` seconds; it has run once before."""
    call()
    best, until, count = math.inf, time.perf_counter() + least, 0
    while count < 5 or time.perf_counter() < until:
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
        count += 1
    return best


def levels(factors: int) -> dict[str, float]:
    """Million visits a second that each level of the memory allows: "L1", "L2" and "memory"."""
    known = TYPICAL | caches()
    last = max(known.values())
    sizes = {"L1": known["L1"] // 2, "L2": known["L2"] // 2, "memory": 4 * last}
    stride = Layout(factors, False).stride
    found = {}
    for level, size in sizes.items():
        count, side = RATINGS[level], max(8, size // (8 * stride))
        rng = np.random.default_rng(0)
        rows, cols = np.sort(rng.integers(0, side, count)), rng.integers(0, side, count)
        order = spread(rows, cols)
        rows, cols = rows[order].astype(np.uint32), cols[order].astype(np.uint32)
        slots = Slots([side * stride, side * stride])
        tables = slots.buffer, int(slots.starts[0]), slots.buffer, int(slots.starts[1])
        visit = functools.partial(traffic(stride, level == "memory"), 0, count, rows, cols, *tables, np.float32(0))
        found[level] = count / best_seconds(visit) / 1e6
    return found


def gigabytes(millions: float, factors: int) -> float:
    """GB/s of so many million updates a second: a row of P and one of Q, in single precision, read and written.

    >>> gigabytes(100.0, 32)
    51.2
    """
    return millions * 16 * factors / 1e3


def epoch_limit(path: Path, factors: int) -> Callable[[], float]:
    """What measures how many million ratings of a blocked file one core could visit a second, in an epoch's order."""
    layout = Layout(factors, False)
    with BlockedFile(path) as file:
        grid, strip = file.grid, file.strip("train", 0, file.grid.size)
    P, Q = (Slots([layout.floats(int(size)) for size in sizes]) for sizes in (grid.row_sizes, grid.col_sizes))
    order = ring(grid.size, 0, 1)
    met = np.array([meetings(order, step) for step in range(grid.size)])
    tables = P.buffer, P.starts, Q.buffer, Q.starts
    epoch = functools.partial(
        traffic_of_epoch(layout.stride), met, strip.offsets, strip.rows, strip.cols, *tables, np.float32(0)
    )
    return lambda: len(strip.values) / best_seconds(epoch, 0.0) / 1e6
