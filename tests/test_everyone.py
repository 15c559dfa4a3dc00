"""Recommendations for every row: those that each row gets alone, on any ranks, in any pieces, in bounded memory."""

import csv
import subprocess
import sys
from pathlib import Path

import duckdb
import h5py
import numpy as np
import pytest
import simulated
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import COL_CUTS, ROW_CUTS, Dense, K, M, N, some_ratings, write_blocked, write_model

from mfpar.blockfile import BlockedFile
from mfpar.cli.main import main
from mfpar.errors import ConfigError, FormatError, OutputExistsError, StorageError
from mfpar.grid import Grid
from mfpar.model import aligned, everyone, leaders, listing, table, topk
from mfpar.model.leaders import Leaders
from mfpar.model.opening import checksum_of, open_model
from mfpar.model.table import Ids, Table
from mfpar.ratings import database, reading

MB = 1 << 20


def met(P, row_bias, Q, col_bias, n: int, seen: list[np.ndarray], pieces: list[tuple[int, int]]) -> Leaders:
    """The leaders after all columns, in pieces that come in this order."""
    found = Leaders(P, row_bias, 3.5, n)
    for first, last in pieces:
        inside = [columns[(columns >= first) & (columns < last)] for columns in seen]
        rows = np.repeat(np.arange(len(P)), [len(columns) for columns in inside])
        found.meet(first, Q[first:last], col_bias[first:last], (rows, np.concatenate(inside)))
    found.settle()
    return found


