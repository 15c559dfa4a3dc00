"""`mfpar verify`: every kind of damage is found and named, in bounded memory."""

import json
import tracemalloc

import h5py
import numpy as np
import pytest
import simulated
from planted import plant

from mfpar import api
from mfpar.blockfile import Header, arrays_of, checksum_of, digest
from mfpar.cli.main import main
from mfpar.config import ModelConfig, TrainConfig
from mfpar.errors import FormatError
from mfpar.integrity import findings
from mfpar.integrity.verify import verify

PER_RATING = [f"{part}/{name}" for part in ("train", "test") for name in arrays_of(part, True)]
PER_ROW = [f"{side}/{name}" for side in ("rows", "cols") for name in ("ids", "order", "counts")]
TABLES = [f"{side}/{name}" for side in ("rows", "cols") for name in ("cuts", "checksums")]
TABLES += [f"{part}/{name}" for part in ("train", "test") for name in ("offsets", "checksums")]


def train(data, path, ranks=1):
    def body(comm):
        model, run = ModelConfig(factors=8), TrainConfig(epochs=1)
        return api.train_file(data.path, path, model, run, comm, lambda event: None)

    simulated.run(ranks, body)
    return path


@pytest.fixture
def data(tmp_path):
    return plant(tmp_path / "ratings.h5", weighted=True)


@pytest.fixture(params=(1, 3), ids=("whole", "sharded"))
def model(request, data, tmp_path):
    return train(data, tmp_path / "model.h5", request.param)


def flip(path, name, at=0):
    """Flip a bit of one element of a dataset, wherever it lies."""
    with h5py.File(path, "r+") as file:
        dataset = file[name]
        if dataset.is_virtual:
            source = dataset.virtual_sources()[0]
            return flip(path.parent / source.file_name, source.dset_name, at)
        values = dataset[()]
        values.view(np.uint8).reshape(len(values), -1)[at, 0] ^= 1
        dataset[...] = values
    return None


def reseal(path):
    """Make a blocked file's own checksum fit what it holds."""
    with h5py.File(path, "r+") as file:
        header = Header(**{name: file.attrs[name].item() for name in Header.__dataclass_fields__})
        header = Header(**{**header.__dict__, "implicit": bool(header.implicit), "weighted": bool(header.weighted)})
        file.attrs["checksum"] = checksum_of(header, file)


def test_sound_files(data, model, capsys):
    for path in (data.path, model):
        found = verify(path)
        assert found.sound
        assert found.bytes > 1000
    assert main(["verify", str(data.path), str(model)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "sound blocked ratings: 61 rows, 43 cols, 1,500 ratings, 162 test" in first
    assert "sound model: 61 rows, 43 cols, 8 factors" in second


@pytest.mark.parametrize("name", PER_RATING)
def test_damaged_ratings_are_named(data, name):
    flip(data.path, name, -1)
    part = name.partition("/")[0]
    assert [text for text in verify(data.path).damage if f"{part} ratings of row-block" in text]


@pytest.mark.parametrize("name", PER_ROW)
def test_damaged_tables_are_named(data, name):
    flip(data.path, name)
    side = name.partition("/")[0]
    assert verify(data.path).damage == [f"ids, order and counts of the {side} in block 0 do not match their checksum"]


@pytest.mark.parametrize("name", TABLES)
def test_damaged_tables_of_tables(data, name):
    flip(data.path, name, 1)
    assert any("header and tables" in text for text in verify(data.path).damage)


@pytest.mark.parametrize("name", list(Header.__dataclass_fields__))
def test_damaged_attributes_of_ratings(data, name):
    with h5py.File(data.path, "r+") as file:
        file.attrs[name] = file.attrs[name].dtype.type(1 - file.attrs[name])
    assert any("header and tables" in text for text in verify(data.path).damage)


@pytest.mark.parametrize("name", ["P", "Q", "row_bias", "col_bias", "row_ids", "col_ids"])
def test_damaged_blocks_of_a_model_are_named(model, name):
    flip(model, name)
    (text,) = verify(model).damage
    assert name in text
    assert "block 0 do not match" in text


@pytest.mark.parametrize("name", ["cuts", "checksums", "id_checksums"])
@pytest.mark.parametrize("side", ["row", "col"])
def test_damaged_tables_of_a_model(model, side, name):
    flip(model, f"{side}_{name}", 1)
    assert any("do not match their checksum" in text for text in verify(model).damage)
    with pytest.raises(FormatError, match="checksum"):
        api.load(model)


def test_each_damaged_attribute_of_a_model(model):
    with h5py.File(model) as file:
        attributes = dict(file.attrs)
    for name, value in attributes.items():
        with h5py.File(model, "r+") as file:
            file.attrs[name] = f"{value}?" if isinstance(value, str) else value + 1
        assert not verify(model).sound, name
        with pytest.raises(FormatError):
            api.load(model)
        with h5py.File(model, "r+") as file:
            file.attrs[name] = value
    assert verify(model).sound


def test_missing_shard(data, tmp_path):
    path = train(data, tmp_path / "model.h5", 3)
    sorted((tmp_path / "model.shards").iterdir())[1].unlink()
    (text,) = verify(path).damage
    assert "missing" in text


def set_and_reseal(path, part, name, change):
    """Change a dataset, and make all checksums fit: what is left is for the structural checks."""
    with h5py.File(path, "r+") as file:
        values = file[part][name][()]
        change(values)
        file[part][name][...] = values
        if part in ("train", "test"):
            names, size = arrays_of(part, True), len(file["rows/cuts"]) - 1
            cuts = file[part]["offsets"][::size]
        else:
            names, cuts = ("ids", "order", "counts"), file[part]["cuts"][()]
        for b in range(len(cuts) - 1):
            file[part]["checksums"][b] = digest(*(file[part][one][cuts[b] : cuts[b + 1]] for one in names))
    reseal(path)


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("train", "rows", 60000, "train ratings of row-block 0 have an index outside their blocks"),
        ("train", "cols", 60000, "train ratings of row-block 0 have an index outside their blocks"),
        ("test", "cols", 60000, "test ratings of row-block 0 have an index outside their blocks"),
        ("rows", "order", 5, "the order of the rows is no permutation"),
        ("cols", "order", 5, "the order of the cols is no permutation"),
        ("rows", "counts", 999, "counts of the rows in block 0 are not those of the training ratings"),
        ("cols", "counts", 999, "counts of the cols in block 0 are not those of the training ratings"),
    ],
)
def test_tables_that_contradict_each_other(data, part, name, value, message):
    def change(values):
        values[0] = value

    set_and_reseal(data.path, part, name, change)
    assert message in verify(data.path).damage


