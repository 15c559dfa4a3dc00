"""Conversion: the blocked file holds exactly the given ratings, in the order promised, whatever they came from."""

import gzip
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import naive as twins
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planted import plant

from mfpar.blockfile import BlockedFile
from mfpar.cli.main import main
from mfpar.errors import ConfigError, FormatError, OutputExistsError, RatingsError, StorageError
from mfpar.grid import balanced_cuts
from mfpar.ratings import blocks, database
from mfpar.ratings.convert import convert
from mfpar.ratings.ordering import spread

duckdb = pytest.importorskip("duckdb")


def names(file, side):
    """The ids of a side as Python objects, in order."""
    ids = file.ids(side)
    return [name.decode() for name in ids] if ids.dtype.kind == "S" else ids.tolist()


def contents(path, part="train"):
    """All ratings of a part in the order of the file: (row-block, column-block, user or None, item or None, rating)."""
    with BlockedFile(path) as file:
        users, items, grid = names(file, "rows"), names(file, "cols"), file.grid
        strip = file.strip(part, 0, grid.size)
        found = []
        for i in range(grid.size):
            for j in range(grid.size):
                for at in range(strip.offsets[i, j], strip.offsets[i, j + 1]):
                    row, col = int(strip.rows[at]), int(strip.cols[at])
                    user = users[grid.row_cuts[i] + row] if row < grid.row_sizes[i] else None
                    item = items[grid.col_cuts[j] + col] if col < grid.col_sizes[j] else None
                    found.append((i, j, user, item, float(strip.values[at])))
        return found


def weighted(path):
    """(user, item): (rating, weight) of the training part."""
    with BlockedFile(path) as file:
        assert file.header.weighted
        assert file.strip("test", 0, file.grid.size).weights is None
        strip = file.strip("train", 0, file.grid.size)
    assert strip.weights.dtype == np.float32
    found = contents(path)
    return {(u, i): (r, w) for (*_, u, i, r), w in zip(found, strip.weights.tolist(), strict=True)}


def checksum(path):
    with BlockedFile(path) as file:
        return file.checksum


@pytest.fixture(scope="module")
def triples():
    """600 ratings of 40 users and 30 items, no pair twice: int64 users and items from 1, float64 ratings."""
    pairs = np.random.default_rng(0).choice(40 * 30, 600, replace=False)
    return pairs // 30 + 1, pairs % 30 + 1, np.arange(600) % 10 / 2 + 0.5


@pytest.fixture(scope="module")
def quads(triples):
    """The same with weights."""
    return *triples, np.random.default_rng(1).uniform(0, 3, 600).astype(np.float32).astype(np.float64)


def lines(columns, delimiter=",", head=""):
    return head + "".join(delimiter.join(map(str, record)) + "\n" for record in zip(*columns, strict=True))


def as_kind(kind, given, folder):
    """Users and items, or also ratings, or also weights, as a source of some kind, in `folder`."""
    users, items, *numbers = given
    ratings = numbers[0] if numbers else np.full(len(users), 7.0)
    columns = dict(zip(("user", "item", "rating", "weight"), given, strict=False))
    path = folder / "source"
    if kind in ("csv", "tsv", "dat", "space", "semicolon"):
        delimiter = {"csv": ",", "tsv": "\t", "dat": "::", "space": " ", "semicolon": ";"}[kind]
        path.write_text(lines(given, delimiter))
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(lines(given, head=",".join(columns) + "\n").encode()))
    elif kind == "parquet":
        table = folder / "table.csv"
        table.write_text(lines(given))
        read = f"read_csv('{table}', names={['u', 'i', 'r', 'weight'][: len(given)]})"
        duckdb.execute(f"COPY (SELECT * FROM {read}) TO '{path}' (FORMAT parquet)")
    elif kind == "mtx":
        path = folder / "source.mtx"
        scipy.io.mmwrite(path, scipy.sparse.coo_matrix((ratings, (users - 1, items - 1))))
    elif kind == "sparse.npz":
        path = folder / "source.npz"
        scipy.sparse.save_npz(path, scipy.sparse.coo_matrix((ratings, (users, items))).tocsr())
    elif kind == "arrays.npz":
        path = folder / "source.npz"
        np.savez(path, **columns)
    elif kind == "files":
        for k in range(3):
            (folder / f"part{k}.csv").write_text(lines([c[200 * k : 200 * (k + 1)] for c in given]))
        return str(folder / "part?.csv")
    elif kind == "sparse":
        return scipy.sparse.coo_array((ratings, (users, items)))
    elif kind == "strings":
        return users.astype(str), items.astype(object), *(column.astype(np.float32) for column in numbers)
    elif kind == "dict":
        return columns
    elif kind == "pandas":
        return pytest.importorskip("pandas").DataFrame(columns)
    elif kind == "arrow":
        return pytest.importorskip("pyarrow").table(columns)
    return path


