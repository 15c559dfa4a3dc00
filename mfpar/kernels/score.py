"""Errors of the model on blocks of ratings, without changing it."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from mfpar.kernels.compile import compiled
from mfpar.kernels.vector import dot, load


@functools.cache
def score_kernel(stride: int, biases: bool, row_dtype: str, col_dtype: str) -> Callable[..., Any]:
    """Compile `score`, which takes the arguments of `update` but for lr and reg (see `mfpar.kernels.update`).

    sums : float64[B, 2]
        sums[i] grows by the block's Σe² and Σ|e|.
    """

    @compiled(
        f"k{stride}_{'biases' if biases else 'plain'}_{row_dtype}_{col_dtype}",
        types.void(
            *(types.int64, types.int64, types.int64[::1], types.int64[:, ::1]),
            *(getattr(types, row_dtype)[::1], getattr(types, col_dtype)[::1], types.float32[::1]),
            *(types.float32[::1], types.int64[::1], types.int64[::1]) * 2,
            *(types.float32, types.float64[:, ::1]),
        ),
    )
    def score(first, last, met, offsets, rows, cols, values, P, p_starts, p_counts, Q, q_starts, q_counts, base, sums):
        for i in range(first, last):
            squares = absolutes = 0.0
            b_block, c_block = p_starts[i] + p_counts[i] * stride, q_starts[i] + q_counts[i] * stride
            for t in range(offsets[i, met[i]], offsets[i, met[i] + 1]):
                row, col = np.int64(rows[t]), np.int64(cols[t])
                e = values[t] - base
                if biases:
                    e -= P[b_block + row] + Q[c_block + col]
                e -= dot(load(P, p_starts[i] + row * stride, stride), load(Q, q_starts[i] + col * stride, stride))
                squares += np.float64(e) * np.float64(e)
                absolutes += np.float64(abs(e))
            sums[i, 0] += squares
            sums[i, 1] += absolutes

    return score
