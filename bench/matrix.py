"""A seeded generator of rating matrices: planted factors, power-law rows and columns, in the shapes of known data.

Rows get their numbers of ratings first, by a power law; then each row draws that many different columns, by another.
So cells are distinct without a look at the whole matrix, and 100 M ratings take seconds and little more memory than
they fill. All depends on shape, seed and number of planted factors alone.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

# Exponent and offset: the weight of the n-th in rank is 1 / (n + offset)^exponent.
ROW_LAW, COL_LAW = (0.8, 50), (0.9, 20)
DENSEST = 3  # no row rates more than one of so many columns, or drawing different ones would take for ever
LEAST = 5  # ratings a row, on average, that a smaller matrix keeps
MEAN, SPREAD, NOISE = 3.5, 0.6, 0.8  # of the ratings, of the planted factors, and around what they say

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
HALF, LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


@dataclass(frozen=True)
class Shape:
    """Rows, columns and ratings of a data set."""

    rows: int
    cols: int
    ratings: int

    def scaled(self, scale: float) -> "Shape":
        """A matrix of the same density: both sides by the root of the scale, but rows keep a few ratings each."""
        count = round(self.ratings * scale)
        return Shape(min(int(self.rows * scale**0.5), count // LEAST), int(self.cols * scale**0.5), count)

    def with_ratings(self, ratings: int) -> "Shape":
        """The matrix of the same density, with so many ratings."""
        return self.scaled(ratings / self.ratings)


SHAPES = {
    "ml-1m": Shape(6_040, 3_706, 1_000_209),
    "ml-10m": Shape(71_567, 10_681, 8_000_000),
    "ml-20m": Shape(138_493, 26_744, 20_000_263),
    "netflix": Shape(480_189, 17_770, 100_480_507),
    "hugewiki": Shape(50_082_603, 39_780, 2_740_000_000),  # at a scale, always: whole it fills 33 GB
}


def ratings(shape: Shape, seed: int = 0, factors: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw distinct cells by power laws, and ratings 0.5 … 5 from planted factors and noise.

    Returns
    -------
    users, items, values
        int32[ratings], int32[ratings], float32[ratings]; users in ascending order, each one's items as drawn.

    Raises
    ------
    ValueError
        The matrix would be denser than one in `DENSEST`, or has fewer ratings than rows.
    """
    rng = np.random.default_rng(seed)
    degrees = _degrees(popularity(rng, shape.rows, *ROW_LAW), shape.ratings, max(1, shape.cols // DENSEST))
    ends = np.cumsum(degrees)
    accept, other = alias_table(popularity(rng, shape.cols, *COL_LAW))
    P = rng.normal(0, SPREAD, (shape.rows, factors)).astype(np.float32)
    Q = rng.normal(0, SPREAD, (shape.cols, factors)).astype(np.float32)
    users, items = np.empty(shape.ratings, np.int32), np.empty(shape.ratings, np.int32)
    values = np.empty(shape.ratings, np.float32)
    _fill(ends, accept, other, P, Q, np.uint64(rng.integers(2**63)), users, items, values)
    return users, items, values


def popularity(rng: np.random.Generator, count: int, exponent: float, offset: int) -> np.ndarray:
    """float64[count]: probabilities by a power law, in random order."""
    weights = rng.permutation(1 / (np.arange(count) + offset) ** exponent)
    return weights / weights.sum()


def alias_table(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A table that draws in constant time: take a random place, then it or its alias.

    Walker: An efficient method for generating discrete random variables with general distributions, ACM Transactions
    on Mathematical Software 3(3), 1977.

    Returns
    -------
    accept : float64[count]
        With which probability the place itself is meant.
    other : int32[count]
        Which one else.
    """
    accept, other = probabilities * len(probabilities), np.arange(len(probabilities), dtype=np.int32)
    small, large = list(np.flatnonzero(accept < 1)), list(np.flatnonzero(accept >= 1))
    while small and large:
        poor, rich = small.pop(), large[-1]
        other[poor] = rich
        accept[rich] -= 1 - accept[poor]
        if accept[rich] < 1:
            small.append(large.pop())
    accept[small + large] = 1  # what rounding has left over
    return accept, other


def _degrees(probabilities: np.ndarray, total: int, most: int) -> np.ndarray:
    """int64[rows]: ratings of each row, from 1 to `most`, `total` in all."""
    if not len(probabilities) <= total <= len(probabilities) * most:
        raise ValueError(f"{total} ratings in {len(probabilities)} rows: takes 1 to {most} a row")
    share = probabilities * total
    for _ in range(64):  # what a bound takes from some, the others share out
        bounded = np.clip(share, 1, most)
        free = (bounded < most) & (bounded > 1)
        excess = total - bounded.sum()
        if abs(excess) < 0.5 or not free.any():
            break
        share[free] *= 1 + excess / bounded[free].sum()
    degrees = np.floor(bounded).astype(np.int64)
    by_remainder = np.argsort(degrees - bounded, kind="stable")
    while missing := total - int(degrees.sum()):
        step = 1 if missing > 0 else -1
        able = by_remainder[(degrees < most) if step > 0 else (degrees > 1)]
        degrees[able[: abs(missing)]] += step
    return degrees


@njit(cache=True)
def _word(key, number):
    """The number-th random word of a key (SplitMix64)."""
    z = key + (np.uint64(number) + np.uint64(1)) * GOLDEN
    z = (z ^ (z >> SHIFTS[0])) * MULTIPLIERS[0]
    z = (z ^ (z >> SHIFTS[1])) * MULTIPLIERS[1]
    return z ^ (z >> SHIFTS[2])


@njit(cache=True)
def _fill(ends, accept, other, P, Q, key, users, items, values):
    """Draw the columns of every row, and what it thinks of them."""
    cols = np.uint64(len(accept))
    taken_by = np.full(len(accept), -1, np.int32)
    drawn = t = 0
    for row in range(len(ends)):
        while t < ends[row]:
            word = _word(key, drawn)
            drawn += 1
            col = np.int64(((word & LOW) * cols) >> HALF)
            if np.float64(word >> HALF) * 2.0**-32 >= accept[col]:
                col = np.int64(other[col])
            if taken_by[col] == row:
                continue
            taken_by[col] = row
            word = _word(~key, t)
            noise = -2.0 * 3**0.5  # the sum of four uniform numbers, of deviation 1
            for _ in range(4):
                noise += np.float64(word & np.uint64(0xFFFF)) * 2.0**-16 * 3**0.5
                word >>= np.uint64(16)
            planted = 0.0
            for factor in range(P.shape[1]):
                planted += P[row, factor] * Q[col, factor]
            rating = np.round(2 * (MEAN + planted + NOISE * noise)) / 2
            users[t], items[t], values[t] = row, col, min(max(rating, 0.5), 5.0)
            t += 1
