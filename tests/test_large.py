"""Sixty-four bits throughout: what lies behind 2^32 others is found. Files with holes make it so; no memory is needed.

An index that lost its upper half somewhere would not fail but find something else, from the beginning.
"""

import copy
import dataclasses
import os
import tempfile

import h5py
import numpy as np
import pytest
from planted import plant
from test_kernels import ONE_CLASS, SQUARED, knobs_of, make

from mfpar.api import load, train_file
from mfpar.blockfile import BlockedFile, arrays_of, checksum_of
from mfpar.config import ModelConfig, TrainConfig
from mfpar.kernels import SCORES, SUMS, contrast_kernel, pairs_kernel, score_kernel, update_kernel
from mfpar.losses import BUILTIN
from mfpar.parallel.comm import Serial
from mfpar.parallel.memory import Offer
from mfpar.schedule import sample_key
from mfpar.shards import Slots

BEYOND = 1 << 32  # elements
CHUNK = 1 << 17


def behind(array, folder):
    """The array behind BEYOND zeros, none of which takes memory."""
    with tempfile.TemporaryFile(dir=folder) as file:
        large = np.memmap(file, array.dtype, "w+", shape=BEYOND + len(array)).view(np.ndarray)
    large[BEYOND:] = array
    return large


def far(blocks, folder):
    """The same ratings and tables, all far behind the beginning of their arrays."""
    slots = [copy.copy(side) for side in (blocks.p, blocks.q)]
    for side in slots:
        side.buffer, side.starts = behind(side.buffer, folder), side.starts + BEYOND
    arrays = {name: behind(getattr(blocks, name), folder) for name in ("rows", "cols", "values")}
    if len(blocks.weights):
        arrays["weights"] = behind(blocks.weights, folder)
    return dataclasses.replace(blocks, p=slots[0], q=slots[1], offsets=blocks.offsets + BEYOND, **arrays)


STEPS = {
    "sgd": (make(7, weighted=True, scaled=True), SQUARED, {}),
    # Blocks so large that many sixteens have rows and columns of their own.
    "together": (
        make(32, True, True, (np.uint32, np.uint16), 400, row_sizes=(300,) * 3, col_sizes=(290,) * 3), SQUARED, {},
    ),
    "sampled": (make(7, weighted=True), ONE_CLASS, {"cells": "sampled"}),
    "all": (make(7, False), ONE_CLASS, {"cells": "all"}),
    "row": (make(7, weighted=True, scaled=True), BUILTIN["bpr-row"], {"cells": "row"}),
    "col": (make(7, adagrad=True), BUILTIN["bpr-col"], {"cells": "col"}),
}  # fmt: skip


@pytest.mark.parametrize(("blocks", "loss", "given"), STEPS.values(), ids=STEPS)
def test_kernels_step_beyond_32_bits(tmp_path, blocks, loss, given):
    distant = far(blocks, tmp_path)
    before = blocks.p.buffer.copy()
    kernel = (pairs_kernel if given.get("cells") in ("row", "col") else update_kernel)(blocks.kind(loss, **given))
    sums = blocks.step(kernel)
    assert sums.shape == (3, SUMS)
    np.testing.assert_array_equal(distant.step(kernel), sums)
    assert (blocks.p.buffer != before).any()
    for near, behind_others in ((blocks.p, distant.p), (blocks.q, distant.q)):
        np.testing.assert_array_equal(behind_others.buffer[BEYOND:], near.buffer)
        assert not behind_others.buffer[:CHUNK].any()


def test_kernels_measure_beyond_32_bits(tmp_path):
    blocks = make(7)
    distant = far(blocks, tmp_path)
    kernel = score_kernel(blocks.kind())
    np.testing.assert_array_equal(distant.score(kernel), blocks.score(kernel))
    contrast = contrast_kernel(blocks.kind(ONE_CLASS, cells="sampled"))
    knobs, scores = knobs_of(7), np.zeros((2, 3, SCORES))
    constants = knobs.base, knobs.weight, knobs.target, sample_key(1, 2)
    for some, found in zip((blocks, distant), scores, strict=True):
        contrast(some.turns(), *some.strip, *some.strip, *some.sides, *constants, found)
    assert scores[0].any()
    np.testing.assert_array_equal(*scores)


def test_ratings_beyond_32_bits_of_a_file_are_read(tmp_path, monkeypatch):
    # No writer leaves a hole at the start of its datasets, and no reader takes it.
    monkeypatch.setattr(BlockedFile, "_require_datasets", lambda self: None)
    monkeypatch.setattr("mfpar.blockfile.require_ascent", lambda *arguments: None)
    data = plant(tmp_path / "near.h5", weighted=True)
    path = tmp_path / "far.h5"
    path.write_bytes(data.path.read_bytes())
    with h5py.File(path, "r+") as file:
        for part in ("train", "test"):
            group = file[part]
            for name in arrays_of(part, True):
                array = group[name][()]
                del group[name]
                large = group.create_dataset(name, (BEYOND + len(array),), array.dtype, chunks=(CHUNK,))
                large[BEYOND:] = array
            group["offsets"][...] = group["offsets"][()] + BEYOND
        file.attrs["checksum"] = checksum_of(data.header, file)
    assert os.stat(path).st_blocks * 512 < 64 << 20
    with BlockedFile(data.path) as near, BlockedFile(path) as distant:
        np.testing.assert_array_equal(distant.counts(), near.counts())
        for first, last in ((0, 8), (7, 8)):
            strips = (dataclasses.asdict(file.strip("train", first, last)) for file in (near, distant))
            for one, other in zip(*(strip.values() for strip in strips), strict=True):
                np.testing.assert_array_equal(one, other)
    for name in ("near", "far"):
        settings = ModelConfig(factors=8), TrainConfig(epochs=2, validation_fraction=0.1)
        train_file(tmp_path / f"{name}.h5", tmp_path / f"{name}-model.h5", *settings, Serial(), lambda event: None)
    assert load(tmp_path / "far-model.h5").fingerprint == load(tmp_path / "near-model.h5").fingerprint


def test_slots_and_shared_memory_beyond_32_bits():
    offer = Offer(Slots.nbytes([BEYOND, 64]))
    seen = offer.address.map(len(offer.array))
    offer.close()
    slots = Slots([BEYOND, 64], offer.array)
    assert slots.starts.tolist() == [0, BEYOND]
    slots[1][:] = 1
    assert (len(slots[0]), len(slots[1])) == (BEYOND, 64)
    np.testing.assert_array_equal(seen.view(np.float32)[BEYOND:], np.ones(64))
    assert not slots[0][:CHUNK].any()