KINDS = "csv tsv dat space semicolon csv.gz parquet mtx sparse.npz arrays.npz files sparse strings dict pandas arrow"


@pytest.mark.parametrize("kind", KINDS.split())
def test_every_kind_of_source_gives_the_same_file(tmp_path, triples, kind):
    convert(triples, tmp_path / "expected.h5", grid=4, seed=3)
    header = convert(as_kind(kind, triples, tmp_path), tmp_path / "found.h5", grid=4, seed=3)
    assert (header.rows, header.cols, header.ratings, header.streams, header.seed) == (40, 30, 600, 16, 3)
    assert checksum(tmp_path / "found.h5") == checksum(tmp_path / "expected.h5")
    found = {(u, i, r) for *_, u, i, r in contents(tmp_path / "found.h5")}
    assert found == set(zip(*(column.tolist() for column in triples), strict=True))


@pytest.mark.parametrize("kind", KINDS.split())
def test_every_kind_of_source_of_pairs(tmp_path, triples, kind):
    """Two columns are enough, and a third is not looked at."""
    convert((*triples[:2], np.ones(600)), tmp_path / "ones.h5", grid=4, seed=3)
    for k, columns in enumerate((triples[:2], triples)):
        folder, path = tmp_path / str(k), tmp_path / f"{k}.h5"
        folder.mkdir()
        header = convert(as_kind(kind, columns, folder), path, grid=4, seed=3, implicit=True)
        assert (header.ratings, header.mean, header.deviation, header.minimum, header.maximum) == (600, 1, 0, 1, 1)
        assert (header.implicit, header.weighted) == (True, False)
        assert contents(path) == contents(tmp_path / "ones.h5")
        with BlockedFile(path) as file:
            assert file.header == header
            assert file.header.implicit is True
    assert checksum(tmp_path / "0.h5") == checksum(tmp_path / "1.h5") != checksum(tmp_path / "ones.h5")


def test_ratings_of_pairs_may_be_anything(tmp_path, triples):
    users, items, _ = triples
    path = tmp_path / "odd.csv"
    path.write_text(lines((users, items, ["?"] * 600), head="who,what,how\n"))
    dense = {"user": users, "item": items, "rating": np.full(600, None)}
    matrix = scipy.sparse.coo_array((np.full(600, 1j), (users, items)))
    for source in (path, dense, matrix, (users, items, np.full(600, np.nan))):
        for columns in (None, ["who", "what"], ["who", "what", "how"]) if source is path else (None,):
            header = convert(source, tmp_path / "out.h5", implicit=True, columns=columns, force=True)
            assert (header.ratings, header.mean) == (600, 1)


def test_pairs_held_out_and_repeated(tmp_path, triples):
    test = (np.append(triples[0][:20], 99), np.append(triples[1][:20], 1))
    header = convert(triples[:2], tmp_path / "out.h5", implicit=True, test=test)
    assert (header.ratings, header.test_ratings, header.test_unknown) == (600, 21, 1)
    assert {rating for *_, rating in contents(tmp_path / "out.h5", "test")} == {1.0}
    header = convert(triples[:2], tmp_path / "out.h5", implicit=True, test_fraction=0.25, force=True)
    assert header.ratings + header.test_ratings == 600
    assert header.test_ratings > 100
    for policy in ("last", "mean"):
        header = convert(TWICE[:2], tmp_path / "out.h5", implicit=True, duplicates=policy, force=True)
        assert (header.ratings, header.duplicates, header.minimum, header.maximum) == (3, 3, 1, 1)


