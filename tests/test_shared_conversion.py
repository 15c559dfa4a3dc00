"""Conversion by several ranks: content as by one, whatever the sources, and nothing left behind when one fails."""

import itertools
import os
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import simulated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mfpar.blockfile import BlockedFile
from mfpar.cli.main import main
from mfpar.errors import FormatError, MfparError, OutputExistsError, RatingsError, StorageError
from mfpar.parallel.exchange import exchange
from mfpar.ratings import moving
from mfpar.ratings.convert import convert
from mfpar.ratings.database import Database
from mfpar.ratings.sharing import own_sources

pytest.importorskip("duckdb")


def everything(path):
    """All datasets of a file, and all attributes."""
    found = {}
    with BlockedFile(path) as file:
        file.strip("train", 0, file.grid.size)
        file.strip("test", 0, file.grid.size)
        for side in ("rows", "cols"):
            file.ids(side)
    with h5py.File(path) as file:
        file.visititems(lambda name, thing: found.update({name: thing[()]} if isinstance(thing, h5py.Dataset) else {}))
        return found, dict(file.attrs)


def assert_same(path, expected):
    (datasets, attributes), (others, theirs) = everything(path), everything(expected)
    assert attributes == theirs
    assert datasets.keys() == others.keys()
    for name, array in datasets.items():
        assert array.dtype == others[name].dtype, name
        np.testing.assert_array_equal(array, others[name], name)


def on_ranks(size, sources, output, **options):
    """Convert on simulated ranks, and return every rank's header or error."""
    return simulated.run_all(size, lambda comm: convert(sources, output, comm=comm, **options))


def together(size, sources, output, **options):
    """The same, where nothing is to fail."""
    return simulated.run(size, lambda comm: convert(sources, output, comm=comm, **options))


def write_parts(folder, records, parts, name="part"):
    """Records as that many files of lines, some of which may be long; the pattern that finds them."""
    bounds = np.linspace(0, len(records), parts + 1).astype(int)
    for k, (a, b) in enumerate(itertools.pairwise(bounds)):
        (folder / f"{name}{k}.csv").write_text("".join(f"{','.join(map(str, record))}\n" for record in records[a:b]))
    return str(folder / f"{name}*.csv")


TEXTS = st.text("aé0,", min_size=1, max_size=3).map(lambda text: f'"x{text}"')
IDS = st.sampled_from([st.integers(-9, 9), TEXTS, st.one_of(st.integers(-9, 9), TEXTS)])


@st.composite
def ratings(draw):
    users, items = draw(IDS), draw(IDS)
    record = st.tuples(users, items, st.floats(-1e3, 1e3, width=32), st.sampled_from([0, 0.5, 1, 3]))
    return draw(st.lists(record, min_size=8, max_size=60))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    records=ratings(),
    held=st.one_of(st.none(), st.floats(0.1, 0.5), ratings()),
    ranks=st.integers(2, 5),
    parts=st.integers(1, 8),
    options=st.fixed_dictionaries(
        {"seed": st.integers(0, 2**63 - 1), "duplicates": st.sampled_from(["last", "mean", "last", "mean", "error"])},
        optional={"grid": st.integers(1, 4), "implicit": st.booleans(), "weights": st.just("4")},
    ),
)
def test_ranks_write_what_one_writes(records, held, ranks, parts, options):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setattr(moving, "MOST", 7)
        patch.setattr(moving, "LEAST", 3)
        patch.setattr(moving, "BUDGET", 100)
        sources = write_parts(folder, records, min(parts, len(records)))
        if isinstance(held, float):
            options["test_fraction"] = held
        elif held:
            options["test"] = write_parts(folder, held, min(parts, len(held)), "held")
        before = sorted(os.listdir(folder))
        alone = simulated.run_all(1, lambda _: convert(sources, folder / "one.h5", **options))
        outcomes = on_ranks(ranks, sources, folder / "all.h5", **options)
        assert list(map(repr, outcomes)) == [repr(alone[0])] * ranks
        if isinstance(alone[0], MfparError):
            assert sorted(os.listdir(folder)) == before
            return
        assert_same(folder / "all.h5", folder / "one.h5")
        shards = list(folder.glob("all.shards/*"))
        assert len(shards) == ranks
        assert set(os.listdir(folder)) - set(before) == {"one.h5", "all.h5", "all.shards"}


