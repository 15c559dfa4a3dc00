"""Where things lie inside a block, and what they start with."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfpar.config import INITS, ModelConfig, TrainConfig
from mfpar.shards import CHUNK, Layout, Slots, start_block


@given(st.integers(1, 130), st.booleans(), st.integers(0, 1), st.booleans(), st.integers(1, 40))
def test_the_parts_of_a_block_share_no_float_and_leave_none_but_padding(factors, biases, states, scaled, size):
    layout = Layout(factors, biases, states, scaled)
    block = np.zeros(layout.floats(size), np.float32)
    assert len(block) % 16 == layout.stride % 8 == 0
    assert factors <= layout.stride < factors + 8
    stranger, stranger_bias = layout.stranger(block, size)
    parts = [layout.rows(block, size), stranger, layout.state(block, size), layout.scales(block, size)]
    parts += [layout.bias(block, size), stranger_bias] if biases else []
    for number, part in enumerate(parts, 1):
        assert not part.any()
        part[:] = number
    shapes = [(size, factors), (factors,), (states, size + 1), (size * scaled,)]
    assert [part.shape for part in parts] == [*shapes, *([(size,), (1,)] if biases else [])]
    assert np.count_nonzero(block) == sum(part.size for part in parts)
    if not biases:
        assert layout.bias(block, size).tolist() == [0.0] * size
        assert stranger_bias.size == 0


@pytest.mark.parametrize(("optimizer", "states"), [("sgd", 0), ("adagrad", 1)])
@pytest.mark.parametrize("reg_per", ["rating", "row"])
def test_the_layout_of_a_run(optimizer, states, reg_per):
    layout = Layout.of(ModelConfig(factors=9, biases=False, reg_per=reg_per), TrainConfig(optimizer=optimizer))
    assert layout == Layout(9, False, states, reg_per == "row")


IDS = np.arange(1000, 1050)
LAYOUT = Layout(20, True, 1, True)


def start(ids=IDS, seed=0, side="rows", layout=LAYOUT, **given):
    """A block and its rows of factors."""
    block = np.full(layout.floats(len(ids)), 7, np.float32)
    start_block(block, layout, ids, seed, side, **given)
    return block, layout.rows(block, len(ids))


def test_starting_values():
    block, rows = start()
    assert np.abs(rows).max() <= 0.01 * 3**0.5 * (1 + 1e-6)
    assert len(np.unique(rows)) > 0.99 * rows.size
    assert (LAYOUT.state(block, len(IDS)) == 1).all()
    others = block.copy()
    LAYOUT.rows(others, len(IDS))[:] = LAYOUT.state(others, len(IDS))[:] = 0
    assert not others.any()  # biases, scales, stranger and padding


# By distribution: largest value, mean and kurtosis, where the root mean square is 1.
SHAPES = {"uniform": (3**0.5, 0, 1.8), "normal": (48**0.5 / 2, 0, 2.7), "positive": (3**0.5, 3**0.5 / 2, None)}


@pytest.mark.parametrize("scale", [0.01, 3.0])
@pytest.mark.parametrize("init", INITS)
def test_starting_values_are_distributed_as_asked_for(init, scale):
    _, rows = start(np.arange(3000), init=init, scale=scale)
    unit = rows.astype(float) / scale
    largest, mean, kurtosis = SHAPES[init]
    assert np.abs(unit).max() <= largest * (1 + 1e-6)
    assert np.sqrt((unit**2).mean()) == pytest.approx(1, abs=0.01)
    assert unit.mean() == pytest.approx(mean, abs=0.02)
    assert (unit.min() >= 0) == (init == "positive")
    if kurtosis:
        assert (unit**4).mean() == pytest.approx(kurtosis, abs=0.05)
    between = np.corrcoef(unit.T) - np.eye(20)  # of the factors with one another
    assert np.abs(between).max() < 0.1
    assert np.abs(np.corrcoef(unit[1:].ravel(), unit[:-1].ravel())[0, 1]) < 0.02  # of an id with the next


@pytest.mark.parametrize("kind", ["integers", "strings"])
def test_an_id_starts_alike_in_any_block_and_order(kind):
    ids = IDS * -7 if kind == "integers" else np.array([f"né {number}".encode() for number in IDS])
    _, whole = start(ids)
    order = np.random.default_rng(0).permutation(len(ids))
    for some in (order, order[:1], order[7:20], order[::-1]):
        np.testing.assert_array_equal(start(ids[some])[1], whole[some])
    if kind == "strings":  # however wide the column is
        np.testing.assert_array_equal(start(ids.astype("S99"))[1], whole)


def test_more_rows_than_are_drawn_at_a_time_start_alike_too():
    ids, layout = np.arange(CHUNK + 3), Layout(1, False)
    _, rows = start(ids, layout=layout)
    np.testing.assert_array_equal(rows[-6:], start(ids[-6:], layout=layout)[1])


def test_more_factors_begin_like_fewer():
    np.testing.assert_array_equal(start(layout=Layout(9, True))[1], start(layout=Layout(20, True))[1][:, :9])


def test_different_ids_seeds_and_sides_start_differently():
    strings = np.array([b"", b"a", b"b", b"aa", b"ab", b"ba"])
    blocks = [start()[1], start(seed=1)[1], start(side="cols")[1], start(seed=1, side="cols")[1], start(-IDS)[1]]
    blocks += [start(strings)[1], start(np.array([0, 1, -1, 2**62, -(2**63)]))[1]]
    rows = np.concatenate(blocks)
    assert len(np.unique(rows, axis=0)) == len(rows)


PINNED = {
    "integers": [
        "0x1.2d7a840000000p-12", "0x1.0abd260000000p-7", "-0x1.06b99c0000000p-11", "0x1.8e6de80000000p-9",
        "0x1.a2035c0000000p-8", "-0x1.f7a54e0000000p-9", "0x1.0d07e00000000p-6", "0x1.1e74880000000p-6",
        "0x1.207d640000000p-7", "0x1.a1260c0000000p-7", "0x1.1391ac0000000p-7", "0x1.4d95360000000p-7",
    ],
    "strings": [
        "0x1.14b26e0000000p-8", "0x1.0a25e80000000p-7", "0x1.a7a7880000000p-7", "-0x1.cdeabc0000000p-7",
        "-0x1.d3e56e0000000p-9", "-0x1.6d52fa0000000p-10", "0x1.e330b00000000p-8", "-0x1.efccae0000000p-8",
        "0x1.60f4140000000p-7", "0x1.a0da6e0000000p-7", "0x1.ef9b3c0000000p-7", "0x1.a690d20000000p-10",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", PINNED)
def test_starting_values_stay_the_same_in_every_version(kind):
    ids = np.array([-(2**63), 1023]) if kind == "integers" else np.array([b"1023", "Ω".encode()])
    found = [start(ids, 2**63 - 1, "cols", Layout(2, False), init=init)[1].ravel() for init in INITS]
    assert [float(value).hex() for value in np.concatenate(found)] == PINNED[kind]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_slots_lie_one_behind_another_and_aligned(lengths):
    lengths = [16 * length for length in lengths]
    slots = Slots(lengths)
    assert len(slots.buffer) == sum(lengths)
    for number, length in enumerate(lengths):
        assert slots[number].shape == (length,)
        assert length == 0 or slots[number].ctypes.data % 64 == 0
        slots[number][:] = number
    assert slots.buffer.tolist() == np.repeat(np.arange(len(lengths)), lengths).tolist()