@pytest.mark.parametrize("given", [np.ones((2, 4), int), {"user": [1], "item": [2]}])
def test_pairs_are_refused_unless_asked_for(tmp_path, given):
    source = given if isinstance(given, dict) else (given[0], given[1])
    with pytest.raises(RatingsError, match=r"taken by mfpar convert --implicit \(implicit=True\)$"):
        convert(source, tmp_path / "out.h5")
    with pytest.raises(ConfigError, match="--implicit"):
        convert(source, tmp_path / "out.h5", columns=["1", "2"])


WITHOUT_WEIGHTS = {"semicolon", "mtx", "sparse.npz", "sparse"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS.split() if kind not in WITHOUT_WEIGHTS])
@pytest.mark.parametrize("implicit", [False, True])
def test_weights_of_every_kind_of_source(tmp_path, quads, kind, implicit):
    users, items, ratings, weights = quads
    rated = np.ones(600) if implicit else ratings
    columns = (column.tolist() for column in (users, items, rated, weights))
    numbered = "4" if kind in ("csv", "tsv", "dat", "space", "files") else "weight"
    path = tmp_path / "found.h5"
    header = convert(as_kind(kind, quads, tmp_path), path, grid=4, weights=numbered, implicit=implicit)
    assert (header.weighted, header.implicit, header.mean) == (True, implicit, pytest.approx(rated.mean()))
    assert weighted(path) == {(u, i): (r, w) for u, i, r, w in zip(*columns, strict=True)}


def test_weights_change_the_checksum_but_no_rating(tmp_path, quads):
    users, items, _, weights = quads
    found = {}
    for name, columns, options in (
        ("plain", quads[:3], {}),
        ("weighted", quads, {"weights": "4"}),
        ("other", (*quads[:3], weights + 1), {"weights": "4"}),
        ("pairs", (users, items), {"implicit": True}),
        ("weighted pairs", (users, items, weights), {"weights": "3", "implicit": True}),
        ("the same", quads, {"weights": "4", "implicit": True}),
    ):
        convert(columns, tmp_path / name, grid=4, **options)
        found[name] = checksum(tmp_path / name)
    assert found.pop("the same") == found["weighted pairs"]
    assert len(set(found.values())) == 5
    assert contents(tmp_path / "weighted") == contents(tmp_path / "plain")
    assert contents(tmp_path / "weighted pairs") == contents(tmp_path / "pairs")


