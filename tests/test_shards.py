"""Where things lie inside a block, and what they start with."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfpar.config import ModelConfig, TrainConfig
from mfpar.shards import START_DEVIATION, Layout, Slots, start_block

PINNED = ["0x1.1614540000000p-9", "-0x1.0dd0620000000p-8", "0x1.1026f00000000p-6", "-0x1.2fccee0000000p-7"]


@given(st.integers(1, 130), st.booleans(), st.integers(0, 1), st.integers(1, 40))
def test_the_parts_of_a_block_share_no_float_and_leave_none_but_padding(factors, biases, states, size):
    layout = Layout(factors, biases, states)
    block = np.zeros(layout.floats(size), np.float32)
    assert len(block) % 16 == layout.stride % 8 == 0
    assert factors <= layout.stride < factors + 8
    stranger, stranger_bias = layout.stranger(block, size)
    parts = [layout.rows(block, size), stranger, layout.state(block, size)]
    parts += [layout.bias(block, size), stranger_bias] if biases else []
    for number, part in enumerate(parts, 1):
        assert not part.any()
        part[:] = number
    shapes = [(size, factors), (factors,), (states, size + 1), *([(size,), (1,)] if biases else [])]
    assert [part.shape for part in parts] == shapes
    assert np.count_nonzero(block) == sum(part.size for part in parts)
    if not biases:
        assert layout.bias(block, size).tolist() == [0.0] * size
        assert stranger_bias.size == 0


@pytest.mark.parametrize(("optimizer", "states"), [("sgd", 0), ("adagrad", 1)])
def test_the_layout_of_a_run(optimizer, states):
    layout = Layout.of(ModelConfig(factors=9, biases=False), TrainConfig(optimizer=optimizer))
    assert layout == Layout(9, False, states)


def start(seed=0, side="rows", index=0, size=50, layout=Layout(20, True, 1)):  # noqa: B008 - frozen
    block = np.full(layout.floats(size), 7, np.float32)
    start_block(block, layout, size, seed, side, index)
    return block


def test_starting_values():
    layout, size = Layout(20, True, 1), 50
    block = start()
    rows = layout.rows(block, size)
    assert np.abs(rows).max() <= START_DEVIATION * 3**0.5 * (1 + 1e-6)
    assert rows.std() == pytest.approx(START_DEVIATION, rel=0.1)
    assert abs(rows.mean()) < START_DEVIATION / 10
    assert len(np.unique(rows)) > 0.99 * rows.size
    assert (layout.state(block, size) == 1).all()
    others = block.copy()
    layout.rows(others, size)[:] = layout.state(others, size)[:] = 0
    assert not others.any()  # biases, stranger and padding


def test_starting_values_depend_on_seed_side_and_block_alone():
    different = [start(), start(seed=1), start(side="cols"), start(index=1), start(side="cols", index=1)]
    for k, one in enumerate(different):
        for other in different[k + 1 :]:
            assert (one != other).any()
    assert (start() == different[0]).all()


def test_starting_values_stay_the_same_in_every_version():
    layout = Layout(2, False, 0)
    block = start(seed=2**63 - 1, side="cols", index=1023, size=2, layout=layout)
    assert [float(value).hex() for value in layout.rows(block, 2).ravel()] == PINNED


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
