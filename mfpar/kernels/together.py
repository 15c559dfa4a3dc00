"""AdaGrad steps of squared loss on sixteen ratings of distinct rows and columns at once.

Such ratings don't wait for each other. So all their products can be had before the first step is taken, and what
follows from them computed in lanes: a sixteenth of the roots and divisions, and the sums of four rows folded together.
Each lane goes through the operations of a single step (`mfpar.kernels.update`), in the same order and to the same bits;
only the sums over all ratings are folded in another order.
"""

import numpy as np
from numba import types
from numba.extending import overload

from mfpar.kernels.compile import inlined
from mfpar.kernels.lanes import (
    LANES,
    each,
    gather,
    minus,
    negative,
    over,
    plus,
    positive,
    put_dots,
    root,
    scatter,
    times,
    times_plus,
)
from mfpar.kernels.vector import NEAR, add_scaled, dot, get, load, prefetch, scale, store

WORK = 4 * LANES  # float32 of room for what the ratings have, one after the other
ONE, TWO = np.float32(1), np.float32(2)


@inlined
def row_at(block, indices, t, stride):
    """Where the row of rating t begins."""
    return block + np.int64(get(indices, t)) * stride


def _products(stride):
    """What fills work with p·q, then |p|², then |q|² of the sixteen ratings from `line` on."""

    @inlined
    def put_products(work, line, end, rows, cols, P, p_block, Q, q_block):
        for t in range(line, line + LANES, 4):
            later = min(t + NEAR, end - 4)
            for ahead in range(later, later + 4):
                prefetch(P, row_at(p_block, rows, ahead, stride), stride)
                prefetch(Q, row_at(q_block, cols, ahead, stride), stride)
            ps = (
                load(P, row_at(p_block, rows, t, stride), stride),
                load(P, row_at(p_block, rows, t + 1, stride), stride),
                load(P, row_at(p_block, rows, t + 2, stride), stride),
                load(P, row_at(p_block, rows, t + 3, stride), stride),
            )
            qs = (
                load(Q, row_at(q_block, cols, t, stride), stride),
                load(Q, row_at(q_block, cols, t + 1, stride), stride),
                load(Q, row_at(q_block, cols, t + 2, stride), stride),
                load(Q, row_at(q_block, cols, t + 3, stride), stride),
            )
            put_dots(work, t - line, ps, qs)
            put_dots(work, t - line + LANES, ps, ps)
            put_dots(work, t - line + 2 * LANES, qs, qs)

    return put_products


def _steps(stride):
    """What steps on the sixteen ratings, whose scales and steps lie in work."""

    @inlined
    def step(work, line, rows, cols, P, p_block, Q, q_block):
        for n in range(LANES):
            p_at, q_at = row_at(p_block, rows, line + n, stride), row_at(q_block, cols, line + n, stride)
            p, q = load(P, p_at, stride), load(Q, q_at, stride)
            store(P, p_at, add_scaled(scale(p, get(work, 2 * LANES + n)), q, get(work, n)))
            store(Q, q_at, add_scaled(scale(q, get(work, 3 * LANES + n)), p, get(work, LANES + n)))

    return step


def step_together(
    stride, biases, paced, work, line, end, rows, cols, values, knobs,
    P, p_block, b_block, p_sums, Q, q_block, c_block, q_sums,
):  # fmt: skip
    """Step on the ratings line … line + 15; returns minus the sum of their gradients (biases only), and of squares."""
    raise NotImplementedError("for compiled code")


@overload(step_together, prefer_literal=True, jit_options={"forceinline": True, "error_model": "numpy"})
def _choose(
    stride, biases, paced, work, line, end, rows, cols, values, knobs,
    P, p_block, b_block, p_sums, Q, q_block, c_block, q_sums,
):  # fmt: skip
    if not isinstance(stride, types.IntegerLiteral):
        return None
    put_products, step = _products(stride.literal_value), _steps(stride.literal_value)

    def together(
        stride, biases, paced, work, line, end, rows, cols, values, knobs,
        P, p_block, b_block, p_sums, Q, q_block, c_block, q_sums,
    ):  # fmt: skip
        put_products(work, line, end, rows, cols, P, p_block, Q, q_block)
        products, p_norms, q_norms = load(work, 0, LANES), load(work, LANES, LANES), load(work, 2 * LANES, LANES)
        zs = each(knobs.base)
        if biases:
            bs, cs = gather(P, b_block, rows, line), gather(Q, c_block, cols, line)
            zs = plus(zs, plus(bs, cs))
        gs = minus(plus(zs, products), load(values, line, LANES))
        steeps = times(gs, gs)
        p_squares = times_plus(gs, times(TWO * knobs.p_reg, products), times(knobs.p_reg * knobs.p_reg, p_norms))
        q_squares = times_plus(gs, times(TWO * knobs.q_reg, products), times(knobs.q_reg * knobs.q_reg, q_norms))
        p_squares = positive(times_plus(steeps, q_norms, p_squares))
        q_squares = positive(times_plus(steeps, p_norms, q_squares))
        p_grown = times_plus(knobs.share, p_squares, gather(P, p_sums, rows, line))
        q_grown = times_plus(knobs.share, q_squares, gather(Q, q_sums, cols, line))
        scatter(P, p_sums, rows, line, p_grown)
        scatter(Q, q_sums, cols, line, q_grown)
        p_rates, q_rates = over(knobs.p_rate, root(p_grown)), over(knobs.q_rate, root(q_grown))
        slope = np.float32(0)
        if biases:
            b_rates, c_rates = p_rates, q_rates
            if paced:
                b_rates, c_rates = (
                    times(p_rates, knobs.b_rate / knobs.p_rate),
                    times(q_rates, knobs.c_rate / knobs.q_rate),
                )
            scatter(P, b_block, rows, line, times_plus(negative(b_rates), times_plus(knobs.b_reg, bs, gs), bs))
            scatter(Q, c_block, cols, line, times_plus(negative(c_rates), times_plus(knobs.c_reg, cs, gs), cs))
            slope = -dot(gs, each(ONE))
        store(work, 0, times(p_rates, negative(gs)))
        store(work, LANES, times(q_rates, negative(gs)))
        store(work, 2 * LANES, minus(ONE, times(p_rates, knobs.p_reg)))
        store(work, 3 * LANES, minus(ONE, times(q_rates, knobs.q_reg)))
        step(work, line, rows, cols, P, p_block, Q, q_block)
        return slope, dot(gs, gs)

    return together
