"""Slow twins of the kernels: first what they compute, in plain Python and float64; then how, rounding by rounding."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from mfpar.kernels import DONE, SLOT, Knobs, Turns, announce_all
from mfpar.losses import Loss


@dataclass
class Side:
    """One side of a block of a model, as lists of Python floats; the last row is the stranger."""

    factors: list[list[float]]
    bias: list[float]  # empty in a model without
    sums: list[float] = field(default_factory=list)  # of AdaGrad; empty for SGD
    scales: list[float] = field(default_factory=list)  # of regularisation per row; empty where it counts per rating


@dataclass
class Rules:
    """What a step does."""

    loss: Loss
    knobs: Knobs
    nonnegative: bool = False
    cells: str = "rated"
    every: int = 1

    def __post_init__(self) -> None:
        self.knobs = Knobs(*map(float, self.knobs))


@dataclass
class Sums:
    """What a pass over a block adds up."""

    value: float = 0.0
    counted: int = 0
    descent: float = 0.0


Rating = tuple[int, int, float, float]  # row, column, value, weight

WORD = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def take_turns(turns: Turns) -> Iterator[tuple[int, int, int]]:
    """Row-block, column-block and where that begins, of each visit of a worker when its turn has come."""
    for step in range(turns.since, turns.since + turns.steps):
        for i in range(turns.first, turns.last):
            j = int(turns.order[(turns.origin + i + step) % len(turns.order)])
            while turns.board[j, DONE] != turns.turn + step:
                if turns.board[len(turns.order), DONE]:
                    return
                time.sleep(1e-5)
            yield i, j, int(turns.starts[turns.board[j, SLOT]])
            announce_all(turns.board, np.array([j]), turns.turn + step + 1)


def mixed(word: int) -> int:
    """SplitMix64's mix."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & WORD
    return word ^ (word >> 31)


def stream(key: int, i: int, j: int) -> int:
    """Key of the samples of block (i, j)."""
    return mixed(key + (i << 32) + j + 1 & WORD)


def draw(stream_key: int, n: int, count: int) -> int:
    """The n-th sample of 0 … count − 1."""
    return (mixed(stream_key + n * GOLDEN & WORD) >> 32) * count >> 32


