"""Law 1, the arithmetic: who owns what, who meets whom when."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfpar.errors import ConfigError
from mfpar.grid import Grid, balanced_cuts, default_grid, owner, span
from mfpar.schedule import meetings, ring

sizes = st.integers(1, 70)
seeds = st.integers(0, 2**63 - 1)
PINNED = ([2, 7, 0, 5, 3, 6, 1, 4], [3, 2, 4, 6, 0, 5, 1, 7])
counts_of_ratings = st.lists(st.integers(0, 50) | st.sampled_from([0, 10**6, 2**40]), min_size=1, max_size=60)


@given(sizes, seeds, st.integers(1, 2**40))
def test_every_epoch_meets_each_block_once_in_strata_that_share_nothing(size, seed, epoch):
    order = ring(size, seed, epoch)
    met = np.array([meetings(order, step) for step in range(size)])
    everyone = np.arange(size)
    assert (np.sort(met, axis=0) == everyone[:, None]).all()  # a row-block meets each column-block in the epoch
    assert (np.sort(met, axis=1) == everyone).all()  # in a step all column-blocks differ


@given(sizes, seeds, st.integers(1, 1000))
def test_a_column_block_moves_up_by_one_and_is_back_in_the_end(size, seed, epoch):
    order = ring(size, seed, epoch)
    for step in range(size):
        before, after = np.argsort(meetings(order, step)), np.argsort(meetings(order, step + 1))
        assert (after == (before - 1) % size).all()
    assert (meetings(order, size) == order).all()


@given(seeds, st.integers(1, 1000))
def test_the_order_depends_on_seed_and_epoch_alone(seed, epoch):
    order = ring(40, seed, epoch)
    assert (order == ring(40, seed, epoch)).all()
    assert (order != ring(40, seed, epoch + 1)).any()
    assert (order != ring(40, seed ^ 1, epoch)).any()


def test_the_order_stays_the_same_in_every_version():
    # Models that were trained before would change with it, and checkpoints could not be resumed.
    assert ring(8, 0, 1).tolist() == PINNED[0]
    assert ring(8, 2**63 - 1, 7).tolist() == PINNED[1]


@given(st.integers(0, 500), st.integers(1, 60))
def test_spans_are_contiguous_and_even_and_owner_finds_them(count, parts):
    spans = [span(count, parts, part) for part in range(parts)]
    assert spans[0][0] == 0
    assert spans[-1][1] == count
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    lengths = [last - first for first, last in spans]
    assert max(lengths) - min(lengths) <= 1
    for part, (first, last) in enumerate(spans):
        assert all(owner(count, parts, index) == part for index in range(first, last))


@given(counts_of_ratings, st.data())
def test_cuts_leave_no_block_empty_and_come_near_the_mean(counts, data):
    grid = data.draw(st.integers(1, len(counts)))
    cuts = balanced_cuts(np.array(counts, np.int64), grid)
    assert cuts[0] == 0
    assert cuts[-1] == len(counts)
    assert (np.diff(cuts) >= 1).all()
    held = np.add.reduceat(np.array(counts, object), cuts[:-1])
    assert sum(held) == sum(counts)
    if grid * max(counts) < sum(counts):  # then no two cuts want the same place
        after = np.concatenate(([0], np.cumsum(np.array(counts, object))))
        for b, cut in enumerate(cuts.tolist()):
            # In whole numbers: how far, times the grid, each place is from where the cut should be.
            away = abs(after * grid - b * sum(counts))
            assert away[cut] == min(away)


def test_cuts_balance_skewed_rows():
    counts = np.random.default_rng(0).zipf(1.5, 5000).clip(max=3000)
    held = np.add.reduceat(counts, balanced_cuts(counts, 16)[:-1])
    assert held.max() < 1.2 * held.mean()
    equal_sides = np.add.reduceat(counts, np.arange(16) * len(counts) // 16)
    assert equal_sides.max() > 1.2 * equal_sides.mean()


def test_cuts_stay_exact_where_floats_would_not():
    counts = np.array([2**53, 1, 1, 2**53])
    assert balanced_cuts(counts, 4).tolist() == [0, 1, 2, 3, 4]
    assert balanced_cuts(counts, 2).tolist() == [0, 2, 4]


@pytest.mark.parametrize("grid", [0, 4])
def test_more_blocks_than_rows_are_refused(grid):
    with pytest.raises(ConfigError, match=f"grid of {grid} blocks .* has 3"):
        balanced_cuts(np.ones(3, np.int64), grid)


@given(st.integers(1, 10**9), st.integers(1, 10**9), st.integers(1, 10**12))
def test_the_default_grid_fits_the_data(rows, cols, ratings):
    grid = default_grid(rows, cols, ratings)
    assert 1 <= grid <= min(rows, cols, 1024)
    assert grid >= 16 or grid == min(rows, cols)
    if grid < min(rows, cols):
        assert grid & (grid - 1) == 0


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12))
def test_a_grid_knows_its_sides(rows, cols):
    size = min(rows, cols)
    grid = Grid(balanced_cuts(np.ones(rows, np.int64), size), balanced_cuts(np.ones(cols, np.int64), size))
    assert grid.size == len(grid.row_sizes) == len(grid.col_sizes) == size
    assert (grid.row_sizes.sum(), grid.col_sizes.sum()) == (rows, cols)


def test_indices_outside_their_blocks_are_told():
    grid = Grid(np.array([0, 2, 5]), np.array([0, 3, 4]))
    offsets = np.array([[0, 2, 2], [2, 2, 3]])
    rows, cols = np.array([1, 0, 2], np.uint16), np.array([2, 0, 0], np.uint16)
    assert grid.holds(0, offsets, rows, cols, 0)
    assert grid.holds(0, np.zeros((2, 3), int), rows[:0], cols[:0], 0)
    assert grid.holds(1, offsets[1:] - 2, rows[2:], cols[2:], 0)
    for number in range(3):
        for indices in (rows, cols):
            kept, indices[number] = indices[number], 3
            beyond = (indices is cols and number < 2) or (indices is rows and number == 2)
            assert not grid.holds(0, offsets, rows, cols, 0)
            assert grid.holds(0, offsets, rows, cols, 1) == beyond
            indices[number] = kept
