"""Slow twins of the kernels: first what they compute, in plain Python and float64; then how, rounding by rounding."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass
class Side:
    """One side of a model, as lists of Python floats."""

    factors: list[list[float]]
    bias: list[float]
    sums: list[float]  # of AdaGrad


Rating = tuple[int, int, float]  # row, column, value


def update(
    p_side: Side, q_side: Side, ratings: list[Rating], base: float, lr: float, reg: float, adagrad: bool
) -> tuple[float, float]:
    """One pass of stochastic gradient descent over ratings, in order; returns Σe² and, with biases, Σe.

    A model without biases has empty lists of them.
    """
    squares = total = 0.0
    for row, col, value in ratings:
        p, q = p_side.factors[row], q_side.factors[col]
        biases = bool(p_side.bias)
        e = value - predict(p_side, q_side, row, col, base)
        p_gradient = [e * y - reg * x for x, y in zip(p, q, strict=True)]
        q_gradient = [e * x - reg * y for x, y in zip(p, q, strict=True)]
        p_rate = q_rate = lr
        if adagrad:
            p_side.sums[row] += sum(g * g for g in p_gradient) / len(p)
            q_side.sums[col] += sum(g * g for g in q_gradient) / len(q)
            p_rate, q_rate = lr / math.sqrt(p_side.sums[row]), lr / math.sqrt(q_side.sums[col])
        p_side.factors[row] = [x + p_rate * g for x, g in zip(p, p_gradient, strict=True)]
        q_side.factors[col] = [y + q_rate * g for y, g in zip(q, q_gradient, strict=True)]
        if biases:
            p_side.bias[row] += p_rate * (e - reg * p_side.bias[row])
            q_side.bias[col] += q_rate * (e - reg * q_side.bias[col])
        squares += e * e
        total += e if biases else 0.0
    return squares, total


def score(p_side: Side, q_side: Side, ratings: list[Rating], base: float) -> tuple[float, float]:
    """Σe² and Σ|e| over ratings."""
    errors = [value - predict(p_side, q_side, row, col, base) for row, col, value in ratings]
    return sum(e * e for e in errors), sum(abs(e) for e in errors)


def predict(p_side: Side, q_side: Side, row: int, col: int, base: float) -> float:
    """What the model says."""
    product = sum(x * y for x, y in zip(p_side.factors[row], q_side.factors[col], strict=True))
    return base + (p_side.bias[row] + q_side.bias[col] if p_side.bias else 0.0) + product


def update_exactly(
    P: np.ndarray,
    Q: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    s: np.ndarray | None,
    t: np.ndarray | None,
    ratings: list[Rating],
    *constants: np.float32,
) -> None:
    """`update` with the roundings of `mfpar.kernels.update`, in place, with biases.

    Parameters
    ----------
    P, Q : float32[rows, stride]
    b, c : float32[rows]
    s, t : float32[rows] or None
        AdaGrad's sums.
    constants : base, lr, reg and 1 / factors
    """
    base, lr, reg, share = constants
    one, two, zero = np.float32(1), np.float32(2), np.float32(0)
    p_rate = q_rate = lr
    for i, j, value in ratings:
        p, q, b_old, c_old = P[i].copy(), Q[j].copy(), b[i], c[j]
        product = dot(p, q)
        e = ((np.float32(value) - base) - (b_old + c_old)) - product
        if s is not None and t is not None:
            p_norm, q_norm, cross = dot(p, p), dot(q, q), two * reg * e * product
            s[i] += share * max(reg * reg * p_norm - cross + e * e * q_norm, zero)
            t[j] += share * max(reg * reg * q_norm - cross + e * e * p_norm, zero)
            p_rate, q_rate = lr / np.sqrt(s[i]), lr / np.sqrt(t[j])
        b[i], c[j] = b_old + p_rate * (e - reg * b_old), c_old + q_rate * (e - reg * c_old)
        P[i] = fma(q, p_rate * e, p * (one - p_rate * reg))
        Q[j] = fma(p, q_rate * e, q * (one - q_rate * reg))


def fma(x: np.ndarray, y: np.ndarray | np.float32, z: np.ndarray) -> np.ndarray:
    """x·y + z of float32 arrays, rounded once.

    The product of two float32 is exact in float64. Their sum with z is rounded to odd (Boldo, Melquiond: Emulation of
    FMA and correctly rounded sums, IEEE Transactions on Computers 57(4), 2008), so that rounding it again to float32
    gives what rounding once would have given.
    """
    product, addend = x.astype(np.float64) * y, z.astype(np.float64)
    total = product + addend
    virtual = total - product
    error = (product - (total - virtual)) + (addend - virtual)  # Knuth's TwoSum: total + error is exact
    even = (total.view(np.int64) & 1) == 0
    towards = np.where(error > 0, np.inf, -np.inf)
    return np.where((error != 0) & even, np.nextafter(total, towards), total).astype(np.float32)


def panels(row: np.ndarray) -> Iterator[np.ndarray]:
    """The vectors that a row of float32[stride] is worked on in."""
    width = 16 if len(row) % 16 == 0 else 8
    return (row[start : start + width] for start in range(0, len(row), width))


def dot(x: np.ndarray, y: np.ndarray) -> np.float32:
    """Σ x·y with the roundings of `mfpar.kernels.vector.dot`: float32[stride] each."""
    sums: list[np.ndarray] = []
    for t, (a, b) in enumerate(zip(panels(x), panels(y), strict=True)):
        if t < 4:
            sums.append(a * b)
        else:
            sums[t % 4] = fma(a, b, sums[t % 4])
    while len(sums) > 1:
        half = (len(sums) + 1) // 2
        sums = [sums[t] + sums[t + half] if t + half < len(sums) else sums[t] for t in range(half)]
    lanes = sums[0]
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    return lanes[0]