def test_command_line(tmp_path, capsys):
    source, output = tmp_path / "plays.csv", str(tmp_path / "out.h5")
    source.write_text("user,item,plays\n1,2,3\n2,2,5\n1,2,4\n")
    command = ["convert", str(source), "-o", output, "--force"]
    assert main([*command, "--implicit", "--weights", "plays", "--duplicates", "mean"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{output}: 2 × 1, 2 pairs, weighted, ")
    assert second == "1 repeated pairs of a user and item: settled by --duplicates mean"
    assert weighted(output) == {(1, 2): (1, 7), (2, 2): (1, 5)}
    for columns in ("user,item", "user,item,plays"):
        assert main([*command, "--implicit", "--columns", columns]) == 0
        assert capsys.readouterr().out.startswith(f"{output}: 2 × 1, 2 pairs, ")
    assert main([*command, "--columns", "1,2,3"]) == 0
    assert capsys.readouterr().out.startswith(f"{output}: 2 × 1, 2 ratings, mean 4.5000, ")
    assert main(command) != 0
    assert "--implicit (implicit=True)" in capsys.readouterr().err


def test_weights_need_no_place_in_the_test_source(tmp_path, quads):
    path, weighed = tmp_path / "test.tsv", tuple(column[:50] for column in quads)
    path.write_text(lines(weighed[:3], "\t"))
    held = []
    for test in (path, weighed[:3], weighed, scipy.sparse.coo_array((weighed[2], weighed[:2]))):
        header = convert(quads, tmp_path / "out.h5", weights="weight", test=test, force=True)
        assert (header.ratings, header.test_ratings) == (600, 50)
        assert len(weighted(tmp_path / "out.h5")) == 600
        held.append(sorted(contents(tmp_path / "out.h5", "test")))
    assert held.count(held[0]) == 4
    header = convert(quads, tmp_path / "out.h5", weights="4", test_fraction=0.3, force=True)
    assert len(weighted(tmp_path / "out.h5")) == header.ratings == 600 - header.test_ratings
    records = list(zip(*(column.tolist() for column in quads), strict=True))
    assert all((u, i, r, w) in records for (u, i), (r, w) in weighted(tmp_path / "out.h5").items())


@pytest.mark.parametrize(
    ("policy", "implicit", "expected"),
    [
        ("last", False, {1: (3, 0.5), 2: (2, 0), 3: (2, 4)}),
        ("last", True, {1: (1, 0.5), 2: (1, 0), 3: (1, 4)}),
        ("mean", False, {1: (3.5, 2), 2: (1.5, 0), 3: (2, 4)}),  # of user 2 all weights are 0
        ("mean", True, {1: (1, 2), 2: (1, 0), 3: (1, 4)}),
    ],
)
@pytest.mark.parametrize("size", [1, 3])
def test_duplicates_with_weights_are_settled(tmp_path, policy, implicit, expected, size):
    given = (*TWICE, np.array([1.0, 0, 0.5, 4, 0.5, 0]))
    # The held-out part is settled as without weights.
    for k, test in enumerate((TWICE, given)):
        options = {"weights": "4", "duplicates": policy, "implicit": implicit, "grid": size, "force": True}
        header = convert(given, tmp_path / f"{k}.h5", test=test, **options)
        assert (header.ratings, header.test_ratings, header.duplicates) == (3, 3, 6)
        assert {user: found for (user, _), found in weighted(tmp_path / f"{k}.h5").items()} == expected
    convert(TWICE, tmp_path / "plain.h5", test=TWICE, duplicates=policy, implicit=implicit, grid=size)
    assert contents(tmp_path / "0.h5", "test") == contents(tmp_path / "plain.h5", "test")
    assert checksum(tmp_path / "0.h5") == checksum(tmp_path / "1.h5")


def test_held_out_share_is_settled_as_without_weights(tmp_path):
    rng = np.random.default_rng(2)
    given = (rng.integers(0, 30, 2000), rng.integers(0, 30, 2000), rng.random(2000), rng.random(2000))
    convert(given, tmp_path / "out.h5", weights="4", duplicates="mean", test_fraction=0.5, grid=3)
    convert(given[:3], tmp_path / "plain.h5", duplicates="mean", test_fraction=0.5, grid=3)
    assert contents(tmp_path / "out.h5", "test") == contents(tmp_path / "plain.h5", "test")
    assert contents(tmp_path / "out.h5") != contents(tmp_path / "plain.h5")


def test_weights_that_add_up_to_too_much(tmp_path):
    with pytest.raises(RatingsError, match="add up to more than single precision holds"):
        convert(([1, 1], [1, 1], [1, 2], [3e38, 3e38]), tmp_path / "out.h5", weights="4", duplicates="mean")
    assert os.listdir(tmp_path) == []


def test_a_damaged_weight_is_found(tmp_path, quads):
    path = tmp_path / "out.h5"
    convert(quads, path, weights="4", grid=4)
    with h5py.File(path, "r+") as file:
        file["train/weights"][400] += 1
    with BlockedFile(path) as file:
        with pytest.raises(FormatError, match="damaged in the train ratings of row-block 2"):
            file.strip("train", 0, 4)
        file.strip("train", 3, 4)
    with h5py.File(path, "r+") as file:
        file["train/weights"][400] -= 1
        file.attrs["weighted"] = 0
    with pytest.raises(FormatError, match="header and tables do not match their checksum"):
        BlockedFile(path)


def test_planted_files(tmp_path):
    planted = plant(tmp_path / "w.h5", weighted=True)
    train = planted.train
    columns = (planted.row_ids[train.rows], planted.col_ids[train.cols], train.values, planted.weights)
    expected = {(u, i): (r, w) for u, i, r, w in zip(*(column.tolist() for column in columns), strict=True)}
    assert weighted(planted.path) == expected
    assert 0.5 <= planted.weights.min() < planted.weights.max() < 2
    ones = plant(tmp_path / "i.h5", implicit=True)
    assert (ones.header.implicit, ones.header.weighted, ones.weights) == (True, False, None)
    assert {rating for part in ("train", "test") for *_, rating in contents(ones.path, part)} == {1.0}


def test_memory_and_batches_do_not_show(tmp_path, monkeypatch):
    """Within 24 MB the sort spills, and batches of 1000 ratings end between blocks of some 200."""
    rng = np.random.default_rng(1)
    given = (rng.integers(0, 2000, 200_000), rng.integers(0, 900, 200_000).astype(str), *rng.random((2, 200_000)))
    options = {"grid": 32, "test_fraction": 0.1, "weights": "4", "duplicates": "mean"}
    convert(given, tmp_path / "plenty.h5", **options)
    monkeypatch.setattr(database, "LEAST", 0)
    monkeypatch.setattr(blocks, "BATCH", 1000)
    header = convert(given, tmp_path / "tight.h5", memory=database.ALLOWANCE + (24 << 20), **options)
    assert header.duplicates > 1000
    assert checksum(tmp_path / "tight.h5") == checksum(tmp_path / "plenty.h5")


def hashed(seed, side, name):
    return int.from_bytes(hashlib.md5(f"{seed}:{side}:{name}".encode()).digest()[8:], "little"), str(name)


def naive(ratings, size, seed):
    """What `contents` has to give for distinct (user, item, rating), by loops."""
    users = sorted({u for u, _, _ in ratings}, key=lambda name: hashed(seed, "user", name))
    items = sorted({i for _, i, _ in ratings}, key=lambda name: hashed(seed, "item", name))
    cuts = [
        balanced_cuts(np.array([sum(r[at] == name for r in ratings) for name in ids]), size)
        for at, ids in enumerate((users, items))
    ]
    result = []
    for i in range(size):
        for j in range(size):
            rows, cols = users[cuts[0][i] : cuts[0][i + 1]], items[cuts[1][j] : cuts[1][j + 1]]
            inside = [r for r in ratings if r[0] in rows and r[1] in cols]
            inside.sort(key=lambda r: (rows.index(r[0]), cols.index(r[1])))
            places = [(rows.index(u), cols.index(v)) for u, v, _ in inside]
            result += [(i, j, *inside[n]) for n in twins.spread(places)]
    return users, items, result


NAMES = st.one_of(st.integers(-20, 20), st.text("aé0 ,", min_size=1, max_size=3))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    ratings=st.lists(st.tuples(NAMES, NAMES, st.floats(-1e3, 1e3, width=32)), min_size=1, max_size=60),
    size=st.integers(1, 6),
    seed=st.integers(0, 2**63 - 1),
)
def test_holds_exactly_the_given_ratings_in_the_promised_order(ratings, size, seed):
    last = {(str(u), str(i)): r for u, i, r in ratings}
    users, items = ({pair[side] for pair in last} for side in (0, 1))
    size = min(size, len(users), len(items))
    given = tuple(
        np.array(column, object) for column in zip(*((str(u), str(i), r) for u, i, r in ratings), strict=True)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.h5"
        header = convert((given[0], given[1], given[2].astype(np.float64)), path, grid=size, seed=seed)
        found = contents(path)
        with BlockedFile(path) as file:
            ids = [names(file, side) for side in ("rows", "cols")]
            orders = [file.order(side) for side in ("rows", "cols")]
    assert (header.ratings, header.duplicates) == (len(last), len(ratings) - len(last))
    assert header.mean == pytest.approx(statistics.fmean(last.values()), abs=1e-9)
    assert header.deviation == pytest.approx(statistics.pstdev(last.values()), rel=1e-9, abs=1e-9)
    assert (header.minimum, header.maximum) == (min(last.values()), max(last.values()))
    for side, order in zip(ids, orders, strict=True):
        assert [side[at] for at in order] == sorted(
            side, key=lambda name: name if isinstance(name, int) else name.encode()
        )
    # With duplicates the cuts are weighed before they are settled, so the naive order needs them left out.
    if len(last) == len(ratings):
        rows, cols, expected = naive([(u, i, r) for (u, i), r in last.items()], size, seed)
        assert [list(map(str, side)) for side in ids] == [rows, cols]
        assert [(i, j, str(u), str(v), r) for i, j, u, v, r in found] == expected
    assert {(str(u), str(i)): r for *_, u, i, r in found} == last


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400), st.integers(1, 60), st.integers(1, 60), st.integers(0, 99))
def test_the_order_inside_a_block_is_that_of_the_twin(count, rows, cols, seed):
    cells = np.sort(np.random.default_rng(seed).choice(rows * cols, min(count, rows * cols), replace=False))
    row, col = np.divmod(cells, cols)
    assert spread(row, col).tolist() == twins.spread(list(zip(row.tolist(), col.tolist(), strict=True)))