@pytest.fixture
def parts(tmp_path):
    """4000 ratings of 300 users with names and 200 items in eight files, some of them twice; their pattern."""
    rng = np.random.default_rng(5)
    users, items, values = rng.integers(0, 300, 4000), rng.integers(0, 200, 4000), rng.integers(1, 11, 4000) / 2
    records = [(f"user {u}", i, r) for u, i, r in zip(users.tolist(), items.tolist(), values.tolist(), strict=True)]
    (tmp_path / "in").mkdir()
    return write_parts(tmp_path / "in", records, 8)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"grid": 1, "duplicates": "mean"},
        {"grid": 7, "weights": "4", "duplicates": "mean", "test_fraction": 0.3},
        {"implicit": True, "seed": 3},
        {"implicit": True, "weights": "3", "test_fraction": 0.5},
    ],
)
@pytest.mark.parametrize("name", ["{}", "reader {}"])
def test_thousands_of_ratings(tmp_path, monkeypatch, ranks, options, name):
    """In several batches each; half of the ratings are repeated."""
    monkeypatch.setattr(moving, "MOST", 500)
    rng = np.random.default_rng(7)
    numbers = rng.integers(0, [[200], [300], [10], [3]], (4, 6000)).T.tolist()
    records = [(name.format(user), item - 9, rating / 2, weight) for user, item, rating, weight in numbers]
    sources = write_parts(tmp_path, records + records[::2], 7)
    header = convert(sources, tmp_path / "one.h5", **options)
    assert header.duplicates > 3000
    assert together(ranks, sources, tmp_path / "all.h5", **options) == [header] * ranks
    assert_same(tmp_path / "all.h5", tmp_path / "one.h5")


def test_text_that_one_rank_meets_is_text_for_all(tmp_path):
    for k, text in enumerate(["1,1,1\n2,2,2\n", "x,1,3\n", "3,2,4\n"]):
        (tmp_path / f"{k}.csv").write_text(text)
    sources = [tmp_path / f"{k}.csv" for k in range(3)]
    convert(sources, tmp_path / "one.h5")
    together(3, sources, tmp_path / "all.h5")
    assert_same(tmp_path / "all.h5", tmp_path / "one.h5")
    with BlockedFile(tmp_path / "all.h5") as file:
        assert sorted(file.ids("rows").tolist()) == [b"1", b"2", b"3", b"x"]
        assert file.ids("cols").dtype == np.int64


def test_sources_are_shared_out_in_runs(tmp_path):
    for k, size in enumerate([10, 10, 10, 70, 5, 5]):
        (tmp_path / f"{k}.csv").write_text("x" * size)
    arrays = tuple(np.zeros(2, np.int64) for _ in range(3))
    found = simulated.run(3, lambda comm: own_sources([str(tmp_path / "*.csv"), arrays], comm))
    assert [[source if source is arrays else source.stem for source in share] for share in found] == [
        ["0", "1", "2"],
        ["3", "4"],
        ["5", arrays],
    ]


def test_ranks_that_see_other_files_are_told(tmp_path):
    for rank in range(2):
        (tmp_path / f"{rank}.csv").write_text("1,1,1\n")
    outcomes = simulated.run_all(2, lambda comm: own_sources(tmp_path / f"{comm.rank}.csv", comm))
    assert [str(outcome) for outcome in outcomes] == [
        f"{tmp_path / '1.csv'}: is not what all ranks see; put the sources on a file system that they share"
    ] * 2


def test_parcels_of_any_size():
    def body(comm):
        parcels = [np.full(10 * comm.rank + peer, comm.rank, np.uint8) for peer in range(comm.size)]
        return [(len(parcel), set(parcel.tolist())) for parcel in exchange(comm, parcels)]

    for rank, found in enumerate(simulated.run(4, body)):
        senders = [(rank - step) % 4 for step in range(4)]
        sizes = [10 * sender + rank for sender in senders]
        assert found == [(n, {k} if n else set()) for n, k in zip(sizes, senders, strict=True)]


def test_a_statement_is_interrupted_when_another_rank_fails(tmp_path):
    """Undisturbed it would take minutes."""

    def body(comm):
        with Database(tmp_path, comm=comm) as database:
            if comm.rank == 1:
                raise StorageError("the disk is gone")
            return database.scalar("SELECT sum(md5_number_lower('x' || i)) FROM range(100_000_000_000) t(i)")

    assert [str(outcome) for outcome in simulated.run_all(2, body)] == ["the disk is gone"] * 2
    assert os.listdir(tmp_path) == []


def test_an_error_names_file_and_line_and_leaves_nothing(tmp_path, parts):
    bad = Path(parts).parent / "part5.csv"
    good = bad.read_text()
    bad.write_text(good + "user 1,2,many\n")
    outcomes = on_ranks(3, parts, tmp_path / "out.h5")
    line = len(good.splitlines()) + 1
    assert {type(outcome) for outcome in outcomes} == {RatingsError}
    assert len({str(outcome) for outcome in outcomes}) == 1
    assert str(outcomes[0]).startswith(f"{bad}, line {line}: the rating ")
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize("failing", ["shard", "master"])
def test_a_full_disk_on_any_rank_leaves_the_old_file(tmp_path, parts, monkeypatch, failing):
    together(2, parts, tmp_path / "out.h5", seed=1)
    before, content = sorted(tmp_path.rglob("*")), everything(tmp_path / "out.h5")
    name = (
        "mfpar.ratings.convert.write_master"
        if failing == "master"
        else "mfpar.ratings.blockwriter.BlockedWriter.finish"
    )

    def full(*_, **__):
        raise StorageError("no space left")

    monkeypatch.setattr(name, full)
    outcomes = on_ranks(3, parts, tmp_path / "out.h5", force=True)
    assert {(type(outcome), str(outcome)) for outcome in outcomes} == {(StorageError, "no space left")}
    assert sorted(tmp_path.rglob("*")) == before
    np.testing.assert_equal(everything(tmp_path / "out.h5"), content)


