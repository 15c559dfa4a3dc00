"""All cells of a block without a rating, as far as squared loss goes, through Gram matrices: never cell by cell.

One-class factorization (Pan et al.: One-class collaborative filtering, ICDM 2008; Hu, Koren, Volinsky: Collaborative
filtering for implicit feedback datasets, ICDM 2008) takes each of them for a rating `target` of weight w. Over a block
(I, J) that is, for a row i with x = (pᵢ, bᵢ), uⱼ = (qⱼ, 1), yⱼ = target − base − cⱼ,

    ½w Σⱼ (yⱼ − x·uⱼ)²  =  ½w (xᵀGx − 2x·h + Σ yⱼ²),      G = Σⱼ uⱼuⱼᵀ,  h = Σⱼ yⱼuⱼ

over *all* j in J; what that says of rated cells the update kernel takes back. One step down it for every row, then for
every column. An explicit step would overshoot where J is large, so it is implicit (Bertsekas: Incremental proximal
methods for large scale convex optimization, Mathematical Programming 129, 2011): the x that minimises the term plus
½(x − old)ᵀ D (x − old), D = 1/rates, solves (D + wG) x = D·old + wh, with one matrix for all rows. AdaGrad, whose rates
differ from row to row and shrink with the gradient, steps explicitly.
"""

import numpy as np

from mfpar.kernels.compile import inlined
from mfpar.kernels.vector import get, put

ZERO = np.float32(0)


@inlined
def invert(matrix):
    """Invert a symmetric positive definite float64[n, n] in place (Gauss, Jordan; elementwise, in a fixed order)."""
    n = len(matrix)
    for c in range(n):
        pivot = 1.0 / matrix[c, c]
        matrix[c, c] = 1.0
        for b in range(n):
            matrix[c, b] *= pivot
        for a in range(n):
            if a != c:
                factor = matrix[a, c]
                matrix[a, c] = 0.0
                for b in range(n):
                    matrix[a, b] -= factor * matrix[c, b]


@inlined
def descend(
    X, x_block, x_count, Y, y_block, y_count, base, rate, bias_rate, share, weight, target,
    stride, factors, biases, adagrad, scaled, nonnegative,
):  # fmt: skip
    """One step of a block of X, rows or columns, against a block of Y; returns the term's value before it."""
    n = factors + biases
    x_biases, y_biases = x_block + x_count * stride, y_block + y_count * stride
    sums = x_block + x_count * (stride + biases + scaled)
    G, h, squares = np.zeros((n, n), np.float32), np.zeros(n, np.float32), 0.0
    u = np.ones(n, np.float32)
    for j in range(y_count - 1):  # the last is the stranger
        y = target - base
        if biases:
            y -= get(Y, y_biases + j)
        for a in range(factors):
            u[a] = get(Y, y_block + j * stride + a)
        for a in range(n):
            h[a] += y * u[a]
            for b in range(n):
                G[a, b] += u[a] * u[b]
        squares += np.float64(y) * np.float64(y)
    total = 0.0
    x, moved = np.empty(n, np.float32), np.empty(n, np.float32)
    inverse = np.empty((n, n), np.float32)
    if not adagrad:
        matrix = np.empty((n, n), np.float64)
        for a in range(n):
            for b in range(n):
                matrix[a, b] = np.float64(weight) * np.float64(G[a, b])
            matrix[a, a] += 1.0 / np.float64(bias_rate if a == factors else rate)
        invert(matrix)
        for a in range(n):
            for b in range(n):
                inverse[a, b] = matrix[a, b]
    for i in range(x_count - 1):
        for a in range(factors):
            x[a] = get(X, x_block + i * stride + a)
        if biases:
            x[factors] = get(X, x_biases + i)
        moved[:] = 0
        for a in range(n):
            for b in range(n):
                moved[b] += G[a, b] * x[a]
        inside = squares
        for a in range(n):
            inside += np.float64(x[a]) * (np.float64(moved[a]) - 2.0 * np.float64(h[a]))
        total += inside
        if adagrad:
            norm = ZERO
            for a in range(n):
                moved[a] = weight * (moved[a] - h[a])
            for a in range(factors):
                norm += moved[a] * moved[a]
            grown = get(X, sums + i) + share * norm
            put(X, sums + i, grown)
            root = np.sqrt(grown)
            for a in range(n):
                x[a] -= (bias_rate if a == factors else rate) / root * moved[a]
        else:
            for a in range(n):
                x[a] = x[a] / (bias_rate if a == factors else rate) + weight * h[a]
            moved[:] = 0
            for a in range(n):
                for b in range(n):
                    moved[b] += inverse[a, b] * x[a]
            x[:] = moved
        for a in range(factors):
            put(X, x_block + i * stride + a, max(x[a], ZERO) if nonnegative else x[a])
        if biases:
            put(X, x_biases + i, x[factors])
    return 0.5 * np.float64(weight) * total


@inlined
def all_cells(
    P, p_block, p_count, Q, q_block, q_count, knobs, stride, factors, biases, adagrad, scaled, nonnegative
):  # fmt: skip
    """One step of all rows of a block, then one of all columns; returns the term's value before them."""
    p_side, q_side = (p_block, p_count), (q_block, q_count)
    shared = knobs.share, knobs.weight, knobs.target, stride, factors, biases, adagrad, scaled, nonnegative
    worth = descend(P, *p_side, Q, *q_side, knobs.base, knobs.p_rate, knobs.b_rate, *shared)
    descend(Q, *q_side, P, *p_side, knobs.base, knobs.q_rate, knobs.c_rate, *shared)
    return worth