def test_the_stranger_has_no_training_ratings(data):
    def change(values):
        values[0] = data.grid.row_sizes[0]

    set_and_reseal(data.path, "train", "rows", change)
    assert "train ratings of row-block 0 have an index outside their blocks" in verify(data.path).damage


def test_offsets_that_descend(data):
    with h5py.File(data.path, "r+") as file:
        file["train/offsets"][3] = 1400
    reseal(data.path)
    assert verify(data.path).damage == ["offsets of the train part do not ascend from 0 to 1500"]


def test_strangers_are_counted(data):
    with h5py.File(data.path, "r+") as file:
        file.attrs["test_unknown"] += 1
    reseal(data.path)
    (text,) = verify(data.path).damage
    assert "the header says" in text


def test_all_damage_is_told_up_to_a_bound(data, capsys):
    for at in range(0, 1500, 10):
        flip(data.path, "train/values", at)
    for at in range(60):
        flip(data.path, "rows/ids", at)
    for at in range(43):
        flip(data.path, "cols/counts", at)
    assert len(verify(data.path).damage) == 24
    assert main(["verify", str(data.path)]) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 21
    assert said.out.splitlines()[-1].endswith("and 4 more")
    assert "not sound" in said.err


def test_json_and_several_files(data, tmp_path, capsys):
    (tmp_path / "text.h5").write_text("no HDF5")
    names = [str(tmp_path / name) for name in ("none.h5", "text.h5", "ratings.h5")]
    assert main(["verify", "--json", *names]) == 1
    facts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(fact["path"], fact["sound"]) for fact in facts] == list(zip(names, (False, False, True), strict=True))
    assert "no such file" in facts[0]["damage"][0]


def test_truncated(data):
    data.path.write_bytes(data.path.read_bytes()[:5000])
    assert not verify(data.path).sound


def test_any_byte_may_be_damaged(model):
    """Whatever HDF5 makes of it, the findings say so; a byte that nothing uses is no damage."""
    whole = model.read_bytes()
    verdicts = []
    for at in range(0, len(whole), 97):
        model.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        verdicts.append(verify(model).sound)
    assert verdicts.count(False) > len(verdicts) // 2


def test_nobody_takes_memory_for_what_is_not_there(data, model):
    """Datasets of an immense size, of which HDF5 stores nothing."""
    files = {data.path: [*TABLES, "rows/ids"], model: ["row_cuts", "col_cuts", "row_checksums", "col_id_checksums"]}
    for path, names in files.items():
        whole = path.read_bytes()
        for name in names:
            with h5py.File(path, "r+", libver="latest") as file:
                like = file[name]
                del file[name]
                file.create_dataset(name, (1 << 50, *like.shape[1:]), like.dtype, chunks=(1 << 10, *like.shape[1:]))
            (text,) = verify(path).damage
            assert text.startswith(f"is damaged: {name} is to be (1125899906842624,"), text
            path.write_bytes(whole)


def test_pieces_are_bounded_and_change_nothing(data, monkeypatch):
    whole = verify(data.path)
    monkeypatch.setattr(findings, "PIECE", 300)
    assert verify(data.path) == whole


def test_pieces_of_a_model(model, monkeypatch):
    whole = verify(model)
    monkeypatch.setattr(findings, "PIECE", 100)
    assert verify(model) == whole


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "PIECE", 1 << 16)
    monkeypatch.setattr("mfpar.heaps.REACH", 1 << 16)
    path = plant(tmp_path / "large.h5", 2000, 1000, 400_000, grid=2, test=10).path
    assert verify(path).bytes > 3 << 20
    tracemalloc.start()
    assert verify(path).sound
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20
