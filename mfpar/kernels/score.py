"""Fit of the model to blocks of ratings, without changing it."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from mfpar.kernels.kind import (
    ABSOLUTES,
    FACTORS_TYPES,
    LOSS,
    RIGHT,
    SQUARES,
    Kind,
    strip_types,
)
from mfpar.kernels.objective import compiled_for, link, value
from mfpar.kernels.sampling import draw, empty_table, has_rating, insert, shift_for, stream
from mfpar.kernels.turns import TURNS, come, go
from mfpar.kernels.vector import dot, get, load

ZERO, ONE = np.float32(0), np.float32(1)


@functools.cache
def score_kernel(kind: Kind) -> Callable[..., Any]:
    """Compile `score`, which takes what `update` does (see `mfpar.kernels.update`) but other constants.

    score(turns, …, q_counts, base, low, high, scores): predictions are cut to low … high, and scores, a
    float64[B, SCORES], grows as `mfpar.kernels.kind` says; an answer is right if it has the rating's sign.
    """
    stride, loss, biases = kind.stride, kind.loss, kind.biases

    @compiled_for(
        loss,
        f"k{kind.factors}_{'biases' if biases else 'plain'}_{kind.dtypes}",
        types.void(TURNS, *strip_types(kind), *FACTORS_TYPES, *(types.float32,) * 3, types.float64[:, ::1]),
    )
    def score(
        turns, offsets, rows, cols, values, weights, P, p_starts, p_counts, Q, q_counts, base, low, high, scores
    ):  # fmt: skip
        for n in range(turns.steps * (turns.last - turns.first)):
            i, j, q_block = come(turns, n)
            if i < 0:
                return
            total = squares = absolutes = 0.0
            right = 0
            b_block, c_block = p_starts[i] + p_counts[i] * stride, q_block + q_counts[j] * stride
            for t in range(offsets[i, j], offsets[i, j + 1]):
                row, col, r = np.int64(get(rows, t)), np.int64(get(cols, t)), get(values, t)
                z = base
                if biases:
                    z += get(P, b_block + row) + get(Q, c_block + col)
                z += dot(load(P, p_starts[i] + row * stride, stride), load(Q, q_block + col * stride, stride))
                e = r - max(low, min(link(loss, z), high))
                total += value(loss, r, z)
                squares += np.float64(e) * np.float64(e)
                absolutes += np.float64(abs(e))
                right += (z > ZERO) == (r > ZERO)
            scores[i, LOSS] += total
            scores[i, SQUARES] += squares
            scores[i, ABSOLUTES] += absolutes
            scores[i, RIGHT] += right
            go(turns, n, i, j)

    return score


@functools.cache
def contrast_kernel(kind: Kind) -> Callable[..., Any]:
    """Compile `contrast`: how positives of a strip go before cells drawn from the same row-block and column-block.

    contrast(turns, offsets, rows, cols, values, weights, trained_offsets, trained_rows, trained_cols, trained_values,
    trained_weights, P, …, q_counts, base, weight, target, key, scores): each rating above zero
    is set against one cell of its row (for cells "col": of its column) that neither strip has a rating of. LOSS grows
    by the loss of the pair, RIGHT by 1 where the positive goes first and ½ for a tie, SQUARES by the number of pairs.
    """
    stride, loss, biases = kind.stride, kind.loss, kind.biases
    by_col, pairs = kind.cells == "col", kind.cells in ("row", "col")

    @compiled_for(
        loss,
        f"k{kind.factors}_{'biases' if biases else 'plain'}_{kind.cells}_{kind.dtypes}",
        types.void(
            *(TURNS, *strip_types(kind), *strip_types(kind), *FACTORS_TYPES),
            *(*(types.float32,) * 3, types.uint64, types.float64[:, ::1]),
        ),
    )
    def contrast(
        turns, offsets, rows, cols, values, weights,
        trained_offsets, trained_rows, trained_cols, trained_values, trained_weights,
        P, p_starts, p_counts, Q, q_counts, base, weight, target, key, scores,
    ):  # fmt: skip
        for n in range(turns.steps * (turns.last - turns.first)):
            i, j, q_block = come(turns, n)
            if i < 0:
                return
            begin, end = offsets[i, j], offsets[i, j + 1]
            trained_begin, trained_end = trained_offsets[i, j], trained_offsets[i, j + 1]
            shift = shift_for(end - begin + trained_end - trained_begin)
            table = empty_table(shift)
            insert(table, shift, rows, cols, begin, end)
            insert(table, shift, trained_rows, trained_cols, trained_begin, trained_end)
            samples = stream(key, turns.origin + i, j)
            b_block, c_block = p_starts[i] + p_counts[i] * stride, q_block + q_counts[j] * stride
            total = right = 0.0
            count = 0
            for t in range(begin, end):
                row, col, r = np.int64(get(rows, t)), np.int64(get(cols, t)), get(values, t)
                k = draw(samples, t - begin, (p_counts[i] if by_col else q_counts[j]) - 1)
                other_row, other_col = (k, col) if by_col else (row, k)
                if not r > ZERO or has_rating(table, other_row, other_col, shift):
                    continue
                z = other = base
                if biases:
                    z += get(P, b_block + row) + get(Q, c_block + col)
                    other += get(P, b_block + other_row) + get(Q, c_block + other_col)
                p, q = p_starts[i] + row * stride, q_block + col * stride
                z += dot(load(P, p, stride), load(Q, q, stride))
                p, q = p_starts[i] + other_row * stride, q_block + other_col * stride
                other += dot(load(P, p, stride), load(Q, q, stride))
                if pairs:
                    total += value(loss, ONE, z - other)
                else:
                    total += value(loss, r, z) + np.float64(weight) * value(loss, target, other)
                right += 1.0 if z > other else 0.5 if z == other else 0.0
                count += 1
            scores[i, LOSS] += total
            scores[i, RIGHT] += right
            scores[i, SQUARES] += count
            go(turns, n, i, j)

    return contrast