def assert_best(found: Leaders, P, row_bias, Q, col_bias, n: int, seen: list[np.ndarray]) -> None:
    columns, scores = topk.best(P, row_bias, Table([Q]), Table([col_bias]), 3.5, n, seen)
    np.testing.assert_array_equal(found.columns, columns)
    there = columns >= 0
    np.testing.assert_array_equal(found.scores[there], scores[there])
    assert (found.scores[~there] == -np.inf).all()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_leaders_are_the_best_with_ties_in_any_pieces_and_order(data):
    columns, k = data.draw(st.integers(1, 60)), data.draw(st.sampled_from([1, 3, 8, 19]))
    n, rows = data.draw(st.integers(1, 65)), data.draw(st.integers(1, 9))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    # Few distinct columns: most scores tie, also those of different signs and 0.
    distinct = rng.normal(size=(data.draw(st.integers(1, 6)), k)).astype(np.float32)
    which = rng.integers(0, len(distinct), columns)
    scale = np.float32(data.draw(st.sampled_from([0, 1e-30, 1, 1e6])))
    Q, bias = scale * distinct[which], rng.integers(-1, 2, columns).astype(np.float32)
    P, row_bias = rng.normal(size=(rows, k)).astype(np.float32), rng.integers(-5, 1, rows).astype(np.float32)
    seen = [np.unique(rng.integers(0, columns, rng.integers(0, columns + 1))) for _ in P]
    width = data.draw(st.integers(1, columns))
    pieces = data.draw(st.permutations([(a, min(a + width, columns)) for a in range(0, columns, width)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaders, "TILE", data.draw(st.sampled_from([1, 40, 1 << 19])))
        patch.setattr(leaders, "PAIRS", data.draw(st.sampled_from([8, 24 * k, 1 << 21])))
        patch.setattr(leaders, "PATIENCE", data.draw(st.sampled_from([1, 7, 1 << 14])))
        found = met(P, row_bias, Q, bias, n, seen, pieces)
    assert_best(found, P, row_bias, Q, bias, n, seen)


@pytest.mark.parametrize("kind", ["random", "all alike", "nearly alike", "ascending", "far from zero"])
def test_leaders_of_many_columns_are_the_best(kind):
    rng = np.random.default_rng(3)
    P, Q = (rng.normal(size=(count, 33)).astype(np.float32) for count in (40, 3000))
    row_bias, bias = rng.normal(size=40).astype(np.float32), rng.normal(size=3000).astype(np.float32)
    if kind == "all alike":
        Q[:], bias[:] = Q[0], 0
    if kind == "nearly alike":  # apart by the last bits only: a product alone would take others
        Q[:], bias[:] = Q[0], 0
        Q[:, 5] = np.nextafter(Q[0, 5], np.float32(9)) * (1 + rng.integers(0, 3, 3000).astype(np.float32) * 2.0**-23)
    if kind == "ascending":
        bias = np.sort(bias) * 100
    if kind == "far from zero":
        row_bias += 2.0**24  # scores are whole numbers, or even ones: many tie that are not alike
    seen = [rng.permutation(3000)[: rng.integers(0, 100)] for _ in P]
    seen[7] = np.arange(2995)
    seen = [np.sort(columns) for columns in seen]
    pieces = [(2000, 3000), (0, 700), (700, 1400), (1400, 2000)]
    assert_best(met(P, row_bias, Q, bias, 10, seen, pieces), P, row_bias, Q, bias, 10, seen)


def test_a_product_leaves_few_candidates(monkeypatch):
    """That it is quick: a score is taken of a small share of all cells."""
    rng = np.random.default_rng(0)
    P, Q = (rng.normal(size=(count, 16)).astype(np.float32) for count in (64, 20_000))
    scored = []
    monkeypatch.setattr(leaders, "scores", lambda p, *rest: scored.append(len(p)) or topk.scores(p, *rest))
    found = met(P, np.zeros(64, "f4"), Q, np.zeros(20_000, "f4"), 10, [np.empty(0, int)] * 64,
                [(a, a + 4000) for a in range(0, 20_000, 4000)])  # fmt: skip
    assert (found.columns >= 0).all()
    assert sum(scored) < 64 * 20_000 / 100


def table_of(path: Path, text: tuple[bool, bool]) -> list[tuple]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        kinds = [str if text[0] else int, int, str if text[1] else int, np.float32]
        rows = [tuple(kind(value) for kind, value in zip(kinds, row, strict=True)) for row in rows]
    else:
        with duckdb.connect() as database:
            result = database.execute(f"SELECT * FROM read_parquet('{path}')")
            header, types = zip(*((column[0], str(column[1])) for column in result.description), strict=True)
            rows = [(*row[:3], np.float32(row[3])) for row in result.fetchall()]
        assert types == ("VARCHAR" if text[0] else "BIGINT", "INTEGER", "VARCHAR" if text[1] else "BIGINT", "FLOAT")
    assert list(header) == ["user", "place", "item", "score"]
    return rows


def one_by_one(model, users: list, n: int, seen=None) -> list[tuple]:
    """What `recommend` says to each user alone."""
    return [
        (user, place, item, score)
        for user in users
        for place, (item, score) in enumerate(zip(*map(list, model.recommend(user, n, seen)), strict=True), 1)
    ]


@pytest.fixture(params=["int", "str"])
def dense(request):
    return Dense(request.param)


@pytest.fixture(params=["squared", "logistic"])
def model(request, dense, tmp_path):
    link = {"loss": request.param, "link": {"squared": "identity", "logistic": "sigmoid"}[request.param]}
    return open_model(write_model(tmp_path / "model.h5", dense, 3, **link))


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("n", [4, N + 3])
def test_every_user_gets_what_he_gets_alone_on_any_ranks(model, dense, tmp_path, n, ending, monkeypatch):
    text = model.row_ids.text, model.col_ids.text
    alone = tmp_path / f"alone{ending}"
    assert model.recommend_all(alone, n) == M * min(n, N)
    assert table_of(alone, text) == one_by_one(model, dense.row_ids.tolist(), n)
    for ranks in (1, 2, 3, 7):  # more than blocks, too
        path = tmp_path / f"{ranks}{ending}"
        monkeypatch.setattr(everyone, "SLICE", 300 * ranks)
        written = simulated.run(ranks, lambda comm, path=path: model.recommend_all(path, n, comm=comm), seed=ranks)
        assert written == [M * min(n, N)] * ranks
        assert path.read_bytes() == alone.read_bytes()
    assert not list(tmp_path.glob(".*"))


def tight(monkeypatch, rows: int, cells: int, width: int) -> None:
    """Batches of so many rows and so many cells left out, pieces of so many columns."""
    original = everyone._Budget.__init__

    def small(self, *arguments):
        original(self, *arguments)
        self.rows, self.cells, self.width = rows, cells, width

    monkeypatch.setattr(everyone._Budget, "__init__", small)
    monkeypatch.setattr(aligned, "PIECE", 7)


@pytest.mark.parametrize(("rows", "cells", "width"), [(3, 1000, 5), (23, 20, 17), (4, 1, 1)])
def test_what_users_have_rated_is_left_out_in_any_batches(dense, tmp_path, monkeypatch, rows, cells, width):
    parts = {"train": some_ratings(M, N, 250, 1), "test": some_ratings(M, N, 60, 2, unknown=1)}
    checksum = write_blocked(tmp_path / "r.h5", dense.row_ids, dense.col_ids, Grid(ROW_CUTS, COL_CUTS), parts)
    model = open_model(write_model(tmp_path / "model.h5", dense, 3, data_checksum=checksum))
    expected = one_by_one(model, dense.row_ids.tolist(), 9, tmp_path / "r.h5")
    assert len(expected) < 9 * M  # some users have rated too much
    assert model.recommend_all(tmp_path / "a.csv", 9, tmp_path / "r.h5") == len(expected)
    assert table_of(tmp_path / "a.csv", (model.row_ids.text,) * 2) == expected
    tight(monkeypatch, rows, cells, width)
    simulated.run(2, lambda comm: model.recommend_all(tmp_path / "b.csv", 9, str(tmp_path / "r.h5"), comm=comm))
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_what_users_have_rated_in_another_file_is_left_out_by_id(dense, tmp_path, monkeypatch, memory):
    rng = np.random.default_rng(5)
    new = np.array(["new1", "new2"]) if dense.row_ids.dtype.kind == "U" else np.array([10**6, 10**6 + 1])
    row_ids = rng.permutation(np.concatenate((dense.row_ids[4:], new)))
    col_ids = rng.permutation(np.concatenate((dense.col_ids[3:], new)))
    m, n = len(row_ids), len(col_ids)
    rated = some_ratings(m, n, 180, 3)
    parts = {"train": rated, "test": some_ratings(m, n, 50, 4, unknown=1)}
    write_blocked(tmp_path / "r.h5", row_ids, col_ids, Grid(np.array([0, 9, m]), np.array([0, 2, n])), parts)
    model = open_model(write_model(tmp_path / "model.h5", dense, 3))
    by_user = {id_: set(col_ids[rated[1][row_ids[rated[0]] == id_]].tolist()) for id_ in dense.row_ids.tolist()}
    whole = one_by_one(model, dense.row_ids.tolist(), N)
    left = [(user, item, score) for user, _, item, score in whole if item not in by_user[user]]
    expected = []
    for user, item, score in left:
        place = expected[-1][1] + 1 if expected and expected[-1][0] == user else 1
        expected.append((user, place, item, score))
    tight(monkeypatch, 10, 30, 6)
    tightened = everyone._Budget.__init__
    monkeypatch.setattr(
        everyone._Budget, "__init__", lambda self, *rest: tightened(self, *rest) or setattr(self, "ids", memory)
    )
    model.recommend_all(tmp_path / "a.csv", N, tmp_path / "r.h5")
    assert table_of(tmp_path / "a.csv", (model.row_ids.text,) * 2) == expected
    assert expected == one_by_one(model, dense.row_ids.tolist(), N, tmp_path / "r.h5")


def test_ids_with_all_that_csv_quotes(tmp_path):
    dense = Dense("str")
    nasty = ["a,b", 'q"x', "n\nl", "c\rr", "é", "\\", "NULL", " sp ", "'", "\t", "1", "a\r\nb", '""', "#c", "-", "nan"]
    dense.row_ids[: len(nasty)] = nasty
    dense.col_ids[: len(nasty)] = nasty[::-1]
    model = open_model(write_model(tmp_path / "model.h5", dense, 1))
    expected = one_by_one(model, dense.row_ids.tolist(), N)
    for ending in (".csv", ".parquet"):
        model.recommend_all(tmp_path / f"a{ending}", N)
        assert table_of(tmp_path / f"a{ending}", (True, True)) == expected


def test_a_model_without_columns_or_rows_recommends_nothing(tmp_path):
    dense = Dense()
    path = write_model(tmp_path / "model.h5", dense, 1)
    with h5py.File(path, "a") as file:
        del file["P"], file["row_bias"], file["row_ids"], file["row_cuts"]
        file["P"], file["row_bias"] = np.empty((0, K), np.float32), np.empty(0, np.float32)
        file["row_ids"], file["row_cuts"] = np.empty(0, np.int64), np.zeros(len(ROW_CUTS), np.int64)
        file.attrs["checksum"] = checksum_of(file.attrs, file)
    assert open_model(path).recommend_all(tmp_path / "a.csv") == 0
    assert (tmp_path / "a.csv").read_text() == "user,place,item,score\n"


def test_what_can_not_be_is_refused_before_anything_is_written(tmp_path):
    model = open_model(write_model(tmp_path / "model.h5", Dense(), 1))
    before = sorted(tmp_path.rglob("*"))
    for error, message, options in (
        (ConfigError, "n=0", {"n": 0}),
        (ConfigError, "end in .csv or .parquet", {"output": tmp_path / "a.txt"}),
        (ConfigError, r"memory=20M is too small for this model, which needs \d+M a rank", {"memory": 20 * MB}),
        (OutputExistsError, "is also an input", {"output": tmp_path / "model.csv", "force": True}),
        (StorageError, "does not exist", {"output": tmp_path / "no" / "a.csv"}),
        (StorageError, "no such file", {"seen": tmp_path / "no.h5"}),
        (FormatError, "not a blocked ratings file", {"seen": tmp_path / "model.h5"}),
    ):
        if "model.csv" in str(options.get("output")):
            (tmp_path / "model.csv").hardlink_to(tmp_path / "model.h5")
        for ranks in (1, 2):
            given = {"output": tmp_path / "a.csv", **options}
            with pytest.raises(error, match=message):
                simulated.run(ranks, lambda comm, given=given: model.recommend_all(**given, comm=comm))
        (tmp_path / "model.csv").unlink(missing_ok=True)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "a.csv").write_text("mine")
    with pytest.raises(OutputExistsError, match="exists already"):
        model.recommend_all(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "mine"


def test_a_failure_of_one_rank_leaves_nothing_behind(tmp_path, monkeypatch):
    model = open_model(write_model(tmp_path / "model.h5", Dense(), 1))
    (tmp_path / "a.parquet").write_text("old")
    before = sorted(tmp_path.rglob("*"))

    def append(self, *arrays):
        if self._comm.rank == 1:
            raise StorageError("the disk of rank 1 is full")
        return original(self, *arrays)

    original = listing.Listing.append
    monkeypatch.setattr(listing.Listing, "append", append)
    with pytest.raises(StorageError, match="rank 1 is full"):
        simulated.run(3, lambda comm: model.recommend_all(tmp_path / "a.parquet", force=True, comm=comm))
    monkeypatch.setattr(listing.Listing, "append", original)
    monkeypatch.setattr(listing.Listing, "_to_parquet", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(StorageError, match=r"a\.parquet: could not be written: no space left"):
        simulated.run(2, lambda comm: model.recommend_all(tmp_path / "a.parquet", force=True, comm=comm))
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "a.parquet").read_text() == "old"


@pytest.mark.parametrize("more", ["", '","errno":"28"}'])
def test_what_duckdb_says_of_a_full_disk(tmp_path, monkeypatch, more):
    model = open_model(write_model(tmp_path / "model.h5", Dense(), 1))

    def run(self, sql, parameters=()):
        raise duckdb.IOException(f'IO Error: Could not write file "a": No space left on device{more}')

    monkeypatch.setattr(database.Database, "run", run)
    told = r"a\.csv: could not be written: No space left on device; nothing was left behind"
    with pytest.raises(StorageError, match=f"{told}$"):
        model.recommend_all(tmp_path / "a.csv")


def test_damage_of_the_seen_file_is_found(tmp_path):
    dense = Dense()
    parts = {"train": some_ratings(M, N, 250, 1), "test": some_ratings(M, N, 60, 2)}
    checksum = write_blocked(tmp_path / "r.h5", dense.row_ids, dense.col_ids, Grid(ROW_CUTS, COL_CUTS), parts)
    model = open_model(write_model(tmp_path / "model.h5", dense, 1, data_checksum=checksum))
    with h5py.File(tmp_path / "r.h5", "a") as file:
        file["train/values"][200] += 1
    with pytest.raises(FormatError, match=r"r\.h5: is damaged in the train ratings of row-block"):
        model.recommend_all(tmp_path / "a.csv", seen=tmp_path / "r.h5")
    assert not (tmp_path / "a.csv").exists()


def test_a_strip_comes_whole_in_pieces(tmp_path):
    dense = Dense()
    parts = {"train": some_ratings(M, N, 250, 1), "test": some_ratings(M, N, 60, 2)}
    write_blocked(tmp_path / "r.h5", dense.row_ids, dense.col_ids, Grid(ROW_CUTS, COL_CUTS), parts)
    with BlockedFile(tmp_path / "r.h5") as file:
        for i in range(4):
            whole = file.strip("train", i, i + 1)
            pieces = list(file.pieces("train", i, 9))
            assert max(len(piece.rows) for piece in pieces) == 9
            for name in ("rows", "cols", "values"):
                joined = np.concatenate([getattr(piece, name) for piece in pieces])
                np.testing.assert_array_equal(joined, getattr(whole, name))
            lengths = sum(np.diff(piece.offsets) for piece in pieces)
            np.testing.assert_array_equal(lengths, np.diff(whole.offsets))


@pytest.mark.parametrize("kind", ["int", "str"])
def test_ids_are_found_without_sorting_them(kind, monkeypatch):
    monkeypatch.setattr(table, "SCAN", 50)
    numbers = np.random.default_rng(0).permutation(200) - 40
    stored = numbers if kind == "int" else np.char.encode([f"é{i}" for i in numbers], "utf-8")
    asked = numbers[[3, 3, 199, 0, 77]] if kind == "int" else np.array([f"é{i}" for i in numbers[[3, 3, 199, 0, 77]]])
    strange = np.array(["x", "é", "012", "", "é-41"])
    ids = Ids(stored)
    for memory, kept in ((0, False), (1 << 20, True)):
        assert ids.find(asked, memory).tolist() == [3, 3, 199, 0, 77]
        assert ids.find(strange, memory).tolist() == [-1] * 5
        assert ids.find(strange[:0], memory).tolist() == []
        assert ("_sorted" in vars(ids)) == kept


def resident(mapped: Table) -> int:
    """Bytes of a table's files that this process has mapped and looked at."""
    total, counts = 0, False
    names = {str(piece.base.filename) for piece in mapped._pieces if isinstance(piece.base, np.memmap)}
    assert names
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            counts = any(line.endswith(name) for name in names)
        elif counts and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


def test_a_table_lets_go_of_what_was_read(tmp_path):
    rows, size = (1 << 24) // 32, 8
    values = np.arange(3 * rows * size, dtype=np.float32).reshape(-1, size)
    names = [tmp_path / str(i) for i in range(3)]
    for i, name in enumerate(names):
        values[i * rows : (i + 1) * rows].tofile(name)
    mapped = Table([np.memmap(name, np.float32, "r", 0, (rows, size))[3:] for name in names])
    expected = np.concatenate([values[i * rows + 3 : (i + 1) * rows] for i in range(3)])
    # Linux maps up to 2 MB round what is looked at.
    rng, huge = np.random.default_rng(0), 2 << 20
    most = 0

    def gather(indices):
        nonlocal most
        found = original(indices)
        most = max(most, resident(mapped))
        return found

    original = mapped._gather
    mapped._gather = gather
    for count in (1, 3, 1000, 100_000):
        indices = rng.integers(0, len(expected), count)
        np.testing.assert_array_equal(mapped.take(indices), expected[indices])
        assert resident(mapped) <= 2 * huge
    assert 0 < most <= table.WINDOW + 2 * huge
    most = 0
    for chunk in mapped.chunks(1 << 12):
        chunk.sum()
        most = max(most, resident(mapped))
    assert 0 < most <= 2 * huge
    np.testing.assert_array_equal(np.asarray(mapped), expected)
    assert resident(mapped) == 0
    first = mapped.read(0, 5)
    mapped.release(0, len(mapped))
    np.testing.assert_array_equal(first, expected[:5])


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A model of 23 rows and 4 million columns: 144 MB of Q, biases and ids."""
    path = write_model(tmp_path_factory.mktemp("wide") / "model.h5", Dense(), 1)
    count, rng = 4_000_000, np.random.default_rng(0)
    with h5py.File(path, "a") as file:
        del file["Q"], file["col_bias"], file["col_ids"], file["col_cuts"]
        file["Q"] = rng.normal(size=(count, K)).astype(np.float32) * np.float32(0.1)
        file["col_bias"], file["col_ids"] = np.zeros(count, np.float32), rng.permutation(count)
        file["col_cuts"] = np.linspace(0, count, 5).astype(np.int64)
        file.attrs["checksum"] = checksum_of(file.attrs, file)
    return path


@pytest.mark.parametrize(
    ("verb", "options", "bound"),
    [
        ("recommend", ["--all", "-o", "top.parquet", "--memory", "200M"], 200),
        ("export", ["-o", "factors.npz"], 130),
        ("recommend", ["--user", str(Dense().row_ids[3])], 130),
    ],
)
def test_a_process_stays_small_whatever_the_model(wide, tmp_path, verb, options, bound):
    code = (
        "import sys; from mfpar.cli.main import main; code = main(sys.argv[1:]);"
        "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM'))); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, verb, str(wide), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout.split()[-2]) / 1024 < bound


def test_the_command_line_writes_the_same_on_ranks(tmp_path, run_cli):
    model = open_model(write_model(tmp_path / "model.h5", Dense("str"), 3))
    model.recommend_all(tmp_path / "expected.parquet", 5)
    for ranks in (None, 2):
        done = run_cli("recommend", "model.h5", "--all", "--top", 5, "-o", "a.parquet", "--force", ranks=ranks)
        assert (done.returncode, done.stdout) == (0, "a.parquet: 115 recommendations for 23 users\n"), done.stderr
        assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "expected.parquet").read_bytes()
    done = run_cli("recommend", "model.h5", "--all", "-o", "a.parquet", ranks=2)
    assert (done.returncode, done.stderr.count("a.parquet: exists already")) == (2, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--all"], "--all needs -o"),
        (["--all", "-o", "a.csv", "--json"], "go with --user"),
        (["--all", "-o", "a.csv", "--memory", "1M"], "too small for this model"),
        (["--user", "1", "-o", "a.csv"], "go with --all"),
        (["--user", "1", "--memory", "1G"], "go with --all"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, capsys, options, message, monkeypatch):
    write_model(tmp_path / "model.h5", Dense(), 1)
    monkeypatch.chdir(tmp_path)
    assert main(["recommend", "model.h5", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.csv").exists()


@pytest.mark.parametrize("kind", ["int", "str"])
def test_memory_does_not_change_what_is_predicted_and_measured(tmp_path, monkeypatch, capsys, kind):
    dense = Dense(kind)
    model = open_model(write_model(tmp_path / "model.h5", dense, 3))
    rng = np.random.default_rng(0)
    users, items = rng.choice([*dense.row_ids, 10**9], 300), rng.choice([*dense.col_ids, 10**9], 300)
    lines = [f"{user},{item},{rng.integers(1, 6)}" for user, item in zip(users, items, strict=True)]
    (tmp_path / "pairs.csv").write_text("\n".join(["user,item,rating", *lines]) + "\n")
    monkeypatch.chdir(tmp_path)
    for verb in ("predict", "evaluate"):
        said = []
        for memory in ([], ["--memory", "640M"]):
            if memory:  # as with a model whose sorted ids would not fit
                monkeypatch.setattr(table, "sorting", lambda *_: 1 << 40)
                monkeypatch.setattr(reading, "LEAST_CHUNK", 1)
                monkeypatch.setattr(reading, "PER_RATING", 640 * MB // 4 // 50)
            assert main([verb, "model.h5", "pairs.csv", *memory]) == 0
            said.append(capsys.readouterr().out)
            monkeypatch.undo()
            monkeypatch.chdir(tmp_path)
        assert said[0] == said[1]
        assert len(said[0]) > 20
        assert main([verb, "model.h5", "pairs.csv", "--memory", "100M"]) == 2
        assert "memory=100M is too small" in capsys.readouterr().err
    assert model.evaluate("pairs.csv").count == 300
