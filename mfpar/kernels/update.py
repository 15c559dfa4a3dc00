"""One pass of stochastic gradient descent over blocks of ratings, for losses that are sums over cells.

For a rating r of row i and column j, with the score z = base + bᵢ + cⱼ + pᵢ·qⱼ and g = ∂value(r, z)/∂z (for squared
loss z − r), a step of rate η and regularisation λ goes down the gradient of value + ½λ(|pᵢ|² + |qⱼ|² + bᵢ² + cⱼ²)::

    pᵢ ← pᵢ − η(g qⱼ + λ pᵢ)        bᵢ ← bᵢ − η(g + λ bᵢ)        and so for qⱼ, cⱼ, with the old pᵢ

(Koren, Bell, Volinsky: Matrix factorization techniques for recommender systems, IEEE Computer 42(8), 2009), every λ and
every η of P, Q, b and c by itself. L1 regularisation and non-negativity are proximal: after the step lanes are moved
towards zero, and those below zero are set to it (Duchi, Singer: Efficient online and batch learning using forward
backward splitting, JMLR 2009).

AdaGrad divides η by the root of one running sum for each row and column, of its squared gradients' mean over the
factors (Chin, Zhuang, Juan, Lin: A learning-rate schedule for stochastic gradient methods to matrix factorization,
PAKDD 2015). Its bias goes at the same rate: with a sum of its own it would stop long before its row has settled. The
squared norm of a gradient costs no second pass: |λp + gq|² = λ²|p|² + 2λg p·q + g²|q|².

A *checked* kernel refuses and counts the steps whose gradient is not finite: it finds out what a loss can't stand.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from mfpar.kernels.dense import all_cells
from mfpar.kernels.elementary import fma, shrunk
from mfpar.kernels.kind import COUNTED, DESCENT, REFUSED, VALUE, Kind, step_types
from mfpar.kernels.lanes import LANES, distinct
from mfpar.kernels.objective import compiled_for, gradient, is_difference, is_square, value
from mfpar.kernels.sampling import draw, empty_table, has_rating, insert, shift_for, stream
from mfpar.kernels.together import WORK, step_together
from mfpar.kernels.turns import come, go
from mfpar.kernels.vector import (
    FAR,
    NEAR,
    add_scaled,
    dot,
    dot_from,
    get,
    load,
    not_below_zero,
    prefetch,
    put,
    scale,
    shrink,
    store,
)

LINE = LANES  # ratings, after which sums move on to double precision and arrays are asked for ahead

LARGEST = np.finfo(np.float32).max
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)


@functools.cache
def update_kernel(kind: Kind) -> Callable[..., Any]:
    """Compile `update` for constants of the model.

    Returns
    -------
    update(turns, offsets, rows, cols, values, weights, P, p_starts, p_counts, Q, q_counts, knobs, key, sums), which
    visits some blocks of B row-blocks, each when it is its turn:

    turns : Turns
    offsets : int64[B, G + 1]
        Block (i, j) has the ratings offsets[i, j] … offsets[i, j + 1] − 1.
    rows, cols : row_dtype[nnz], col_dtype[nnz]
    values : float32[nnz]
    weights : float32[nnz], or float32[0] where the kind is not weighted
    P, Q : float32[:]
        Blocks one behind another, each as `mfpar.shards.Layout` says.
    p_starts, p_counts : int64[B]
        Where row-block i begins in P, and its number of rows.
    q_counts : int64[G]
        Number of columns of each column-block, the stranger among them; where they begin is the board's to say.
    knobs : Knobs
    key : uint64
        Of the epoch's samples.
    sums : float64[B, SUMS]
        sums[i] grows as `mfpar.kernels.kind` says.
    """
    stride, loss, biases, adagrad = kind.stride, kind.loss, kind.biases, kind.adagrad
    every, weighted, scaled, l1, nonnegative = kind.every, kind.weighted, kind.scaled, kind.l1, kind.nonnegative
    factors, paced, checked = kind.factors, kind.paced, kind.checked
    sampled, dense = kind.cells == "sampled", kind.cells == "all"
    square = is_square(loss) and every == 1 and not (weighted or sampled or dense or checked)
    # Sixteen ratings of distinct rows and columns at once, where a step waits long for its rates.
    together = square and is_difference(loss) and adagrad and not (scaled or l1 or nonnegative)

    @compiled_for(loss, kind.name, step_types(kind))
    def update(
        turns, offsets, rows, cols, values, weights, P, p_starts, p_counts, Q, q_counts, knobs, key, sums
    ):  # fmt: skip
        p_rate, q_rate, b_rate, c_rate = knobs.p_rate, knobs.q_rate, knobs.b_rate, knobs.c_rate
        b_pace, c_pace = b_rate / p_rate, c_rate / q_rate  # AdaGrad: of a bias as its row goes
        work = np.empty(WORK if together else 0, np.float32)
        p_reg, q_reg, b_reg, c_reg = knobs.p_reg, knobs.q_reg, knobs.b_reg, knobs.c_reg
        for visit in range(turns.steps * (turns.last - turns.first)):
            i, j, q_block = come(turns, visit)
            if i < 0:
                return
            p_block = p_starts[i]
            b_block, c_block = p_block + p_counts[i] * stride, q_block + q_counts[j] * stride
            # Behind the biases: the scales of regularisation, then AdaGrad's sums.
            p_scales, q_scales = b_block + biases * p_counts[i], c_block + biases * q_counts[j]
            p_sums, q_sums = p_scales + scaled * p_counts[i], q_scales + scaled * q_counts[j]
            total = descent = 0.0
            slope = squares = ZERO
            begin, end = offsets[i, j], offsets[i, j + 1]
            counted = 0 if checked or every > 1 else end - begin
            due = begin  # the next rating whose value is computed
            if sampled:
                shift = shift_for(end - begin)
                table = empty_table(shift)
                insert(table, shift, rows, cols, begin, end)
                samples = stream(key, turns.origin + i, j)
            for line in range(begin, end, LINE):
                descent += np.float64(slope)  # a line in single precision is exact enough, and costs less
                total += 0.5 * np.float64(squares)
                slope = squares = ZERO
                prefetch(rows, line + FAR, 1)
                prefetch(cols, line + FAR, 1)
                prefetch(values, line + FAR, 1)
                if together and line + LINE <= end and distinct(rows, line) and distinct(cols, line):
                    slope, squares = step_together(
                        stride, biases, paced, work, line, end, rows, cols, values, knobs,
                        P, p_block, b_block, p_sums, Q, q_block, c_block, q_sums,
                    )  # fmt: skip
                    continue
                for t in range(line, min(line + LINE, end)):
                    ahead = min(t + NEAR, end - 1)
                    prefetch(P, p_block + np.int64(get(rows, ahead)) * stride, stride)
                    prefetch(Q, q_block + np.int64(get(cols, ahead)) * stride, stride)
                    row, col, r = np.int64(get(rows, t)), np.int64(get(cols, t)), get(values, t)
                    w = get(weights, t) if weighted else ONE
                    for drawn in range(1 + sampled):
                        if sampled and drawn:
                            col = draw(samples, t - begin, q_counts[j] - 1)
                            r, w = knobs.target, knobs.weight
                            if has_rating(table, row, col, shift):
                                continue
                        p_at, q_at = p_block + row * stride, q_block + col * stride
                        p, q = load(P, p_at, stride), load(Q, q_at, stride)
                        product = dot(p, q)
                        z = knobs.base
                        if biases:
                            b_at, c_at = b_block + row, c_block + col
                            b, c = get(P, b_at), get(Q, c_at)
                            z += b + c
                        # Where it is known early, the base goes into the sum: one addition less to wait for.
                        z = z + product if biases or adagrad else dot_from(p, q, z)
                        g = gradient(loss, r, z)
                        if weighted or sampled:
                            g *= w
                        if dense:  # all cells count as free ones elsewhere (mfpar.kernels.dense): not so this one
                            g += knobs.weight * (knobs.target - z)
                        if checked and not abs(g) <= LARGEST:
                            if sums[i, REFUSED] == 0:
                                sums[i, REFUSED + 1], sums[i, REFUSED + 2] = r, z
                            sums[i, REFUSED] += 1
                            continue
                        if scaled:
                            p_scale, q_scale = get(P, p_scales + row), get(Q, q_scales + col)
                            p_reg, b_reg = knobs.p_reg * p_scale, knobs.b_reg * p_scale
                            q_reg, c_reg = knobs.q_reg * q_scale, knobs.c_reg * q_scale
                        if adagrad:
                            s_at, t_at = p_sums + row, q_sums + col
                            # Grouped for the shortest chain of operations from g on: popular columns wait for it.
                            p_norm, q_norm, steep = dot(p, p), dot(q, q), g * g
                            p_square = fma(steep, q_norm, fma(g, TWO * p_reg * product, p_reg * p_reg * p_norm))
                            q_square = fma(steep, p_norm, fma(g, TWO * q_reg * product, q_reg * q_reg * q_norm))
                            p_sum = fma(knobs.share, max(p_square, ZERO), get(P, s_at))
                            q_sum = fma(knobs.share, max(q_square, ZERO), get(Q, t_at))
                            put(P, s_at, p_sum)
                            put(Q, t_at, q_sum)
                            p_rate, q_rate = knobs.p_rate / np.sqrt(p_sum), knobs.q_rate / np.sqrt(q_sum)
                            b_rate, c_rate = p_rate, q_rate
                            if paced:
                                b_rate, c_rate = p_rate * b_pace, q_rate * c_pace
                        if biases:
                            b = fma(-b_rate, fma(b_reg, b, g), b)
                            c = fma(-c_rate, fma(c_reg, c, g), c)
                            if l1:
                                b, c = shrunk(b, b_rate * knobs.b_l1), shrunk(c, c_rate * knobs.c_l1)
                            put(P, b_at, b)
                            put(Q, c_at, c)
                        # The sign goes to the factor that is known first: with AdaGrad the gradient, else the rate.
                        p_step, q_step = (p_rate * -g, q_rate * -g) if adagrad else (-p_rate * g, -q_rate * g)
                        p_next = add_scaled(scale(p, ONE - p_rate * p_reg), q, p_step)
                        q_next = add_scaled(scale(q, ONE - q_rate * q_reg), p, q_step)
                        if l1:
                            p_next, q_next = shrink(p_next, p_rate * knobs.p_l1), shrink(q_next, q_rate * knobs.q_l1)
                        if nonnegative:
                            p_next, q_next = not_below_zero(p_next), not_below_zero(q_next)
                        store(P, p_at, p_next)
                        store(Q, q_at, q_next)
                        if square:  # operations that wait for g keep those of later ratings out of the CPU's window
                            squares = fma(g, g, squares)
                        elif every == 1 or t == due:
                            worth = value(loss, r, z)
                            if weighted or sampled:
                                worth *= np.float64(w)
                            if dense:
                                worth -= 0.5 * np.float64(knobs.weight) * np.float64(knobs.target - z) ** 2
                            total += worth
                            if checked or every > 1:
                                counted += drawn == 0
                        if biases:
                            slope -= g
                    if every > 1 and t == due:
                        due += every
            sums[i, VALUE] += total + 0.5 * np.float64(squares)
            sums[i, COUNTED] += counted
            sums[i, DESCENT] += descent + np.float64(slope)
            if dense:
                sums[i, VALUE] += all_cells(
                    *(P, p_block, p_counts[i], Q, q_block, q_counts[j], knobs),
                    *(stride, factors, biases, adagrad, scaled, nonnegative),
                )
            go(turns, visit, i, j)

    return update