def spread(places: Sequence[tuple[int, int]]) -> list[int]:
    """The order of a block's ratings, given as (row, column): from sixteen streams by turns what repeats nothing."""
    length = -(-len(places) // 16)
    streams = [list(range(first, min(first + length, len(places)))) for first in range(0, 16 * length, length or 1)]
    order: list[int] = []
    turn = 0
    while len(order) < len(places):
        rows, cols = ({places[n][side] for n in order[len(order) // 16 * 16 :]} for side in (0, 1))
        waiting = [stream for stream in [*range(turn, 16), *range(turn)] if streams[stream]]
        fitting = (
            (stream, n)
            for stream in waiting
            for n in streams[stream][:64]
            if places[n][0] not in rows and places[n][1] not in cols
        )
        stream, n = next(fitting, (waiting[0], streams[waiting[0]][0]))
        streams[stream].remove(n)
        order.append(n)
        turn = (stream + 1) % 16
    return order


class Rated:
    """The cells that have a rating, and one free cell in sixteen."""

    def __init__(self, ratings: Sequence[Rating]):
        self.bits = 6
        while 2**self.bits < 16 * len(ratings):
            self.bits += 1
        self.places = {self.place(row, col) for row, col, *_ in ratings}

    def place(self, row: int, col: int) -> int:
        return ((row << 32) + col + 1) * GOLDEN % 2**64 >> 64 - self.bits

    def __contains__(self, cell: tuple[int, int]) -> bool:
        return self.place(*cell) in self.places


def inner(x: Sequence[float], y: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def towards_zero(x: float, by: float) -> float:
    """Soft thresholding: the proximal operator of by·|x|."""
    return math.copysign(max(abs(x) - by, 0.0), x)


@dataclass
class Step:
    """A step down the gradient for one row of a side."""

    side: Side
    row: int
    gradient: list[float]  # of the value, by the row's factors
    slope: float | None  # of the value, by its bias; None where it has no part in it

    def go(self, rules: Rules, rate: float, reg: float, l1: float, of_bias: tuple[float, float, float]) -> None:
        side, row, share = self.side, self.row, rules.knobs.share
        scale = side.scales[row] if side.scales else 1.0
        old = side.factors[row]
        gradient = [g + reg * scale * x for g, x in zip(self.gradient, old, strict=True)]
        root = 1.0
        if side.sums:
            side.sums[row] += share * inner(gradient, gradient)
            root = math.sqrt(side.sums[row])
        new = [towards_zero(x - rate / root * g, rate / root * l1) for x, g in zip(old, gradient, strict=True)]
        side.factors[row] = [max(x, 0.0) for x in new] if rules.nonnegative else new
        if side.bias and self.slope is not None:
            bias_rate, bias_reg, bias_l1 = of_bias
            bias = side.bias[row] - bias_rate / root * (self.slope + bias_reg * scale * side.bias[row])
            side.bias[row] = towards_zero(bias, bias_rate / root * bias_l1)


def step_p(rules: Rules, side: Side, row: int, gradient: list[float], slope: float | None) -> None:
    k = rules.knobs
    Step(side, row, gradient, slope).go(rules, k.p_rate, k.p_reg, k.p_l1, (k.b_rate, k.b_reg, k.b_l1))


def step_q(rules: Rules, side: Side, row: int, gradient: list[float], slope: float | None) -> None:
    k = rules.knobs
    Step(side, row, gradient, slope).go(rules, k.q_rate, k.q_reg, k.q_l1, (k.c_rate, k.c_reg, k.c_l1))


def visit(
    p_side: Side, q_side: Side, ratings: Sequence[Rating], rules: Rules, key: int = 0, block: tuple[int, int] = (0, 0)
) -> Sums:
    """All that an epoch does to a block of the grid.

    Parameters
    ----------
    key : of the epoch's samples
    block : numbers of the row-block and the column-block
    """
    if rules.cells in ("row", "col"):
        return update_pairs(p_side, q_side, ratings, rules, stream(key, *block))
    sums = update(p_side, q_side, ratings, rules, stream(key, *block))
    if rules.cells == "all":
        sums.value += dense_value(p_side, q_side, rules)
        dense(p_side, q_side, rules, rules.knobs.p_rate, rules.knobs.b_rate)
        dense(q_side, p_side, rules, rules.knobs.q_rate, rules.knobs.c_rate)
    return sums


def update(p_side: Side, q_side: Side, ratings: Sequence[Rating], rules: Rules, samples: int = 0) -> Sums:
    """One pass of stochastic gradient descent over ratings, in order, each followed by a free cell if "sampled"."""
    loss, knobs, sums = rules.loss, rules.knobs, Sums()
    rated = Rated(ratings)
    for t, (row, col, r, weight) in enumerate(ratings):
        cells = [(col, r, weight)]
        if rules.cells == "sampled":
            other = draw(samples, t, len(q_side.factors) - 1)
            cells += [(other, knobs.target, knobs.weight)] * ((row, other) not in rated)
        for n, (j, rating, w) in enumerate(cells):
            z = score_of(p_side, q_side, row, j, knobs.base)
            slope, value = w * loss.gradient(rating, z), w * loss.value(rating, z)
            if rules.cells == "all":  # less what the dense step counts for this cell
                slope -= knobs.weight * (z - knobs.target)
                value -= knobs.weight * (z - knobs.target) ** 2 / 2
            if t % rules.every == 0:
                sums.value += value
                sums.counted += n == 0
            sums.descent -= slope if p_side.bias else 0.0
            p, q = p_side.factors[row], q_side.factors[j]
            step_p(rules, p_side, row, [slope * y for y in q], slope)
            step_q(rules, q_side, j, [slope * x for x in p], slope)
    return sums


def update_pairs(p_side: Side, q_side: Side, ratings: Sequence[Rating], rules: Rules, samples: int) -> Sums:
    """One pass over pairs of a rated cell and another one of its row (cells "row") or column ("col")."""
    loss, sums = rules.loss, Sums()
    rated = Rated(ratings)
    by_row = rules.cells == "row"
    one_side, two_side = (p_side, q_side) if by_row else (q_side, p_side)
    step_one, step_two = (step_p, step_q) if by_row else (step_q, step_p)
    due = 0
    for t, (row, col, r, weight) in enumerate(ratings):
        one, two = (row, col) if by_row else (col, row)
        other = draw(samples, t, len(two_side.factors) - 1)
        if ((row, other) if by_row else (other, col)) in rated or r <= 0:
            continue
        a, b, c = one_side.factors[one], two_side.factors[two], two_side.factors[other]
        apart = [x - y for x, y in zip(b, c, strict=True)]
        z = inner(a, apart)
        if two_side.bias:
            z += two_side.bias[two] - two_side.bias[other]
        slope = weight * loss.gradient(1.0, z)
        if t >= due:
            due = t + rules.every
            sums.value += weight * loss.value(1.0, z)
            sums.counted += 1
        step_one(rules, one_side, one, [slope * x for x in apart], None)  # both cells have its bias: it cancels
        step_two(rules, two_side, two, [slope * x for x in a], slope)
        step_two(rules, two_side, other, [-slope * x for x in a], -slope)
    return sums


def dense_value(p_side: Side, q_side: Side, rules: Rules) -> float:
    """½ weight · Σ (target − z)² over all cells of a block."""
    knobs = rules.knobs
    rows, cols = len(p_side.factors) - 1, len(q_side.factors) - 1  # without the strangers
    apart = [knobs.target - score_of(p_side, q_side, i, j, knobs.base) for i in range(rows) for j in range(cols)]
    return knobs.weight * inner(apart, apart) / 2


def dense(x_side: Side, y_side: Side, rules: Rules, rate: float, bias_rate: float) -> None:
    """A step for each row of X down ½ weight · Σ (target − z)² over all its cells: implicit, or explicit by AdaGrad.

    The implicit step minimises the term plus ½ |x − old|² / rate: a least squares problem for each row.
    """
    knobs = rules.knobs
    biases = bool(x_side.bias)
    U = np.array([[*y, 1.0] if biases else y for y in y_side.factors[:-1]])
    v = knobs.target - knobs.base - np.array(y_side.bias[:-1] if biases else [0.0])
    v = np.broadcast_to(v, len(U))
    rates = np.array([rate] * len(x_side.factors[0]) + [bias_rate] * biases)
    for i, row in enumerate(x_side.factors[:-1]):
        old = np.array([*row, x_side.bias[i]] if biases else row)
        if x_side.sums:
            gradient = knobs.weight * U.T @ (U @ old - v)
            x_side.sums[i] += knobs.share * float(gradient[: len(row)] @ gradient[: len(row)])
            new = old - rates / math.sqrt(x_side.sums[i]) * gradient
        else:
            matrix = np.diag(1 / rates) + knobs.weight * U.T @ U
            new = np.linalg.solve(matrix, old / rates + knobs.weight * U.T @ v)
        x_side.factors[i] = [max(x, 0.0) if rules.nonnegative else x for x in new[: len(row)].tolist()]
        if biases:
            x_side.bias[i] = float(new[-1])


@dataclass
class Scores:
    """How predictions fit a block of ratings."""

    loss: float = 0.0
    squares: float = 0.0
    absolutes: float = 0.0
    right: int = 0


def score(
    p_side: Side, q_side: Side, ratings: Sequence[Rating], loss: Loss, base: float,
    low: float = -math.inf, high: float = math.inf,
) -> Scores:  # fmt: skip
    """Sums over ratings; predictions are cut to low … high."""
    sums = Scores()
    for row, col, r, _ in ratings:
        z = score_of(p_side, q_side, row, col, base)
        e = r - max(low, min(loss.link_function(z), high))
        sums.loss += loss.value(r, z)
        sums.squares += e * e
        sums.absolutes += abs(e)
        sums.right += (z > 0) == (r > 0)
    return sums


def contrast(
    p_side: Side, q_side: Side, ratings: Sequence[Rating], trained: Sequence[Rating], loss: Loss, knobs: Knobs,
    samples: int,
) -> tuple[float, float, int]:  # fmt: skip
    """Positives against free cells: the loss, the pairs in the right order (half of those that tie), and the pairs."""
    total = right = 0.0
    count = 0
    rated = Rated([*ratings, *trained])
    by_col = loss.cells == "col"
    for t, (row, col, r, _) in enumerate(ratings):
        other = draw(samples, t, len((p_side if by_col else q_side).factors) - 1)
        cell = (other, col) if by_col else (row, other)
        if r <= 0 or cell in rated:
            continue
        z, against = (score_of(p_side, q_side, i, j, knobs.base) for i, j in ((row, col), cell))
        if loss.pairs:
            total += loss.value(1.0, z - against)
        else:
            total += loss.value(r, z) + knobs.weight * loss.value(knobs.target, against)
        right += 1.0 if z > against else 0.5 if z == against else 0.0
        count += 1
    return total, right, count


def score_of(p_side: Side, q_side: Side, row: int, col: int, base: float) -> float:
    """What the model says."""
    biases = p_side.bias[row] + q_side.bias[col] if p_side.bias else 0.0
    return base + biases + inner(p_side.factors[row], q_side.factors[col])


def update_exactly(
    P: np.ndarray,
    Q: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    s: np.ndarray | None,
    t: np.ndarray | None,
    ratings: Sequence[Rating],
    knobs: Knobs,
) -> None:
    """`update` of squared loss with the roundings of `mfpar.kernels.update`, in place, with biases.

    Parameters
    ----------
    P, Q : float32[rows, stride]
    b, c : float32[rows]
    s, t : float32[rows] or None
        AdaGrad's sums.
    """
    one, two, zero = np.float32(1), np.float32(2), np.float32(0)
    p_rate, q_rate, b_rate, c_rate = knobs.p_rate, knobs.q_rate, knobs.b_rate, knobs.c_rate
    b_pace, c_pace = b_rate / p_rate, c_rate / q_rate
    p_reg, q_reg = knobs.p_reg, knobs.q_reg
    for i, j, value, _ in ratings:
        p, q, b_old, c_old = P[i].copy(), Q[j].copy(), b[i], c[j]
        product = dot(p, q)
        g = ((knobs.base + (b_old + c_old)) + product) - np.float32(value)
        if s is not None and t is not None:
            p_norm, q_norm, steep = dot(p, p), dot(q, q), g * g
            p_square = fused(steep, q_norm, fused(g, two * p_reg * product, p_reg * p_reg * p_norm))
            q_square = fused(steep, p_norm, fused(g, two * q_reg * product, q_reg * q_reg * q_norm))
            s[i] = fused(knobs.share, max(p_square, zero), s[i])
            t[j] = fused(knobs.share, max(q_square, zero), t[j])
            p_rate, q_rate = knobs.p_rate / np.sqrt(s[i]), knobs.q_rate / np.sqrt(t[j])
            b_rate, c_rate = p_rate * b_pace, q_rate * c_pace
        b[i] = fused(-b_rate, fused(knobs.b_reg, b_old, g), b_old)
        c[j] = fused(-c_rate, fused(knobs.c_reg, c_old, g), c_old)
        P[i] = fma(q, -p_rate * g, p * (one - p_rate * p_reg))
        Q[j] = fma(p, -q_rate * g, q * (one - q_rate * q_reg))


def fused(x: np.float32, y: np.float32, z: np.float32) -> np.float32:
    """`fma` of three numbers."""
    return fma(np.array([x]), y, np.array([z]))[0]


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


def dot(x: np.ndarray, y: np.ndarray, start: np.float32 | None = None) -> np.float32:
    """Σ x·y, or start + Σ x·y, with the roundings of `dot` and `dot_from` of `mfpar.kernels.vector`."""
    sums: list[np.ndarray] = []
    for t, (a, b) in enumerate(zip(panels(x), panels(y), strict=True)):
        if t == 0 and start is not None:
            sums.append(fma(a, b, np.insert(np.zeros(len(a) - 1, np.float32), 0, start)))
        elif t < 4:
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