def test_lines_of_a_block_hold_distinct_rows_and_columns():
    rng = np.random.default_rng(0)
    popularity = 1 / (10 + np.arange(300)) ** 0.8
    cells = np.unique(rng.integers(0, 500, 9000) * 300 + rng.choice(300, 9000, p=popularity / popularity.sum()))
    row, col = np.divmod(cells, 300)
    order = spread(row, col)
    assert sorted(order.tolist()) == list(range(len(cells)))
    lines = len(order) // 16
    for side in (row, col):
        line = np.sort(side[order[: lines * 16]].reshape(lines, 16), axis=1)
        assert (line[:, 1:] == line[:, :-1]).any(axis=1).mean() < 0.03


def test_ids_are_kept_as_given(tmp_path):
    users = ["007", "7", "+7", "é" * 512, " x", "x"]
    convert((np.array(users), np.arange(6) - 3, np.ones(6)), tmp_path / "out.h5")
    with BlockedFile(tmp_path / "out.h5") as file:
        assert sorted(names(file, "rows")) == sorted(users)
        assert file.ids("rows").dtype == "S1024"
        assert sorted(names(file, "cols")) == [-3, -2, -1, 0, 1, 2]
        assert file.ids("cols").dtype == np.int64


def test_one_odd_id_in_the_test_part_makes_all_ids_of_its_column_strings(tmp_path):
    convert((np.arange(3), np.arange(3), np.ones(3)), tmp_path / "out.h5", test=(["1", "x"], [1, 1], [1.0, 2.0]))
    with BlockedFile(tmp_path / "out.h5") as file:
        assert sorted(names(file, "rows")) == ["0", "1", "2"]
        assert sorted(names(file, "cols")) == [0, 1, 2]