def test_what_is_overwritten_goes_with_its_shards(tmp_path, parts):
    path = tmp_path / "out.h5"
    convert(parts, tmp_path / "one.h5")
    together(4, parts, path)
    assert {type(outcome) for outcome in on_ranks(2, parts, path)} == {OutputExistsError}
    old = set(tmp_path.glob("out.shards/*"))
    together(2, parts, path, force=True)
    new = set(tmp_path.glob("out.shards/*"))
    assert (len(old), len(new), len(old & new)) == (4, 2, 0)
    assert_same(path, tmp_path / "one.h5")
    convert(parts, path, force=True)
    assert not (tmp_path / "out.shards").exists()
    assert_same(path, tmp_path / "one.h5")


def test_a_missing_or_damaged_shard_is_found(tmp_path, parts):
    path = tmp_path / "out.h5"
    together(3, parts, path)
    second = sorted(tmp_path.glob("out.shards/*"))[1]
    (tmp_path / "moved").mkdir()
    for name in ("out.h5", "out.shards"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    with BlockedFile(tmp_path / "moved" / "out.h5") as file:
        file.strip("train", 0, file.grid.size)
    second = tmp_path / "moved" / "out.shards" / second.name
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(FormatError, match=f"{second.name}: this shard of the blocked file .* is missing"):
        BlockedFile(tmp_path / "moved" / "out.h5")
    second.write_bytes(kept[: len(kept) // 2])
    with BlockedFile(tmp_path / "moved" / "out.h5") as file, pytest.raises(FormatError, match="damaged"):
        file.strip("train", 0, file.grid.size)


def test_training_and_info_read_it_as_any_other(tmp_path, parts, capsys):
    convert(parts, tmp_path / "one.h5", test_fraction=0.2)
    together(3, parts, tmp_path / "all.h5", test_fraction=0.2)
    said = []
    for name in ("one", "all"):
        path, model = tmp_path / f"{name}.h5", tmp_path / f"{name}-model.h5"
        assert main(["info", str(path)]) == 0
        assert (
            main(["train", str(path), "-o", str(model), "--factors", "4", "--epochs", "2", "--progress", "none"]) == 0
        )
        with h5py.File(model) as file:
            said.append((capsys.readouterr().out.replace(str(path), ""), file.attrs["fingerprint"]))
    assert said[0] == said[1]


@pytest.mark.parallel(nprocs=3)
def test_under_mpi(tmp_path):
    """Each rank has a temporary folder of its own: the first one's is taken."""
    from mpi4py import MPI

    from mfpar.parallel.mpi import Mpi

    comm = Mpi(MPI.COMM_WORLD)
    with comm.guard():
        folder = Path(comm.gather(str(tmp_path))[0])
        rng = np.random.default_rng(1)
        records = [(f"u{u}", i, r) for u, i, r in zip(*rng.integers(0, 200, (3, 20_000)).tolist(), strict=True)]
        if comm.rank == 0:
            write_parts(folder, records, 4)
        comm.gather(None)
        sources = str(folder / "part*.csv")
        header = convert(sources, folder / "all.h5", comm=comm, duplicates="mean", test_fraction=0.1, memory=1 << 30)
        if comm.rank == 0:
            assert header == convert(sources, folder / "one.h5", duplicates="mean", test_fraction=0.1)
            assert_same(folder / "all.h5", folder / "one.h5")
            assert len(list(folder.glob("all.shards/*"))) == 3
            assert sorted(path.suffix for path in folder.iterdir()) == [".csv"] * 4 + [".h5"] * 2 + [".shards"]
    comm.close()


def test_the_command_line_under_mpirun(tmp_path, parts, run_cli):
    alone = run_cli("convert", parts, "-o", "one.h5")
    together = run_cli("convert", parts, "-o", "all.h5", ranks=2)
    assert (alone.returncode, together.returncode, together.stderr) == (0, 0, "")
    assert (
        together.stdout.split(" s\n")[0].rpartition(",")[0]
        == alone.stdout.replace("one", "all").split(" s\n")[0].rpartition(",")[0]
    )
    assert_same(tmp_path / "all.h5", tmp_path / "one.h5")
    before = sorted(tmp_path.rglob("*"))
    refused = run_cli("convert", parts, "-o", "all.h5", ranks=2)
    assert refused.returncode == 2
    assert "all.h5: exists already" in refused.stderr
    last = Path(parts).parent / "part7.csv"
    last.write_text("user 1,1,1.0\nuser 2,,2.0\n")
    failed = run_cli("convert", parts, "-o", "all.h5", "--force", ranks=2)
    assert failed.returncode == 1
    assert failed.stderr.count(f"mfpar: error: {last}, line 2: the item id is missing") == 1
    assert sorted(tmp_path.rglob("*")) == before
