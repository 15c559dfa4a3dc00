"""One pass of stochastic gradient descent over pairs of cells: a rated one, and another one of its row (or column).

The loss's r is 1, its z the difference of the two scores, z = (cⱼ − cₖ) + pᵢ·(qⱼ − qₖ), in which all that the cells
have in common cancels; g = ∂value(1, z)/∂z::

    pᵢ ← pᵢ − η(g (qⱼ − qₖ) + λ pᵢ)       qⱼ ← qⱼ − η(g pᵢ + λ qⱼ)       qₖ ← qₖ + η(g pᵢ − λ qₖ)       with the old pᵢ

(Rendle, Freudenthaler, Gantner, Schmidt-Thieme: BPR: Bayesian personalized ranking from implicit feedback, UAI 2009).
Column k is drawn among the columns of the same column-block, so that a block touches nothing but its own rows and
columns; columns lie in random order, and every row meets all column-blocks in an epoch. Pairs within a column change
the roles of P and Q. The common side is called `one` below, the other one `two`.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from mfpar.kernels.elementary import fma, shrunk
from mfpar.kernels.kind import COUNTED, REFUSED, VALUE, Kind, step_types
from mfpar.kernels.objective import compiled_for, gradient, value
from mfpar.kernels.sampling import draw, empty_table, has_rating, insert, shift_for, stream
from mfpar.kernels.turns import come, go
from mfpar.kernels.vector import (
    FAR,
    NEAR,
    add_scaled,
    dot,
    get,
    load,
    not_below_zero,
    prefetch,
    put,
    scale,
    shrink,
    store,
)

LINE = 16  # ratings
LARGEST = np.finfo(np.float32).max
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)


@functools.cache
def pairs_kernel(kind: Kind) -> Callable[..., Any]:
    """Compile the kernel of a kind whose cells are "row" or "col"; it takes what `update_kernel`'s does.

    Ratings that are not above zero are no positives and are passed over.
    """
    stride, loss, biases, adagrad = kind.stride, kind.loss, kind.biases, kind.adagrad
    every, weighted, scaled, l1, nonnegative = kind.every, kind.weighted, kind.scaled, kind.l1, kind.nonnegative
    by_row, checked = kind.cells == "row", kind.checked

    @compiled_for(loss, kind.name, step_types(kind))
    def update(
        turns, offsets, rows, cols, values, weights, P, p_starts, p_counts, Q, q_counts, knobs, key, sums
    ):  # fmt: skip
        A, B = (P, Q) if by_row else (Q, P)
        one_rate, two_rate = (knobs.p_rate, knobs.q_rate) if by_row else (knobs.q_rate, knobs.p_rate)
        one_reg, two_reg = (knobs.p_reg, knobs.q_reg) if by_row else (knobs.q_reg, knobs.p_reg)
        one_l1, two_l1 = (knobs.p_l1, knobs.q_l1) if by_row else (knobs.q_l1, knobs.p_l1)
        bias_rate, bias_reg, bias_l1 = (
            (knobs.c_rate, knobs.c_reg, knobs.c_l1) if by_row else (knobs.b_rate, knobs.b_reg, knobs.b_l1)
        )
        other_rate, k_rate, other_bias_rate, k_bias_rate = two_rate, two_rate, bias_rate, bias_rate
        other_reg, k_reg, other_bias_reg, k_bias_reg = two_reg, two_reg, bias_reg, bias_reg
        for n in range(turns.steps * (turns.last - turns.first)):
            i, j, q_block = come(turns, n)
            if i < 0:
                return
            ones, twos = (p_starts[i], q_block) if by_row else (q_block, p_starts[i])
            one_count, two_count = (p_counts[i], q_counts[j]) if by_row else (q_counts[j], p_counts[i])
            two_biases = twos + two_count * stride
            one_scales = ones + one_count * (stride + biases)
            two_scales = twos + two_count * (stride + biases)
            one_sums, two_sums = one_scales + scaled * one_count, two_scales + scaled * two_count
            begin, end = offsets[i, j], offsets[i, j + 1]
            due = begin  # the next rating whose value is computed
            shift = shift_for(end - begin)
            table = empty_table(shift)
            insert(table, shift, rows, cols, begin, end)
            samples = stream(key, turns.origin + i, j)
            total = 0.0
            counted = 0
            for t in range(begin, end):
                if (t - begin) % LINE == 0:
                    prefetch(rows, t + FAR, 1)
                    prefetch(cols, t + FAR, 1)
                ahead = min(t + NEAR, end - 1)
                row, col = np.int64(get(rows, ahead)), np.int64(get(cols, ahead))
                one, two = (row, col) if by_row else (col, row)
                prefetch(A, ones + one * stride, stride)
                prefetch(B, twos + two * stride, stride)
                row, col = np.int64(get(rows, t)), np.int64(get(cols, t))
                one, two = (row, col) if by_row else (col, row)
                k = draw(samples, t - begin, two_count - 1)
                if has_rating(table, row if by_row else k, k if by_row else col, shift) or not get(values, t) > ZERO:
                    continue
                a_at, b_at, k_at = ones + one * stride, twos + two * stride, twos + k * stride
                a, b, c = load(A, a_at, stride), load(B, b_at, stride), load(B, k_at, stride)
                apart = add_scaled(b, c, -ONE)
                product = dot(a, apart)
                z = product
                if biases:
                    b_bias, c_bias = get(B, two_biases + two), get(B, two_biases + k)
                    z += b_bias - c_bias
                g = gradient(loss, ONE, z)
                if weighted:
                    g *= get(weights, t)
                if checked and not abs(g) <= LARGEST:
                    if sums[i, REFUSED] == 0:
                        sums[i, REFUSED + 1], sums[i, REFUSED + 2] = ONE, z
                    sums[i, REFUSED] += 1
                    continue
                if scaled:
                    a_reg = one_reg * get(A, one_scales + one)
                    b_scale, k_scale = get(B, two_scales + two), get(B, two_scales + k)
                    other_reg, k_reg = two_reg * b_scale, two_reg * k_scale
                    other_bias_reg, k_bias_reg = bias_reg * b_scale, bias_reg * k_scale
                else:
                    a_reg = one_reg
                if adagrad:
                    a_norm, b_norm, c_norm, apart_norm = dot(a, a), dot(b, b), dot(c, c), dot(apart, apart)
                    with_b, with_c, steep = dot(a, b), dot(a, c), g * g
                    a_square = fma(steep, apart_norm, fma(g, TWO * a_reg * product, a_reg * a_reg * a_norm))
                    b_square = fma(steep, a_norm, fma(g, TWO * other_reg * with_b, other_reg * other_reg * b_norm))
                    k_square = fma(steep, a_norm, fma(-g, TWO * k_reg * with_c, k_reg * k_reg * c_norm))
                    a_sum = fma(knobs.share, max(a_square, ZERO), get(A, one_sums + one))
                    b_sum = fma(knobs.share, max(b_square, ZERO), get(B, two_sums + two))
                    k_sum = fma(knobs.share, max(k_square, ZERO), get(B, two_sums + k))
                    put(A, one_sums + one, a_sum)
                    put(B, two_sums + two, b_sum)
                    put(B, two_sums + k, k_sum)
                    a_rate, b_root, k_root = one_rate / np.sqrt(a_sum), np.sqrt(b_sum), np.sqrt(k_sum)
                    other_rate, k_rate = two_rate / b_root, two_rate / k_root
                    other_bias_rate, k_bias_rate = bias_rate / b_root, bias_rate / k_root
                else:
                    a_rate = one_rate
                if biases:
                    b_bias = fma(-other_bias_rate, fma(other_bias_reg, b_bias, g), b_bias)
                    c_bias = fma(-k_bias_rate, fma(k_bias_reg, c_bias, -g), c_bias)
                    if l1:
                        b_bias = shrunk(b_bias, other_bias_rate * bias_l1)
                        c_bias = shrunk(c_bias, k_bias_rate * bias_l1)
                    put(B, two_biases + two, b_bias)
                    put(B, two_biases + k, c_bias)
                a_next = add_scaled(scale(a, ONE - a_rate * a_reg), apart, -a_rate * g)
                b_next = add_scaled(scale(b, ONE - other_rate * other_reg), a, -other_rate * g)
                c_next = add_scaled(scale(c, ONE - k_rate * k_reg), a, k_rate * g)
                if l1:
                    a_next, b_next = shrink(a_next, a_rate * one_l1), shrink(b_next, other_rate * two_l1)
                    c_next = shrink(c_next, k_rate * two_l1)
                if nonnegative:
                    a_next, b_next, c_next = not_below_zero(a_next), not_below_zero(b_next), not_below_zero(c_next)
                store(A, a_at, a_next)
                store(B, b_at, b_next)
                store(B, k_at, c_next)
                if every == 1 or t >= due:  # behind one that was passed over, the next
                    due = t + every
                    worth = value(loss, ONE, z)
                    total += np.float64(get(weights, t)) * worth if weighted else worth
                    counted += 1
            sums[i, VALUE] += total
            sums[i, COUNTED] += counted
            go(turns, n, i, j)

    return update