@pytest.mark.parametrize("late", ["x7", "007", str(2**63)])
def test_ids_that_turn_out_to_be_text(tmp_path, triples, late):
    """However many integers came before them, of which source and type, the file is that of ids that are all text."""
    users, items, ratings = triples
    odd = (np.array(["5", late]), np.array([3, 4]), np.array([1.0, 2.0]))
    whole = tuple(np.concatenate(pair) for pair in zip((users.astype(str), items, ratings), odd, strict=True))
    options = {"grid": 4, "duplicates": "mean", "test_fraction": 0.2}
    convert(whole, tmp_path / "text.h5", **options)
    for kind in ("csv", "parquet", "pandas"):
        (tmp_path / kind).mkdir()
        source = as_kind(kind, triples, tmp_path / kind)
        convert([source, odd], tmp_path / "late.h5", force=True, **options)
        assert checksum(tmp_path / "late.h5") == checksum(tmp_path / "text.h5")
    (tmp_path / "one.csv").write_text(lines(whole))
    convert(tmp_path / "one.csv", tmp_path / "late.h5", force=True, **options)
    assert checksum(tmp_path / "late.h5") == checksum(tmp_path / "text.h5")
    with BlockedFile(tmp_path / "text.h5") as file:
        assert file.ids("rows").dtype.kind == "S"
        assert file.ids("cols").dtype == np.int64


