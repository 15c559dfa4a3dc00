"""Kernels equal their slow twins, to rounding in what they compute and to the bit in how a row is computed with."""

import itertools
import os
import platform
import subprocess
import sys
from dataclasses import dataclass

import naive
import numpy as np
import pytest
from numba import float32, njit, void

from mfpar import losses
from mfpar.kernels import (
    ABSOLUTES,
    CLOCKS,
    COUNTED,
    DESCENT,
    LOSS,
    REFUSED,
    RIGHT,
    SCORES,
    SLOT,
    SQUARES,
    SUMS,
    VALUE,
    WIDTH,
    Kind,
    Knobs,
    Turns,
    contrast_kernel,
    pairs_kernel,
    register,
    score_kernel,
    update_kernel,
)
from mfpar.kernels.lanes import distinct
from mfpar.kernels.sampling import draw, empty_table, has_rating, insert, shift_for, stream
from mfpar.kernels.vector import add_scaled, dot, dot_from, load, not_below_zero, prefetch, scale, shrink, store
from mfpar.losses import BUILTIN, Loss
from mfpar.schedule import sample_key
from mfpar.shards import Layout, Slots

FACTORS = (1, 7, 24, 32, 100)
ROW_SIZES, COL_SIZES = (13, 9, 21), (11, 6, 17)
ORIGIN, KEY = 5, sample_key(11, 3)
SQUARED, ONE_CLASS = BUILTIN["squared"], BUILTIN["one-class"]
L1 = {"p_l1": 0.4, "q_l1": 0.3, "b_l1": 0.2, "c_l1": 0.5}


def knobs_of(factors, **given):
    """Constants that are all different, so that none can be taken for another; without L1."""
    values = {
        "base": 0.3, "p_rate": 0.05, "q_rate": 0.04, "b_rate": 0.07, "c_rate": 0.03,
        "p_reg": 0.07, "q_reg": 0.05, "b_reg": 0.02, "c_reg": 0.09,
        "p_l1": 0, "q_l1": 0, "b_l1": 0, "c_l1": 0, "share": 1 / factors, "weight": 0.6, "target": -0.4,
    }  # fmt: skip
    return Knobs(**{name: np.float32(value) for name, value in (values | given).items()})


@dataclass
class Blocks:
    """Arguments of a kernel: three row-blocks that each meet one of three column-blocks."""

    layout: Layout
    p: Slots
    q: Slots
    met: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    row_sizes: tuple[int, ...] = ROW_SIZES
    col_sizes: tuple[int, ...] = COL_SIZES

    def kind(self, loss=SQUARED, **given):
        """Constants of a kernel for these blocks."""
        return Kind(
            stride=self.layout.stride, factors=self.layout.factors, loss=register(loss), biases=self.layout.biases,
            adagrad=bool(self.layout.states), row_dtype=self.rows.dtype.name, col_dtype=self.cols.dtype.name,
            weighted=len(self.weights) > 0, scaled=self.layout.scaled, **{"paced": bool(self.layout.states), **given},
        )  # fmt: skip

    @property
    def strip(self):
        return self.offsets, self.rows, self.cols, self.values, self.weights

    @property
    def sides(self):
        return self.p.buffer, self.p.starts, np.array(self.row_sizes) + 1, self.q.buffer, np.array(self.col_sizes) + 1

    def turns(self, first=0, last=3):
        """One visit of each of the row-blocks first … last − 1."""
        order, board = np.empty(3, np.int64), np.zeros((4, WIDTH), np.int32)
        order[(ORIGIN + np.arange(3)) % 3] = self.met
        board[:3, SLOT] = np.arange(3)
        clocks, marks = np.zeros((3, CLOCKS), np.int64), np.zeros((3, 0, 3), np.int64)
        return Turns(first, last, ORIGIN, 0, 1, 0, order, board, self.q.starts, clocks, marks)

    def step(self, kernel, first=0, last=3, knobs=None):
        """Run a kernel that updates on row-blocks first … last − 1; returns its sums."""
        sums = np.zeros((3, SUMS))
        knobs = knobs or knobs_of(self.layout.factors)
        kernel(self.turns(first, last), *self.strip, *self.sides, knobs, KEY, sums)
        return sums

    def score(self, kernel, first=0, last=3, low=-np.inf, high=np.inf):
        """Run a kernel that scores; returns its sums."""
        scores = np.zeros((3, SCORES))
        constants = (np.float32(constant) for constant in (0.3, low, high))
        kernel(self.turns(first, last), *self.strip, *self.sides, *constants, scores)
        return scores

    def ratings(self, i):
        """The ratings of the block that row-block i meets."""
        inside = slice(*self.offsets[i, self.met[i] : self.met[i] + 2])
        weights = self.weights[inside].tolist() if len(self.weights) else itertools.repeat(1.0)
        return list(
            zip(self.rows[inside].tolist(), self.cols[inside].tolist(), self.values[inside].tolist(), weights)  # noqa: B905
        )

    def side(self, slots, sizes, index):
        """A block as lists, its last row the stranger."""
        size, block = sizes[index], slots[index].copy()
        rows = block[: (size + 1) * self.layout.stride].reshape(size + 1, -1)[:, : self.layout.factors]
        bias = [*self.layout.bias(block, size).tolist(), *self.layout.stranger(block, size)[1].tolist()]
        sums = self.layout.state(block, size)[0].tolist() if self.layout.states else []
        scales = self.layout.scales(block, size).tolist()
        return naive.Side(rows.tolist(), bias if self.layout.biases else [], sums, scales)

    def both(self, i):
        """The sides of the block that row-block i meets."""
        return self.side(self.p, ROW_SIZES, i), self.side(self.q, COL_SIZES, self.met[i])


