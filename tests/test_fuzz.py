"""A short form of tests/fuzz.py, and what it has found."""

import struct

import h5py
import numpy as np
import pytest
from fuzz import GOOD, fuzz
from planted import plant

from mfpar.blockfile import BlockedFile
from mfpar.errors import FormatError
from mfpar.heaps import damaged_heap


def test_damaged_files_give_the_right_answer_or_one_sentence():
    outcomes = list(fuzz(range(300), 7))
    assert [one for one in outcomes if one.outcome not in GOOD] == []
    assert sum(one.outcome == "error" for one in outcomes) > 200


@pytest.mark.parametrize("size", [0, 8, 1 << 40, (1 << 64) - 8])
def test_a_heap_that_hdf5_would_go_through_for_ever_is_refused(tmp_path, size):
    path = plant(tmp_path / "ratings.h5").path
    assert damaged_heap(path) is None
    content = bytearray(path.read_bytes())
    first = content.index(b"GCOL") + 16
    content[first : first + 16] = struct.pack("<HHIQ", 0, 0, 0, size)
    path.write_bytes(content)
    with pytest.raises(FormatError, match="heap of strings at byte"):
        BlockedFile(path)


def test_heaps_of_long_strings_are_sound(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        for number, length in enumerate((1, 7, 8, 5000, 100_000, 3)):
            file.attrs[f"a{number}"] = "x" * length
        file["numbers"] = np.arange(10)
    assert damaged_heap(tmp_path / "a.h5") is None


@pytest.mark.parametrize("reach", [1, 16, 600, 5000])
def test_heaps_are_found_at_both_ends_and_read_to_their_own(tmp_path, monkeypatch, reach):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs["a"] = "x"
        file["numbers"] = np.zeros(10_000)
        file.attrs["b"] = "y" * 5000
    content = bytearray(path.read_bytes())
    heaps = [at for at in range(len(content)) if content[at : at + 4] == b"GCOL"]
    monkeypatch.setattr("mfpar.heaps._pieces", lambda size: [(0, heaps[0] + 8 + reach), (heaps[-1], size)])
    assert damaged_heap(path) is None
    for at in {heaps[0], heaps[-1]}:
        damaged = content.copy()
        damaged[at + 16 : at + 32] = bytes(16)
        path.write_bytes(damaged)
        assert damaged_heap(path) == at


def test_what_virtual_datasets_show_is_checked_before_hdf5_believes_it(tmp_path):
    path = tmp_path / "master.h5"
    layout = h5py.VirtualLayout((10,), np.float32)
    layout[:5] = h5py.VirtualSource("a.shards/0.h5", "P", (5,), np.float32)
    layout[5:] = h5py.VirtualSource("a.shards/1.h5", "P", (5,), np.float32)
    with h5py.File(path, "w", libver="latest") as file:
        file.create_virtual_dataset("P", layout)
    assert damaged_heap(path) is None
    content = path.read_bytes()
    first = content.index(b"GCOL") + 32
    (size,) = struct.unpack_from("<Q", content, first - 8)
    assert b"a.shards/1.h5" in content[first : first + size]
    for at in range(first + 1, first + size):  # HDF5 itself refuses another version, the first byte
        damaged = bytearray(content)
        damaged[at] ^= 4
        path.write_bytes(damaged)
        assert damaged_heap(path) is not None