TWICE = (np.array([1, 2, 1, 3, 1, 2]), np.array([1, 2, 1, 3, 1, 2]), np.array([5.0, 1.0, 1.0, 2.0, 3.0, 2.0]))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("last", {1: 3.0, 2: 2.0, 3: 2.0}), ("mean", {1: 3.0, 2: 1.5, 3: 2.0})],
)
@pytest.mark.parametrize("size", [1, 3])
def test_duplicates_are_settled(tmp_path, policy, expected, size):
    header = convert(TWICE, tmp_path / "out.h5", grid=size, duplicates=policy, test=TWICE)
    assert (header.ratings, header.test_ratings, header.duplicates) == (3, 3, 6)
    assert header.mean == pytest.approx(sum(expected.values()) / 3)
    for part in ("train", "test"):
        assert {user: rating for *_, user, _, rating in contents(tmp_path / "out.h5", part)} == expected


def test_duplicates_are_refused(tmp_path):
    with pytest.raises(RatingsError, match=r"training ratings have user '[12]' with item '[12]' .*\(3 such duplicates"):
        convert(TWICE, tmp_path / "out.h5", duplicates="error")
    once = tuple(column[:2] for column in TWICE)
    with pytest.raises(RatingsError, match=r"the test ratings have user 'new' with item '9' .*\(1 such duplicates"):
        convert(once, tmp_path / "out.h5", duplicates="error", test=(["new"] * 2, [9, 9], [1.0, 2.0]))
    assert os.listdir(tmp_path) == []
    assert convert(once, tmp_path / "out.h5", duplicates="error", test=once).duplicates == 0


def test_unknown_ids_of_the_test_part(tmp_path):
    """They do not enlarge the matrix, are never taken for each other, and lie where `Strip` says."""
    users, items = np.arange(12), np.arange(12)
    test = (["3", "a", "a", "b", "4", "b", "a"], ["4", "5", "5", "5", "x", "x", "y"], np.arange(1.0, 8.0))
    header = convert((users, items, np.ones(12)), tmp_path / "out.h5", grid=4, test=test)
    assert (header.rows, header.cols, header.ratings) == (12, 12, 12)
    assert (header.test_ratings, header.test_unknown, header.duplicates) == (6, 5, 1)
    found = contents(tmp_path / "out.h5", "test")
    expected = [
        ("3", "4", 1.0),
        (None, "5", 3.0),
        (None, "5", 4.0),
        ("4", None, 5.0),
        (None, None, 6.0),
        (None, None, 7.0),
    ]
    assert sorted((rating, user, item) for *_, user, item, rating in found) == [(r, u, i) for u, i, r in expected]
    home = {(u, i): (k, j) for k, j, u, i, _ in contents(tmp_path / "out.h5")}
    rows, cols = {u: k for (u, _), (k, _) in home.items()}, {i: j for (_, i), (_, j) in home.items()}
    for k, j, user, item, _ in found:
        other = 0 if user is None and item is None else None
        assert k == (rows[user] if user is not None else other if other is not None else cols[item])
        assert j == (cols[item] if item is not None else other if other is not None else rows[user])


def test_the_test_part_is_sorted_and_not_interleaved(tmp_path, triples):
    header = convert(triples, tmp_path / "out.h5", grid=1, test_fraction=0.5)
    with BlockedFile(tmp_path / "out.h5") as file:
        strip = file.strip("test", 0, 1)
    places = list(zip(strip.rows.tolist(), strip.cols.tolist(), strict=True))
    assert len(places) == header.test_ratings > 200
    assert places == sorted(places)