def make(
    factors, biases=True, adagrad=False, dtypes=(np.uint16, np.uint16), per_block=70, *,
    weighted=False, scaled=False, sign=False, row_sizes=ROW_SIZES, col_sizes=COL_SIZES,
):  # fmt: skip
    """Blocks of random ratings and factors, the strangers' too; order inside a block is random, and repeats occur."""
    rng = np.random.default_rng(factors)
    layout = Layout(factors, biases, int(adagrad), scaled)
    slots = []
    for sizes in (row_sizes, col_sizes):
        side = Slots([layout.floats(size) for size in sizes])
        for index, size in enumerate(sizes):
            block = side[index]
            layout.rows(block, size)[:] = rng.normal(0, 0.5, (size, factors)) / factors**0.25
            layout.bias(block, size)[:] = rng.normal(0, 0.3, size)
            stranger = layout.stranger(block, size)
            stranger[0][:], stranger[1][:] = rng.normal(size=factors), 0.25
            layout.state(block, size)[:] = 1
            layout.state(block, size)[:, :size] = rng.uniform(0.5, 2.0, size)
            if scaled:
                layout.scales(block, size)[:] = 1 / rng.integers(1, 9, size)
        slots.append(side)
    counts = rng.integers(per_block // 2, per_block, (3, 3))
    counts[0, 2] = 0
    offsets = np.zeros((3, 4), np.int64)
    offsets.ravel()[:] = np.insert(np.cumsum(counts), [0, 3, 6], [0, counts[0].sum(), counts[:2].sum()])
    i, j = (np.repeat(which, counts.ravel()) for which in divmod(np.arange(9), 3))
    rows = rng.integers(0, np.array(row_sizes)[i]).astype(dtypes[0])
    cols = rng.integers(0, np.array(col_sizes)[j]).astype(dtypes[1])
    values = rng.normal(0.5, 1.0, len(rows)).astype(np.float32)
    values = np.sign(values) if sign else values
    weights = rng.uniform(0.3, 3.0, len(rows) if weighted else 0).astype(np.float32)
    return Blocks(layout, *slots, np.array([1, 2, 0]), offsets, rows, cols, values, weights, row_sizes, col_sizes)


def check_twin(blocks, kernel, rules, rtol=1e-5, atol=2e-6):
    """All that a kernel changes is what the twin says."""
    expected = []
    for i, met in enumerate(blocks.met):
        sides = blocks.both(i)
        expected.append((sides, naive.visit(*sides, blocks.ratings(i), rules, int(KEY), (ORIGIN + i, int(met)))))
    sums = blocks.step(kernel, knobs=Knobs(*map(np.float32, rules.knobs)))
    for i, (sides, told) in enumerate(expected):
        for twin, side in zip(sides, blocks.both(i), strict=True):
            for part in ("factors", "bias", "sums", "scales"):
                np.testing.assert_allclose(getattr(side, part), getattr(twin, part), rtol=rtol, atol=atol)
        found = sums[i, [VALUE, COUNTED, DESCENT]]
        np.testing.assert_allclose(found, (told.value, told.counted, told.descent), rtol=rtol, atol=atol * 10)
    assert not sums[:, REFUSED:].any()


@pytest.mark.parametrize("adagrad", [False, True], ids=["sgd", "adagrad"])
@pytest.mark.parametrize(("factors", "biases"), [*((factors, True) for factors in FACTORS), (7, False), (100, False)])
def test_update_equals_its_twin(factors, biases, adagrad):
    blocks = make(factors, biases, adagrad)
    check_twin(blocks, update_kernel(blocks.kind()), naive.Rules(SQUARED, knobs_of(factors)))


# One by one in test_objectives.py.
OPTIONS = {
    "per row": {"scaled": True},
    "all": {"weighted": True, "scaled": True, "l1": True, "nonnegative": True, "every": 3},
}


@pytest.mark.parametrize("adagrad", [False, True], ids=["sgd", "adagrad"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_update_with_options_equals_its_twin(options, adagrad):
    blocks = make(7, True, adagrad, **{name: True for name in ("weighted", "scaled") if name in options})
    given = {name: value for name, value in options.items() if name not in ("weighted", "scaled")}
    knobs = knobs_of(7, **(L1 if "l1" in options else {}))
    rules = naive.Rules(SQUARED, knobs, "nonnegative" in options, every=options.get("every", 1))
    before = blocks.p.buffer.copy()
    check_twin(blocks, update_kernel(blocks.kind(**given)), rules)
    assert (blocks.p.buffer != before).any()
    rows = np.concatenate([np.ravel(blocks.side(blocks.p, ROW_SIZES, i).factors[:-1]) for i in (1, 2)])
    assert ("l1" in options or "nonnegative" in options) == bool((rows == 0).any())


@pytest.mark.parametrize("adagrad", [False, True], ids=["sgd", "adagrad"])
@pytest.mark.parametrize("cells", ["sampled", "all"])
def test_one_class_equals_its_twin(cells, adagrad):
    blocks = make(7, False, adagrad, weighted=True, per_block=40)  # with biases: test_objectives.py
    kind = blocks.kind(ONE_CLASS, cells=cells)
    check_twin(blocks, update_kernel(kind), naive.Rules(ONE_CLASS, knobs_of(7), cells=cells))


def test_the_dense_step_of_non_negative_factors_equals_its_twin():
    blocks = make(5, per_block=40)
    kind = blocks.kind(ONE_CLASS, cells="all", nonnegative=True)
    rules = naive.Rules(ONE_CLASS, knobs_of(5), nonnegative=True, cells="all")
    check_twin(blocks, update_kernel(kind), rules)
    assert all(min(map(min, blocks.side(blocks.q, COL_SIZES, j).factors[:-1])) >= 0 for j in range(3))


@pytest.mark.parametrize("cells", ["row", "col"])
def test_pairs_equal_their_twin(cells):
    blocks, loss = make(7, False, per_block=40), BUILTIN[f"bpr-{cells}"]  # with options: test_objectives.py
    rules = naive.Rules(loss, knobs_of(7), cells=cells, every=3)
    check_twin(blocks, pairs_kernel(blocks.kind(loss, cells=cells, every=3)), rules)


@pytest.mark.parametrize("cells", ["sampled", "row", "col"])
def test_contrast_equals_its_twin_and_changes_nothing(cells):
    loss = BUILTIN["one-class" if cells == "sampled" else f"bpr-{cells}"]
    held, trained = make(7, per_block=30), make(7, per_block=50)
    # In a held-out part the index one past the last is the stranger.
    held.rows[held.offsets[1, 2]], held.cols[held.offsets[1, 3] - 1] = ROW_SIZES[1], COL_SIZES[2]
    # Nothing but ties in one block.
    for slots, sizes, index in ((held.p, ROW_SIZES, 1), (held.q, COL_SIZES, 2)):
        size, block = sizes[index], slots[index]
        for part in (held.layout.rows(block, size), held.layout.bias(block, size), *held.layout.stranger(block, size)):
            part[:] = 0
    knobs, scores = knobs_of(7), np.zeros((3, SCORES))
    before = held.p.buffer.copy(), held.q.buffer.copy()
    kernel = contrast_kernel(held.kind(loss, cells=cells))
    constants = knobs.base, knobs.weight, knobs.target, KEY
    kernel(held.turns(), *held.strip, *trained.strip, *held.sides, *constants, scores)
    for i, met in enumerate(held.met):
        samples = naive.stream(int(KEY), ORIGIN + i, int(met))
        ratings = held.ratings(i), trained.ratings(i)
        total, right, count = naive.contrast(*held.both(i), *ratings, loss, Knobs(*map(float, knobs)), samples)
        np.testing.assert_allclose(scores[i, [LOSS, RIGHT, SQUARES]], (total, right, count), rtol=1e-5)
        assert 0 < count < len(ratings[0])
    assert scores[1, RIGHT] == scores[1, SQUARES] / 2
    np.testing.assert_array_equal(held.p.buffer, before[0])
    np.testing.assert_array_equal(held.q.buffer, before[1])


@njit
def sampling(rows, cols, first, last, key, i, j, places, counts, drawn):
    """Which of all cells of `places` has_rating tells of, and samples."""
    shift = shift_for(last - first)
    table = empty_table(shift)
    insert(table, shift, rows, cols, first, last)
    for row in range(places.shape[0]):
        for col in range(places.shape[1]):
            places[row, col] = has_rating(table, row, col, shift)
    for n, count in enumerate(counts):
        drawn[n] = draw(stream(key, i, j), n, count)


@pytest.mark.parametrize("count", [0, 1, 3, 100, 1024])
def test_cells_and_samples_are_those_of_the_twin(count):
    rng = np.random.default_rng(count)
    rows, cols = rng.integers(0, 60, count + 2).astype(np.uint16), rng.integers(0, 300, count + 2).astype(np.uint16)
    places, counts = np.zeros((60, 300), np.bool_), rng.integers(1, 2**32 - 1, 200)
    drawn = np.empty(200, np.int64)
    key = sample_key(count, 9)
    sampling(rows, cols, 1, 1 + count, key, 1000, 77, places, counts, drawn)
    ratings = [(row, col, 1.0, 1.0) for row, col in zip(rows[1:-1].tolist(), cols[1:-1].tolist(), strict=True)]
    rated = naive.Rated(ratings)
    assert places.tolist() == [[(row, col) in rated for col in range(300)] for row in range(60)]
    assert all(places[row, col] for row, col, *_ in ratings)
    free = 60 * 300 - len({(row, col) for row, col, *_ in ratings})
    assert places.sum() - (60 * 300 - free) < free / 8  # few free cells are taken for rated ones
    key = naive.stream(int(key), 1000, 77)
    assert drawn.tolist() == [naive.draw(key, n, int(most)) for n, most in enumerate(counts)]


def test_samples_are_even_and_of_their_own():
    key = naive.stream(int(KEY), 0, 0)
    drawn = np.bincount([naive.draw(key, n, 7) for n in range(7000)], minlength=7)
    assert np.abs(drawn - 1000).max() < 150  # five standard deviations
    keys = [int(sample_key(*of)) for of in ((0, 1), (0, 2), (1, 1))]
    streams = {naive.stream(key, i, j) for key, i, j in itertools.product(keys, range(30), range(30))}
    assert len(streams) == 3 * 900


@pytest.mark.parametrize("adagrad", [False, True], ids=["sgd", "adagrad"])
@pytest.mark.parametrize("factors", [7, 32, 100])
def test_update_rounds_as_its_twin_does(factors, adagrad):
    check_roundings(factors, adagrad, knobs_of(factors))


@pytest.mark.parametrize("adagrad", [False, True], ids=["sgd", "adagrad"])
def test_update_rounds_as_its_twin_does_at_one_rate(adagrad):
    check_roundings(7, adagrad, knobs_of(7, b_rate=0.05, c_rate=0.04), paced=False)


def in_lines(blocks, runs=4):
    """The blocks with other ratings: in each first some lines of distinct rows and columns, then one that is not."""
    rng, line = np.random.default_rng(1), 16
    counts = np.full(9, runs * line + 21)
    blocks.offsets.ravel()[:] = np.insert(np.cumsum(counts), [0, 3, 6], [0, counts[0] * 3, counts[0] * 6])
    for name in ("rows", "cols"):
        sides = [[rng.permutation(line)[:line] for _ in range(runs)] + [rng.integers(0, line, 21)] for _ in range(9)]
        index = np.concatenate([part for side in sides for part in side])
        setattr(blocks, name, index.astype(getattr(blocks, name).dtype))
    blocks.values = rng.normal(0.5, 1.0, counts.sum()).astype(np.float32)
    return blocks


@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
@pytest.mark.parametrize(("factors", "paced"), [(1, True), (7, False), (24, True), (32, False), (100, True)])
def test_ratings_taken_together_round_as_if_one_by_one(factors, biases, paced):
    sizes = {"row_sizes": (16, 19, 16), "col_sizes": (17, 16, 16)}
    blocks = in_lines(make(factors, biases, True, **sizes))
    single = in_lines(make(factors, biases, True, **sizes))
    before = blocks.p.buffer.copy()
    rates = {} if paced else {"b_rate": 0.05, "c_rate": 0.04}
    knobs = knobs_of(factors, **rates)
    sums = blocks.step(update_kernel(blocks.kind(paced=paced)), knobs=knobs)
    # With weights of one they go one by one.
    single.weights = np.ones(len(single.values), np.float32)
    expected = single.step(update_kernel(single.kind(paced=paced)), knobs=knobs)
    assert (blocks.p.buffer != before).any()
    np.testing.assert_array_equal(blocks.p.buffer, single.p.buffer)
    np.testing.assert_array_equal(blocks.q.buffer, single.q.buffer)
    np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-5)


@njit
def lines_of(rows):
    """Whether the sixteen integers from each place on all differ."""
    return [distinct(rows, start) for start in range(len(rows) - 15)]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_distinct_integers_are_told_from_others(dtype):
    for first, second in itertools.combinations(range(16), 2):
        numbers = np.arange(65520, 65520 + 16).astype(dtype)
        assert lines_of(numbers) == [True]
        numbers[first] = numbers[second]
        assert lines_of(numbers) == [False]


def check_roundings(factors, adagrad, knobs, **given):
    """The kernel changes a model to the very bit as the exact twin."""
    blocks, twin = make(factors, True, adagrad), make(factors, True, adagrad)
    layout, stride = blocks.layout, blocks.layout.stride
    for i, met in enumerate(twin.met):
        sides = []
        for slots, sizes, index in ((twin.p, ROW_SIZES, i), (twin.q, COL_SIZES, met)):
            block, size = slots[index], sizes[index]
            sums = layout.state(block, size)[0] if adagrad else None
            sides.append((block[: size * stride].reshape(size, stride), layout.bias(block, size), sums))
        arrays = [array for pair in zip(*sides, strict=True) for array in pair]
        naive.update_exactly(*arrays, twin.ratings(i), knobs)
    blocks.step(update_kernel(blocks.kind(**given)), knobs=knobs)
    np.testing.assert_array_equal(blocks.p.buffer, twin.p.buffer)
    np.testing.assert_array_equal(blocks.q.buffer, twin.q.buffer)


@pytest.mark.parametrize("cut", [False, True], ids=["free", "cut"])
@pytest.mark.parametrize(
    ("factors", "biases", "loss"),
    [
        *((factors, True, "squared") for factors in FACTORS),
        *((7, False, "squared"), (7, True, "poisson"), (7, True, "logistic")),
    ],
)
def test_score_equals_its_twin_and_changes_nothing(factors, biases, loss, cut):
    loss = BUILTIN[loss]
    blocks = make(factors, biases, sign=loss.ratings == "binary")
    blocks.values[:] = np.abs(blocks.values) if loss.ratings == "counts" else blocks.values
    # In a held-out part the index one past the last is the stranger.
    for i, met in enumerate(blocks.met):
        if blocks.offsets[i, met] < blocks.offsets[i, met + 1]:
            blocks.rows[blocks.offsets[i, met]], blocks.cols[blocks.offsets[i, met + 1] - 1] = (
                ROW_SIZES[i],
                COL_SIZES[met],
            )
    before = blocks.p.buffer.copy(), blocks.q.buffer.copy()
    limits = (0.4, 0.75) if cut else (-np.inf, np.inf)
    scores = blocks.score(score_kernel(blocks.kind(loss)), 0, 3, *limits)
    for i in range(3):
        base, *bounds = map(float, map(np.float32, (0.3, *limits)))
        told = naive.score(*blocks.both(i), blocks.ratings(i), loss, base, *bounds)
        expected = told.loss, told.squares, told.absolutes, told.right
        np.testing.assert_allclose(scores[i, [LOSS, SQUARES, ABSOLUTES, RIGHT]], expected, rtol=1e-5)
    np.testing.assert_array_equal(blocks.p.buffer, before[0])
    np.testing.assert_array_equal(blocks.q.buffer, before[1])


DTYPES = list(itertools.product((np.uint16, np.uint32), repeat=2))


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: "-".join(dtype.__name__ for dtype in pair))
def test_the_width_of_indices_changes_no_bit(dtypes):
    expected, blocks = make(7), make(7, dtypes=dtypes)
    for some in (expected, blocks):
        some.sums = some.step(update_kernel(some.kind()))
    np.testing.assert_array_equal(blocks.p.buffer, expected.p.buffer)
    np.testing.assert_array_equal(blocks.q.buffer, expected.q.buffer)
    np.testing.assert_array_equal(blocks.sums, expected.sums)
    np.testing.assert_array_equal(*(some.score(score_kernel(some.kind())) for some in (blocks, expected)))


@pytest.mark.parametrize("adagrad", [False, True], ids=["sgd", "adagrad"])
def test_how_blocks_are_shared_out_among_calls_changes_no_bit(adagrad):
    whole, pieces = make(24, True, adagrad), make(24, True, adagrad)
    kernel = update_kernel(whole.kind())
    whole.step(kernel)
    for i in (2, 0, 1):
        assert not pieces.step(kernel, i, i + 1)[[k for k in range(3) if k != i]].any()
    np.testing.assert_array_equal(whole.p.buffer, pieces.p.buffer)
    np.testing.assert_array_equal(whole.q.buffer, pieces.q.buffer)


def test_weights_of_one_and_scales_of_one_change_no_bit():
    plain, weighted = make(7), make(7, weighted=True, scaled=True)
    weighted.weights[:] = 1
    for slots, sizes in ((weighted.p, ROW_SIZES), (weighted.q, COL_SIZES)):
        for index, size in enumerate(sizes):
            weighted.layout.scales(slots[index], size)[:] = 1
    # Start from the same values: the random numbers of `make` are not.
    for to, by, sizes in ((weighted.p, plain.p, ROW_SIZES), (weighted.q, plain.q, COL_SIZES)):
        for index, size in enumerate(sizes):
            weighted.layout.rows(to[index], size)[:] = plain.layout.rows(by[index], size)
            weighted.layout.bias(to[index], size)[:] = plain.layout.bias(by[index], size)
    for name in ("offsets", "rows", "cols", "values"):
        setattr(weighted, name, getattr(plain, name))
    weighted.weights = np.ones(len(plain.values), np.float32)
    sums = [some.step(update_kernel(some.kind())) for some in (plain, weighted)]
    np.testing.assert_array_equal(*(some[:, VALUE + 1 :] for some in sums))
    np.testing.assert_allclose(*(some[:, VALUE] for some in sums), rtol=1e-6)  # that of squares is added up otherwise
    for to, by, sizes in ((weighted.p, plain.p, ROW_SIZES), (weighted.q, plain.q, COL_SIZES)):
        for index, size in enumerate(sizes):
            np.testing.assert_array_equal(weighted.layout.rows(to[index], size), plain.layout.rows(by[index], size))
            np.testing.assert_array_equal(weighted.layout.bias(to[index], size), plain.layout.bias(by[index], size))


BLOWING_UP = Loss(lambda r, z: (z - r) / (np.float32(0) if r > np.float32(1.5) else np.float32(1)), name="tests:blow")


def test_a_checked_kernel_refuses_steps_that_are_not_finite_and_tells_of_the_first():
    blocks, without = make(7), make(7)
    sums = blocks.step(update_kernel(blocks.kind(BLOWING_UP, checked=True)))
    for i in range(3):
        too_large = [r for _, _, r, _ in blocks.ratings(i) if r > 1.5]
        assert sums[i, REFUSED] == len(too_large)
        assert sums[i, REFUSED + 1] == (too_large[0] if too_large else 0)
    assert sums[:, REFUSED].sum() > 5
    # What is left is what training without those ratings does.
    keep = without.values <= 1.5
    without.offsets = np.concatenate(([0], np.cumsum(keep)))[without.offsets]
    for name in ("rows", "cols", "values"):
        setattr(without, name, getattr(without, name)[keep])
    without.step(update_kernel(without.kind()))
    np.testing.assert_array_equal(blocks.p.buffer, without.p.buffer)
    np.testing.assert_array_equal(blocks.q.buffer, without.q.buffer)


@pytest.mark.parametrize("adagrad", [False, True], ids=["sgd", "adagrad"])
@pytest.mark.parametrize("factors", [1, 7, 100])
def test_only_what_is_rated_changes(factors, adagrad):
    blocks = make(factors, True, adagrad)
    before = {"p": blocks.p.buffer.copy(), "q": blocks.q.buffer.copy()}
    blocks.step(update_kernel(blocks.kind()), 0, 2)
    stride = blocks.layout.stride
    for name, slots, sizes in (("p", blocks.p, ROW_SIZES), ("q", blocks.q, COL_SIZES)):
        for index, size in enumerate(sizes):
            block = slots[index]
            lanes = block[: (size + 1) * stride].reshape(size + 1, stride)
            assert not lanes[:, factors:].any()
            old = before[name][slots.starts[index] :][: len(block)]
            changed = np.flatnonzero((block != old)[: size * stride].reshape(size, stride).any(axis=1)).tolist()
            row_block = index if name == "p" else blocks.met.tolist().index(index)
            rated = {rating[name == "q"] for rating in blocks.ratings(row_block)} if row_block < 2 else set()
            assert changed == sorted(rated)
            np.testing.assert_array_equal(lanes[size], old[size * stride :][:stride])
            assert np.flatnonzero(blocks.layout.bias(block, size) != blocks.layout.bias(old, size)).tolist() == sorted(
                rated
            )
            for new_sums, old_sums in zip(
                blocks.layout.state(block, size), blocks.layout.state(old, size), strict=True
            ):
                assert np.flatnonzero(new_sums != old_sums).tolist() == sorted(rated)


def row_operations(stride):
    """A compiled function that writes what the operations make of two rows, and a copy of the first."""

    @njit(void(float32[::1], float32[::1], float32, float32[::1]))
    def operations(x, y, scalar, out):
        a, b = load(x, 0, stride), load(y, 0, stride)
        prefetch(x, 1 << 40, stride)  # far beyond the end: no more than a hint
        store(out, 0, a)
        store(out, stride, scale(a, scalar))
        store(out, 2 * stride, add_scaled(a, b, scalar))
        store(out, 3 * stride, shrink(a, abs(scalar)))
        store(out, 4 * stride, not_below_zero(a))
        out[5 * stride], out[5 * stride + 1] = dot(a, b), dot_from(a, b, scalar)

    return operations


@pytest.mark.parametrize("stride", [8, 16, 24, 32, 40, 48, 80, 104, 128])
def test_row_operations_round_as_the_twin_does(stride):
    operations = row_operations(stride)
    rng = np.random.default_rng(stride)
    out = np.empty(5 * stride + 2, np.float32)
    fused_matters = 0
    for spread in (0, 1, 4, 12) * 10:
        x, y = (
            (rng.normal(size=stride) * 10.0 ** rng.uniform(-spread, spread, stride)).astype(np.float32) for _ in "xy"
        )
        scalar = np.float32(rng.normal())
        operations(x, y, scalar, out)
        copy, scaled, added, shrunk, positive = out[:-2].reshape(5, stride)
        np.testing.assert_array_equal(copy, x)
        np.testing.assert_array_equal(scaled, x * scalar)
        np.testing.assert_array_equal(added, naive.fma(y, np.full(stride, scalar), x))
        np.testing.assert_array_equal(shrunk, np.sign(x) * np.maximum(np.abs(x) - abs(scalar), np.float32(0)))
        np.testing.assert_array_equal(positive, np.maximum(x, np.float32(0)))
        fused_matters += np.count_nonzero(added != x + y * scalar)
        assert out[-2] == naive.dot(x, y)
        assert out[-1] == naive.dot(x, y, scalar)
        exact, size = x.astype(float) @ y, np.sum(np.abs(x.astype(float) * y))
        assert abs(out[-2] - exact) <= 1e-6 * size
        assert abs(out[-1] - exact - float(scalar)) <= 1e-6 * (size + abs(scalar))
    assert fused_matters  # otherwise the twin would pass for a product and a sum that round twice


def test_the_twin_of_fused_multiply_add_rounds_once():
    tiny, one = np.float32(2**-24), np.float32(1)
    x, y = (
        np.array([1 + 2**-12, 1 + 2**-12, 3, tiny], np.float32),
        np.array([1 + 2**-12, 1 - 2**-12, 5, tiny], np.float32),
    )
    z = np.array([-1 - 2**-11, -1, 7, one], np.float32)
    np.testing.assert_array_equal(naive.fma(x, y, z), np.array([2**-24, -(2**-24), 22, 1], np.float32))
    # A little less than halfway from an odd float32 to the next, by less than float64 can tell: rounding twice goes up.
    x, y = np.array([2**-12 * (1 + 2**-23)], np.float32), np.array([2**-12 * (1 - 2**-23)], np.float32)
    z = np.array([1 + 2**-23], np.float32)
    assert naive.fma(x, y, z)[0] == z[0] < (x.astype(np.float64) * y + z).astype(np.float32)[0]


BITS = """
import hashlib, sys
sys.path.insert(0, {tests!r})
from test_kernels import EVERYTHING, BUILTIN, make, pairs_kernel, score_kernel, update_kernel
cases = [
    (BUILTIN["squared"], "rated", 32, False, [update_kernel, score_kernel]),
    (BUILTIN["squared"], "rated", 100, True, [update_kernel]),
    (EVERYTHING, "rated", 8, False, [update_kernel]),
    (BUILTIN["bpr-row"], "row", 32, False, [pairs_kernel]),
    (BUILTIN["one-class"], "all", 5, False, [update_kernel]),
]
sha = hashlib.sha256()
for loss, cells, factors, adagrad, kernels in cases:
    blocks = make(factors, True, adagrad)
    for kernel in kernels:
        run = blocks.score if kernel is score_kernel else blocks.step
        sha.update(run(kernel(blocks.kind(loss, cells=cells))))
    sha.update(blocks.p.buffer)
    sha.update(blocks.q.buffer)
from numba import config
print(config.CPU_NAME, sha.hexdigest())
"""


def _steep(r, z):
    logarithm = losses.log(losses.softplus(z) + losses.positive_part(r))
    return losses.exp(z) * losses.sigmoid(z) - logarithm * losses.label(r)


EVERYTHING = Loss(_steep, _steep, name="tests:everything")  # that a loss may call


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names CPUs of the x86-64 family")
def test_bits_do_not_depend_on_the_width_of_vectors():
    script = BITS.format(tests=os.path.dirname(__file__))
    processes = {}
    for cpu in ("", "haswell", "nehalem"):  # this machine's; AVX2 and FMA; SSE, where a fused operation is a function
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_CPU")}
        environment |= {"NUMBA_CPU_NAME": cpu} if cpu else {}
        processes[cpu] = subprocess.Popen(
            [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    found = {}
    for cpu, process in processes.items():
        output, complaints = process.communicate(timeout=120)
        assert process.returncode == 0, complaints
        name, bits = output.split()
        assert name == (cpu or "None")
        found[cpu] = bits
    assert len(set(found.values())) == 1, found
