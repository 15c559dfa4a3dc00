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

from mfpar.config import ModelConfig, TrainConfig
from mfpar.kernels import score_kernel, update_kernel
from mfpar.kernels.vector import add_scaled, dot, load, prefetch, scale, store
from mfpar.shards import Layout, Slots, start_block

FACTORS = (1, 7, 8, 24, 32, 40, 100)
ROW_SIZES, COL_SIZES = (13, 9, 21), (11, 6, 17)
BASE, RATE, REG = np.float32(0.3), np.float32(0.05), np.float32(0.07)


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

    def call(self, kernel, first, last, *rest):
        """Run the kernel on row-blocks first … last − 1; returns its sums."""
        sums = np.zeros((3, 2))
        p_counts, q_counts = np.array(ROW_SIZES) + 1, np.array(COL_SIZES)[self.met] + 1
        sides = (self.p.buffer, self.p.starts, p_counts, self.q.buffer, self.q.starts[self.met], q_counts)
        kernel(first, last, self.met, self.offsets, self.rows, self.cols, self.values, *sides, *rest, sums)
        return sums

    def ratings(self, i):
        """The ratings of the block that row-block i meets."""
        inside = slice(*self.offsets[i, self.met[i] : self.met[i] + 2])
        return list(
            zip(self.rows[inside].tolist(), self.cols[inside].tolist(), self.values[inside].tolist(), strict=True)
        )

    def side(self, slots, sizes, index):
        """A block as lists, its last row the stranger."""
        size, block = sizes[index], slots[index].copy()
        rows = block[: (size + 1) * self.layout.stride].reshape(size + 1, -1)[:, : self.layout.factors]
        bias = [*self.layout.bias(block, size).tolist(), *self.layout.stranger(block, size)[1].tolist()]
        sums = self.layout.state(block, size)[0].tolist() if self.layout.states else []
        return naive.Side(rows.tolist(), bias if self.layout.biases else [], sums)