def test_held_out_share_depends_on_seed_and_ids_alone(tmp_path, triples):
    def held(given, **options):
        convert(given, tmp_path / "out.h5", test_fraction=0.3, force=True, **options)
        return {(u, i) for *_, u, i, _ in contents(tmp_path / "out.h5", "test")}

    expected = {
        (u, i)
        for u, i in zip(*(column.tolist() for column in triples[:2]), strict=True)
        if hashed(7, "test", f"{u}:{i}")[0] < 0.3 * 2**64
    }
    assert held(triples, seed=7, grid=1) == expected
    assert 0.2 < len(expected) / 600 < 0.4
    shuffled = tuple(column[::-1] for column in triples)
    assert held(shuffled, seed=7, grid=9) == expected
    assert held(triples, seed=8) != expected


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"test_fraction": 1.0}, "test_fraction=1.0 is out of range"),
        ({"test_fraction": -0.1}, "test_fraction=-0.1 is out of range"),
        ({"test_fraction": float("nan")}, "test_fraction=nan is out of range"),
        ({"test_fraction": 0.1, "test": ([1], [1], [1])}, "exclude each other"),
        ({"grid": 0}, "grid=0 is out of range"),
        ({"grid": 31}, "grid=31 is too fine for 40 rows and 30 columns; take at most 30"),
        ({"seed": -1}, "seed=-1 is out of range"),
        ({"duplicates": "first"}, "duplicates='first' is none of error, last, mean"),
        ({"memory": 1 << 20}, "memory=1M is too small for this conversion, which needs at least 416M"),
        ({"columns": ["1", "2"]}, r"columns=\['1', '2'\] must be"),
        ({"columns": ["1"], "implicit": True}, r"columns=\['1'\] must be"),
        ({"weights": np.ones(600)}, "weights is a ndarray; name a column of the source"),
    ],
)
def test_options_out_of_range(tmp_path, triples, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        convert(triples, tmp_path / "out.h5", **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"grid": 3}, "grid=3 is too coarse: a block would hold 1[3-9] user ids, and can hold 12; take more blocks"),
        (
            {"test": (np.arange(100, 113), *np.ones((2, 13), int))},
            "13 user ids have held-out ratings only, more than the 12",
        ),
    ],
)
def test_more_ids_than_local_indices_can_tell_apart(tmp_path, monkeypatch, triples, options, sentence):
    """Which are 2^31 else."""
    monkeypatch.setattr("mfpar.ratings.ordering.UNKNOWN", 12)
    with pytest.raises(ConfigError, match=sentence):
        convert(triples, tmp_path / "out.h5", **{"grid": 8, **options})
    assert os.listdir(tmp_path) == []


def test_no_training_ratings_left(tmp_path):
    with pytest.raises(RatingsError, match="no training ratings are left: all 1 are held out"):
        convert(([1], [1], [1.0]), tmp_path / "out.h5", test_fraction=0.999999)


def test_a_block_that_does_not_fit_the_memory(tmp_path, monkeypatch, triples):
    monkeypatch.setattr("mfpar.ratings.convert.RATING_BYTES", 1 << 30)
    monkeypatch.setattr("mfpar.ratings.convert.BATCH", 1)
    with pytest.raises(ConfigError, match="too small"):
        convert(triples, tmp_path / "out.h5", grid=1, memory=1 << 30)
    assert os.listdir(tmp_path) == []


def test_an_output_that_exists_is_kept(tmp_path, triples):
    (tmp_path / "out.h5").write_text("mine")
    with pytest.raises(OutputExistsError):
        convert(triples, tmp_path / "out.h5")
    with pytest.raises(RatingsError):
        convert(([1], [1], [np.inf]), tmp_path / "out.h5", force=True)
    assert (tmp_path / "out.h5").read_text() == "mine"
    assert os.listdir(tmp_path) == ["out.h5"]
    convert(triples, tmp_path / "out.h5", force=True)
    assert os.listdir(tmp_path) == ["out.h5"]
    with BlockedFile(tmp_path / "out.h5") as file:
        assert file.header.ratings == 600


def test_a_missing_folder(tmp_path, triples):
    with pytest.raises(StorageError, match="does not exist"):
        convert(triples, tmp_path / "no" / "out.h5")


FULL = """
import resource, signal, sys
import numpy as np
from mfpar.errors import StorageError
from mfpar.ratings.convert import convert
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
given = (np.arange(90_000) % 3000, np.arange(90_000) // 40, np.ones(90_000))
for limit in (0, 5000, 500_000):  # bytes a file may have: what a full disk is like at different moments
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        convert(given, sys.argv[1])
    except StorageError as error:
        print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits files as Linux does")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    """In a process of its own, with pipes for its output: the limit is for its life, and HDF5 may well crash."""
    path = tmp_path / "out.h5"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    sentence = f"{path}: could not be written: File too large; nothing was left behind"
    assert (done.returncode, done.stderr, done.stdout.splitlines()) == (0, "", [sentence] * 3)
    assert os.listdir(tmp_path) == []
