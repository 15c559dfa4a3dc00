"""Law 7 for models of many files: the old one or the new one, whole, whatever fails on whichever rank."""

import errno
import os
import shutil
import stat
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import simulated
from planted import Planted, plant

from mfpar import api, sharded
from mfpar.config import ModelConfig, TrainConfig
from mfpar.engine.training import Training
from mfpar.errors import DivergedError, OutputExistsError, RankError, StorageError
from mfpar.grid import span
from mfpar.model import saving


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Planted:
    return plant(tmp_path_factory.mktemp("data") / "ratings.h5")


def train(data, path, ranks, *, seed=0, prepare=lambda comm: None, force=True):
    """Train one epoch on simulated ranks; returns what became of each: a fingerprint or an error."""

    def body(comm):
        prepare(comm)
        model, run = ModelConfig(factors=8), TrainConfig(epochs=1, seed=seed)
        return api.train_file(data.path, path, model, run, comm, lambda event: None, force=force)

    return simulated.run_all(ranks, body)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def old(data, tmp_path) -> tuple[Path, dict[str, bytes]]:
    """A model of three ranks, and all its bytes."""
    path = tmp_path / "model.h5"
    train(data, path, 3)
    return path, files(tmp_path)


def test_shards_and_master_show_one_model(data, tmp_path):
    (one,), three = train(data, tmp_path / "one.h5", 1), train(data, tmp_path / "three.h5", 3)
    assert three == [one] * 3
    assert len(list((tmp_path / "three.shards").iterdir())) == 3
    assert not (tmp_path / "one.shards").exists()
    with h5py.File(tmp_path / "one.h5") as a, h5py.File(tmp_path / "three.h5") as b:
        for name in ("P", "Q", "row_bias", "col_bias", "row_ids", "col_ids", "row_cuts", "col_checksums"):
            np.testing.assert_array_equal(a[name], b[name])
        np.testing.assert_array_equal(a["row_ids"], data.row_ids)
        np.testing.assert_array_equal(a["col_ids"], data.col_ids)
        assert (a["P"].shape, a["Q"].shape) == ((61, 8), (43, 8))
        assert a.attrs["fingerprint"] == b.attrs["fingerprint"] == one
    (tmp_path / "moved").mkdir()
    for name in ("three.h5", "three.shards"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    moved = api.load(tmp_path / "moved" / "three.h5")
    moved.verify()
    assert (moved.fingerprint, moved.grid.size) == (one, 8)


def test_a_note_tells_of_a_shard_before_that_is_there(data, tmp_path, monkeypatch):
    """Who is killed in between would leave a shard of which nobody knows."""
    written, found, real = threading.Event(), [], sharded._note

    def late(folder, token):
        written.wait(0.5)
        return real(folder, token)

    def write(target, training, file):
        found.append(len(list((tmp_path / "model.shards").glob(".*.unfinished"))))
        written.set()
        return write_blocks(target, training, file)

    write_blocks = saving._write_blocks
    monkeypatch.setattr(sharded, "_note", late)
    monkeypatch.setattr(saving, "_write_blocks", write)
    train(data, tmp_path / "model.h5", 2)
    assert found == [1, 1]


def test_overwriting_leaves_no_stale_shards(data, tmp_path):
    path = tmp_path / "model.h5"
    for index, ranks in enumerate((3, 1, 3, 2, 2)):
        outcomes = train(data, path, ranks, seed=index)
        assert {type(outcome) for outcome in outcomes} == {str}
        model = api.load(path)
        model.verify()
        assert model.fingerprint == outcomes[0]
        assert len(files(tmp_path)) == (1 if ranks == 1 else 1 + ranks)
        assert (tmp_path / "model.shards").exists() == (ranks > 1)


def test_strangers_in_the_folder_of_shards_are_left_alone(data, tmp_path):
    (tmp_path / "model.shards").mkdir()
    (tmp_path / "model.shards" / "mine.h5").write_text("mine")
    train(data, tmp_path / "model.h5", 2)
    train(data, tmp_path / "model.h5", 1)
    assert list(files(tmp_path / "model.shards")) == ["mine.h5"]


def full(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("ranks", "failing"), [(1, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_a_rank_that_can_not_write_leaves_the_old_model(data, old, monkeypatch, ranks, failing):
    path, before = old
    real = saving._write_blocks

    def write_blocks(target, training, file):
        real(target, training, file)
        if training.first == span(8, ranks, failing)[0]:
            full()

    monkeypatch.setattr(saving, "_write_blocks", write_blocks)
    outcomes = train(data, path, ranks, seed=1)
    assert {type(outcome) for outcome in outcomes} == {StorageError}
    assert len({str(outcome) for outcome in outcomes}) == 1
    assert str(outcomes[0]).endswith(": could not be written: no space left on the device; nothing was left behind")
    assert files(path.parent) == before


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("where", ["show_shards", "attributes", "replace"])
def test_a_master_that_can_not_be_written_leaves_the_old_model(data, old, monkeypatch, ranks, where):
    path, before = old
    if where == "show_shards":
        monkeypatch.setattr(saving, "show_shards" if ranks > 1 else "_write_blocks", full)
    elif where == "attributes":
        monkeypatch.setattr(saving.h5py.AttributeManager, "update", full)
    else:
        real = os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: full() if Path(b) == path else real(a, b))
    assert {type(outcome) for outcome in train(data, path, ranks, seed=1)} == {StorageError}
    assert files(path.parent) == before


def test_an_interruption_when_the_master_is_in_place_leaves_the_new_model(data, old):
    path, before = old

    def prepare(comm):
        gather = comm.gather

        def interrupted(value):
            values = gather(value)
            if comm.rank == 2 and path.read_bytes() != before["model.h5"]:
                raise KeyboardInterrupt
            return values

        comm.gather = interrupted

    outcomes = train(data, path, 3, seed=1, prepare=prepare)
    assert type(outcomes[2]) is KeyboardInterrupt
    model = api.load(path)
    model.verify()
    assert path.read_bytes() != before["model.h5"]


def test_a_folder_that_can_not_be_synced_leaves_the_new_model(data, old, monkeypatch):
    path, before = old
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: full() if stat.S_ISDIR(os.fstat(fd).st_mode) else real(fd))
    assert {type(outcome) for outcome in train(data, path, 3, seed=1)} == {str}
    api.load(path).verify()
    assert len(files(path.parent)) == len(before)


def test_an_output_that_exists_is_refused_before_any_work(data, old, monkeypatch):
    path, before = old
    monkeypatch.setattr(Training, "run_epoch", lambda *arguments: pytest.fail("has trained"))
    assert {type(outcome) for outcome in train(data, path, 3, force=False)} == {OutputExistsError}
    assert files(path.parent) == before


@pytest.mark.parametrize("side", ["row", "column"])
def test_factors_that_are_not_finite_are_not_saved(data, old, monkeypatch, side):
    path, before = old
    finish = Training.finish

    def poisoned(training):
        finish(training)
        if training.first == span(8, 3, 1)[0]:
            block = training.row_block if side == "row" else training.col_block
            block(training.first)[0][0, 0] = np.inf

    monkeypatch.setattr(Training, "finish", poisoned)
    outcomes = train(data, path, 3, seed=1)
    assert {type(outcome) for outcome in outcomes} == {DivergedError}
    assert str(outcomes[0]) == f"training diverged: {side}-block 3 is not finite; use a smaller --lr"
    assert files(path.parent) == before


def test_what_is_no_error_of_mfpar_reaches_the_others_as_one(data, old, monkeypatch):
    path, before = old

    def prepare(comm):
        if comm.rank == 1:
            raise ZeroDivisionError("by zero")

    outcomes = train(data, path, 3, prepare=prepare)
    assert [type(outcome) for outcome in outcomes] == [RankError, ZeroDivisionError, RankError]
    assert files(path.parent) == before
