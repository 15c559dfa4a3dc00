"""One pass of stochastic gradient descent over blocks of ratings, squared loss.

For a rating r of row i and column j, with z = base + bᵢ + cⱼ + pᵢ·qⱼ and e = r − z, a step of rate η and
regularisation λ goes down the gradient of ½e² + ½λ(|pᵢ|² + |qⱼ|² + bᵢ² + cⱼ²)::

    pᵢ ← pᵢ + η(e qⱼ − λ pᵢ)        bᵢ ← bᵢ + η(e − λ bᵢ)        and so for qⱼ, cⱼ, with the old pᵢ

(Koren, Bell, Volinsky: Matrix factorization techniques for recommender systems, IEEE Computer 42(8), 2009). AdaGrad
divides η by the root of one running sum for each row and column, of its squared gradients' mean over the factors
(Chin, Zhuang, Juan, Lin: A learning-rate schedule for stochastic gradient methods to matrix factorization, PAKDD 2015).
Its bias goes at the same rate: with a sum of its own it would stop long before its row has settled.

The squared norm of a gradient costs no second pass: |λp − eq|² = λ²|p|² − 2λe p·q + e²|q|².
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from mfpar.kernels.compile import compiled
from mfpar.kernels.vector import add_scaled, dot, load, prefetch, scale, store

# How far ahead to ask for memory, in ratings: for the arrays of ratings (which the hardware's prefetcher loses at every
# 4 KB), and for rows of P and Q. Asking changes no bit.
FAR, NEAR, PER_LINE = 512, 64, 16


@functools.cache
def update_kernel(
    stride: int, factors: int, biases: bool, adagrad: bool, row_dtype: str, col_dtype: str
) -> Callable[..., Any]:
    """Compile `update` for constants of the model.

    Parameters
    ----------
    stride : int
        Floats from one row of factors to the next: `factors` rounded up to a multiple of 8.
    factors : int
    biases, adagrad : bool
    row_dtype, col_dtype : str
        "uint16" or "uint32".

    Returns
    -------
    update(first, last, met, offsets, rows, cols, values, P, p_starts, p_counts, Q, q_starts, q_counts, base, lr, reg,
    sums), which visits the blocks (i, met[i]) for i in first … last − 1, in this order, each once:

    met : int64[B]
        Column-block that each of the B row-blocks meets.
    offsets : int64[B, G + 1]
        Block (i, j) has the ratings offsets[i, j] … offsets[i, j + 1] − 1.
    rows, cols : row_dtype[nnz], col_dtype[nnz]
    values : float32[nnz]
    P, Q : float32[:]
        Blocks one behind another, each as `mfpar.shards.Layout` says.
    p_starts, p_counts : int64[B]
        Where row-block i begins in P, and its number of rows.
    q_starts, q_counts : int64[B]
        The same of the column-block that row-block i meets.
    base, lr, reg : float32
    sums : float64[B, 2]
        sums[i] grows by the block's Σe² and, with biases, Σe.
    """
    one = np.float32(1.0)
    share = np.float32(1.0 / factors)
    two = np.float32(2.0)

    @compiled(
        f"k{factors}_{'biases' if biases else 'plain'}_{'adagrad' if adagrad else 'sgd'}_{row_dtype}_{col_dtype}",
        types.void(
            *(types.int64, types.int64, types.int64[::1], types.int64[:, ::1]),
            *(getattr(types, row_dtype)[::1], getattr(types, col_dtype)[::1], types.float32[::1]),
            *(types.float32[::1], types.int64[::1], types.int64[::1]) * 2,
            *(types.float32, types.float32, types.float32, types.float64[:, ::1]),
        ),
    )
    def update(
        first, last, met, offsets, rows, cols, values, P, p_starts, p_counts, Q, q_starts, q_counts, base, lr, reg, sums
    ):  # fmt: skip
        p_rate = q_rate = lr
        for i in range(first, last):
            p_block, q_block = p_starts[i], q_starts[i]
            b_block, c_block = p_block + p_counts[i] * stride, q_block + q_counts[i] * stride
            squares = total = 0.0
            end = offsets[i, met[i] + 1]
            for t in range(offsets[i, met[i]], end):
                if t % PER_LINE == 0:
                    prefetch(rows, t + FAR, 1)
                    prefetch(cols, t + FAR, 1)
                    prefetch(values, t + FAR, 1)
                ahead = min(t + NEAR, end - 1)
                prefetch(P, p_block + np.int64(rows[ahead]) * stride, stride)
                prefetch(Q, q_block + np.int64(cols[ahead]) * stride, stride)
                row, col = np.int64(rows[t]), np.int64(cols[t])
                p_at, q_at = p_block + row * stride, q_block + col * stride
                p, q = load(P, p_at, stride), load(Q, q_at, stride)
                product = dot(p, q)
                e = values[t] - base
                if biases:
                    b_at, c_at = b_block + row, c_block + col
                    b, c = P[b_at], Q[c_at]
                    e -= b + c
                e -= product
                if biases:
                    b_gradient, c_gradient = e - reg * b, e - reg * c
                if adagrad:
                    # The running sums lie behind the biases.
                    s_at, t_at = b_block + biases * p_counts[i] + row, c_block + biases * q_counts[i] + col
                    p_norm, q_norm, cross = dot(p, p), dot(q, q), two * reg * e * product
                    P[s_at] += share * max(reg * reg * p_norm - cross + e * e * q_norm, np.float32(0.0))
                    Q[t_at] += share * max(reg * reg * q_norm - cross + e * e * p_norm, np.float32(0.0))
                    p_rate, q_rate = lr / np.sqrt(P[s_at]), lr / np.sqrt(Q[t_at])
                if biases:
                    P[b_at] = b + p_rate * b_gradient
                    Q[c_at] = c + q_rate * c_gradient
                store(P, p_at, add_scaled(scale(p, one - p_rate * reg), q, p_rate * e))
                store(Q, q_at, add_scaled(scale(q, one - q_rate * reg), p, q_rate * e))
                squares += np.float64(e) * np.float64(e)
                if biases:
                    total += np.float64(e)
            sums[i, 0] += squares
            sums[i, 1] += total

    return update