def make(factors, biases, adagrad, dtypes=(np.uint16, np.uint16), per_block=70):
    """Blocks of random ratings and factors, the strangers' too; order inside a block is random, and repeats occur."""
    rng = np.random.default_rng(factors)
    layout = Layout.of(
        ModelConfig(factors=factors, biases=biases), TrainConfig(optimizer="adagrad" if adagrad else "sgd")
    )
    slots = []
    for name, sizes in (("rows", ROW_SIZES), ("cols", COL_SIZES)):
        side = Slots([layout.floats(size) for size in sizes])
        for index, size in enumerate(sizes):
            block = side[index]
            start_block(block, layout, size, 3, name, index)
            layout.rows(block, size)[:] = rng.normal(0, 0.5, (size, factors)) / factors**0.25
            layout.bias(block, size)[:] = rng.normal(0, 0.3, size)
            stranger = layout.stranger(block, size)
            stranger[0][:], stranger[1][:] = rng.normal(size=factors), 0.25
            layout.state(block, size)[:, :size] = rng.uniform(0.5, 2.0, size)
        slots.append(side)
    counts = rng.integers(per_block // 2, per_block, (3, 3))
    counts[0, 2] = 0
    offsets = np.zeros((3, 4), np.int64)
    offsets.ravel()[:] = np.insert(np.cumsum(counts), [0, 3, 6], [0, counts[0].sum(), counts[:2].sum()])
    i, j = (np.repeat(which, counts.ravel()) for which in divmod(np.arange(9), 3))
    rows = rng.integers(0, np.array(ROW_SIZES)[i]).astype(dtypes[0])
    cols = rng.integers(0, np.array(COL_SIZES)[j]).astype(dtypes[1])
    values = rng.normal(0.5, 1.0, len(rows)).astype(np.float32)
    return Blocks(layout, *slots, np.array([1, 2, 0]), offsets, rows, cols, values)


def update_of(blocks, factors, biases, adagrad):
    dtypes = blocks.rows.dtype.name, blocks.cols.dtype.name
    return update_kernel(blocks.layout.stride, factors, biases, adagrad, *dtypes)


@pytest.mark.parametrize("adagrad", [False, True], ids=["sgd", "adagrad"])
@pytest.mark.parametrize(("factors", "biases"), [*((factors, True) for factors in FACTORS), (8, False), (100, False)])
def test_update_equals_its_twin(factors, biases, adagrad):
    blocks = make(factors, biases, adagrad)
    expected = []
    for i, met in enumerate(blocks.met):
        p, q = blocks.side(blocks.p, ROW_SIZES, i), blocks.side(blocks.q, COL_SIZES, met)
        expected.append((p, q, naive.update(p, q, blocks.ratings(i), float(BASE), float(RATE), float(REG), adagrad)))
    sums = blocks.call(update_of(blocks, factors, biases, adagrad), 0, 3, BASE, RATE, REG)
    for i, (met, (p, q, (squares, total))) in enumerate(zip(blocks.met, expected, strict=True)):
        for twin, slots, sizes, index in ((p, blocks.p, ROW_SIZES, i), (q, blocks.q, COL_SIZES, met)):
            side = blocks.side(slots, sizes, index)
            for part in ("factors", "bias", "sums"):
                np.testing.assert_allclose(getattr(side, part), getattr(twin, part), rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(sums[i], (squares, total), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adagrad", [False, True], ids=["sgd", "adagrad"])
@pytest.mark.parametrize("factors", [7, 32, 100])
def test_update_rounds_as_its_twin_does(factors, adagrad):
    blocks, twin = make(factors, True, adagrad), make(factors, True, adagrad)
    layout, stride = blocks.layout, blocks.layout.stride
    for i, met in enumerate(twin.met):
        sides = []
        for slots, sizes, index in ((twin.p, ROW_SIZES, i), (twin.q, COL_SIZES, met)):
            block, size = slots[index], sizes[index]
            sums = layout.state(block, size)[0] if adagrad else None
            sides.append((block[: size * stride].reshape(size, stride), layout.bias(block, size), sums))
        arrays = [array for pair in zip(*sides, strict=True) for array in pair]
        naive.update_exactly(*arrays, twin.ratings(i), BASE, RATE, REG, np.float32(1 / factors))
    blocks.call(update_of(blocks, factors, True, adagrad), 0, 3, BASE, RATE, REG)
    np.testing.assert_array_equal(blocks.p.buffer, twin.p.buffer)
    np.testing.assert_array_equal(blocks.q.buffer, twin.q.buffer)


@pytest.mark.parametrize(("factors", "biases"), [*((factors, True) for factors in FACTORS), (8, False), (100, False)])
def test_score_equals_its_twin_and_changes_nothing(factors, biases):
    blocks = make(factors, biases, False)
    # In a held-out part the index one past the last is the stranger.
    for i, met in enumerate(blocks.met):
        if blocks.offsets[i, met] < blocks.offsets[i, met + 1]:
            blocks.rows[blocks.offsets[i, met]], blocks.cols[blocks.offsets[i, met + 1] - 1] = (
                ROW_SIZES[i],
                COL_SIZES[met],
            )
    before = blocks.p.buffer.copy(), blocks.q.buffer.copy()
    kernel = score_kernel(blocks.layout.stride, biases, "uint16", "uint16")
    sums = blocks.call(kernel, 0, 3, BASE)
    for i, met in enumerate(blocks.met):
        sides = blocks.side(blocks.p, ROW_SIZES, i), blocks.side(blocks.q, COL_SIZES, met)
        np.testing.assert_allclose(sums[i], naive.score(*sides, blocks.ratings(i), float(BASE)), rtol=1e-5)
    np.testing.assert_array_equal(blocks.p.buffer, before[0])
    np.testing.assert_array_equal(blocks.q.buffer, before[1])


DTYPES = list(itertools.product((np.uint16, np.uint32), repeat=2))


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: "-".join(dtype.__name__ for dtype in pair))
def test_the_width_of_indices_changes_no_bit(dtypes):
    expected, blocks = make(7, True, False), make(7, True, False, dtypes)
    for some in (expected, blocks):
        some.sums = some.call(update_of(some, 7, True, False), 0, 3, BASE, RATE, REG)
    np.testing.assert_array_equal(blocks.p.buffer, expected.p.buffer)
    np.testing.assert_array_equal(blocks.q.buffer, expected.q.buffer)
    np.testing.assert_array_equal(blocks.sums, expected.sums)
    names = [np.dtype(dtype).name for dtype in dtypes]
    np.testing.assert_array_equal(
        blocks.call(score_kernel(8, True, *names), 0, 3, BASE),
        expected.call(score_kernel(8, True, "uint16", "uint16"), 0, 3, BASE),
    )


@pytest.mark.parametrize("adagrad", [False, True], ids=["sgd", "adagrad"])
def test_how_blocks_are_shared_out_among_calls_changes_no_bit(adagrad):
    whole, pieces = make(24, True, adagrad), make(24, True, adagrad)
    kernel = update_of(whole, 24, True, adagrad)
    whole.call(kernel, 0, 3, BASE, RATE, REG)
    for i in (2, 0, 1):
        assert not pieces.call(kernel, i, i + 1, BASE, RATE, REG)[[k for k in range(3) if k != i]].any()
    np.testing.assert_array_equal(whole.p.buffer, pieces.p.buffer)
    np.testing.assert_array_equal(whole.q.buffer, pieces.q.buffer)


@pytest.mark.parametrize("adagrad", [False, True], ids=["sgd", "adagrad"])
@pytest.mark.parametrize("factors", [1, 7, 100])
def test_only_what_is_rated_changes(factors, adagrad):
    blocks = make(factors, True, adagrad)
    before = {"p": blocks.p.buffer.copy(), "q": blocks.q.buffer.copy()}
    blocks.call(update_of(blocks, factors, True, adagrad), 0, 2, BASE, RATE, REG)
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
    """A compiled function that writes scale, add_scaled and dot of two rows, and a copy of the first."""

    @njit(void(float32[::1], float32[::1], float32, float32[::1]))
    def operations(x, y, scalar, out):
        a, b = load(x, 0, stride), load(y, 0, stride)
        prefetch(x, 1 << 40, stride)  # far beyond the end: no more than a hint
        store(out, 0, a)
        store(out, stride, scale(a, scalar))
        store(out, 2 * stride, add_scaled(a, b, scalar))
        out[3 * stride] = dot(a, b)

    return operations


@pytest.mark.parametrize("stride", [8, 16, 24, 32, 40, 48, 80, 104, 128])
def test_row_operations_round_as_the_twin_does(stride):
    operations = row_operations(stride)
    rng = np.random.default_rng(stride)
    out = np.empty(3 * stride + 1, np.float32)
    fused_matters = 0
    for spread in (0, 1, 4, 12) * 10:
        x, y = (
            (rng.normal(size=stride) * 10.0 ** rng.uniform(-spread, spread, stride)).astype(np.float32) for _ in "xy"
        )
        scalar = np.float32(rng.normal())
        operations(x, y, scalar, out)
        copy, scaled, added = out[:-1].reshape(3, stride)
        np.testing.assert_array_equal(copy, x)
        np.testing.assert_array_equal(scaled, x * scalar)
        np.testing.assert_array_equal(added, naive.fma(y, np.full(stride, scalar), x))
        fused_matters += np.count_nonzero(added != x + y * scalar)
        assert out[-1] == naive.dot(x, y)
        exact = x.astype(float) @ y
        assert abs(out[-1] - exact) <= 1e-6 * np.sum(np.abs(x.astype(float) * y))
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
import hashlib, itertools, sys
sys.path.insert(0, {tests!r})
from test_kernels import BASE, RATE, REG, make, update_of, score_kernel
sha = hashlib.sha256()
for factors, biases, adagrad in itertools.product((32, 100), (True,), (False, True)):
    blocks = make(factors, biases, adagrad)
    sums = blocks.call(update_of(blocks, factors, biases, adagrad), 0, 3, BASE, RATE, REG)
    scores = blocks.call(score_kernel(blocks.layout.stride, biases, "uint16", "uint16"), 0, 3, BASE)
    for array in (blocks.p.buffer, blocks.q.buffer, sums, scores):
        sha.update(array)
from numba import config
print(config.CPU_NAME, sha.hexdigest())
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names CPUs of the x86-64 family")
def test_bits_do_not_depend_on_the_width_of_vectors():
    found = {}
    for cpu in ("", "haswell", "nehalem"):  # this machine's; AVX2 and FMA; SSE, where a fused operation is a function
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_CPU")}
        environment |= {"NUMBA_CPU_NAME": cpu} if cpu else {}
        script = BITS.format(tests=os.path.dirname(__file__))
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        name, bits = done.stdout.split()
        assert name == (cpu or "None")
        found[cpu] = bits
    assert len(set(found.values())) == 1, found
