"""The reading side of a model: opening, predictions, recommendations, measures of fit, export."""

import hashlib
import itertools
import json
import shutil
import sys
import types
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import write_ids

from mfpar.blockfile import Header, digest
from mfpar.errors import ConfigError, FormatError, OutputExistsError, StorageError, UnknownIdError
from mfpar.grid import Grid, span
from mfpar.model import model as model_module
from mfpar.model import scorer, topk
from mfpar.model.export import export
from mfpar.model.opening import TABLES, checksum_of, open_model
from mfpar.model.table import Ids, Table
from mfpar.ratings.blockwriter import BlockedWriter

M, N, K, G = 23, 17, 5, 4
ROW_CUTS, COL_CUTS = np.array([0, 5, 11, 20, 23]), np.array([0, 4, 8, 13, 17])
MEAN = 3.5


class Dense:
    """A small model in memory: what every answer is compared with."""

    def __init__(self, kind: str = "int", biases: bool = True):
        rng = np.random.default_rng(7)
        self.P, self.Q = rng.normal(size=(M, K)).astype(np.float32), rng.normal(size=(N, K)).astype(np.float32)
        self.row_bias, self.col_bias = (rng.normal(size=count).astype(np.float32) * biases for count in (M, N))
        numbers = [rng.permutation(1000)[:count] * 7 - 30 for count in (M, N)]
        if kind == "str":
            self.row_ids, self.col_ids = (np.array([f"ü{i}" if i % 2 else str(i) for i in ids]) for ids in numbers)
        else:
            self.row_ids, self.col_ids = numbers
        self.values = MEAN + self.row_bias[:, None].astype(float) + self.col_bias + self.P.astype(float) @ self.Q.T

    def stored(self, name: str) -> np.ndarray:
        """A table as it goes into a file."""
        table = getattr(self, name)
        return np.char.encode(table, "utf-8") if table.dtype.kind == "U" else table


def write_table(file: h5py.File, name: str, values: np.ndarray) -> None:
    dtype = h5py.string_dtype("utf-8", values.dtype.itemsize) if values.dtype.kind == "S" else values.dtype
    file.create_dataset(name, data=values.astype(dtype))


def write_model(path: Path, dense: Dense, shards: int, **attributes: object) -> Path:
    """Write the format with plain h5py, as one file or as a master over shards of whole blocks."""
    tables = {name: dense.stored(name) for name in TABLES}
    with h5py.File(path, "w", libver="latest") as file:
        for name in TABLES:
            values = tables[name]
            if shards == 1:
                write_table(file, name, values)
                continue
            dtype = h5py.string_dtype("utf-8", values.dtype.itemsize) if values.dtype.kind == "S" else values.dtype
            layout = h5py.VirtualLayout(values.shape, dtype)
            cuts = COL_CUTS if name in ("Q", "col_bias", "col_ids") else ROW_CUTS
            for shard in range(shards):
                first, last = (cuts[block] for block in span(G, shards, shard))
                relative = f"{path.stem}.shards/{shard}.h5"
                target = path.parent / relative
                target.parent.mkdir(exist_ok=True)
                with h5py.File(target, "a", libver="latest") as part:
                    write_table(part, name, values[first:last])
                layout[first:last] = h5py.VirtualSource(relative, name, values[first:last].shape, dtype)
            file.create_virtual_dataset(name, layout, fillvalue=np.nan if values.dtype.kind == "f" else None)
        file["row_cuts"], file["col_cuts"] = ROW_CUTS, COL_CUTS
        for side, factors, cuts in (("row", "P", ROW_CUTS), ("col", "Q", COL_CUTS)):
            inside = [slice(a, b) for a, b in itertools.pairwise(cuts)]
            file[f"{side}_checksums"] = [digest(tables[factors][b], tables[f"{side}_bias"][b]) for b in inside]
            file[f"{side}_id_checksums"] = [digest(tables[f"{side}_ids"][b]) for b in inside]
        fingerprint = hashlib.sha256(file["row_checksums"][()].tobytes() + file["col_checksums"][()].tobytes())
        file.attrs.update(
            {
                "format": "mfpar model",
                "version": 3,
                "factors": K,
                "biases": 1,
                "mean": MEAN,
                "base": MEAN,
                "ratings": 100,
                "loss": "squared",
                "link": "identity",
                "clip": 0,
                "minimum": 1.0,
                "maximum": 5.0,
                "fingerprint": fingerprint.hexdigest(),
                "data_checksum": "cd" * 32,
                "config": json.dumps({"model": {"factors": K}, "train": {"epochs": 2}}),
                "data_path": "/nowhere/r.h5",
                "curve": json.dumps([{"epoch": 1, "test_rmse": None}]),
                "versions": json.dumps({"mfpar": "0"}),
                **attributes,
            }
        )
        file.attrs["checksum"] = checksum_of(file.attrs, file)
    return path


def write_blocked(path: Path, row_ids: np.ndarray, col_ids: np.ndarray, grid: Grid, parts: dict) -> str:
    """Write a blocked file of (rows, cols, values) by part; an index equal to the side's length is an unknown id."""
    writer = BlockedWriter(path, grid)
    for part, (rows, cols, values) in parts.items():
        # The unknown belong to the last block of their side here, where their index is one past its last.
        i = np.minimum(np.searchsorted(grid.row_cuts, rows, side="right") - 1, grid.size - 1)
        j = np.minimum(np.searchsorted(grid.col_cuts, cols, side="right") - 1, grid.size - 1)
        for block in range(grid.size**2):
            inside = i * grid.size + j == block
            a, b = divmod(block, grid.size)
            writer.append(part, a, b, rows[inside] - grid.row_cuts[a], cols[inside] - grid.col_cuts[b], values[inside])
    for at, (side, ids) in enumerate((("rows", row_ids), ("cols", col_ids))):
        ids = np.char.encode(ids, "utf-8") if ids.dtype.kind == "U" else ids
        write_ids(writer, side, ids, np.bincount(parts["train"][at], minlength=len(ids)))
    train, test = len(parts["train"][0]), len(parts["test"][0])
    return writer.finish(Header(len(row_ids), len(col_ids), train, test, 0, 0, 0, 1, MEAN, 1.0, 1.0, 5.0))


def some_ratings(m: int, n: int, count: int, seed: int, unknown: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    cells = rng.permutation((m + unknown) * (n + unknown))[:count]
    rows, cols = np.divmod(cells, n + unknown)
    return rows, cols, rng.integers(1, 6, count).astype(np.float32)


@pytest.fixture(params=["int", "str"])
def dense(request):
    return Dense(request.param)


@pytest.fixture(params=[1, 3])
def model(request, dense, tmp_path):
    return open_model(write_model(tmp_path / "model.h5", dense, request.param))


def test_opening_maps_every_table_and_reads_the_header(model, dense):
    for name in ("P", "Q", "row_bias", "col_bias"):
        np.testing.assert_array_equal(np.asarray(getattr(model, name)), getattr(dense, name))
    np.testing.assert_array_equal(model.row_ids.take(np.arange(M)), dense.row_ids)
    np.testing.assert_array_equal(np.concatenate(list(model.col_ids.chunks(3))), dense.col_ids)
    assert model.shape == (M, N)
    assert (model.factors, model.mean, model.minimum, model.maximum, model.ratings) == (K, MEAN, 1.0, 5.0, 100)
    assert model.config["train"] == {"epochs": 2}
    assert model.curve == [{"epoch": 1, "test_rmse": None}]
    assert (len(model.fingerprint), model.data_checksum, model.biases) == (64, "cd" * 32, True)
    np.testing.assert_array_equal(model.grid.row_cuts, ROW_CUTS)


def test_virtual_master_reads_the_same_by_plain_h5py(dense, tmp_path):
    with h5py.File(write_model(tmp_path / "model.h5", dense, 3)) as file:
        np.testing.assert_array_equal(file["P"][()], dense.P)


def test_table_gathers_and_scans_across_pieces():
    whole = np.arange(60, dtype=np.float32).reshape(20, 3)
    table = Table([whole[:7], whole[7:7], whole[7:8], whole[8:]])
    indices = np.array([19, 0, 7, 7, 6, 8])
    np.testing.assert_array_equal(table.take(indices), whole[indices])
    assert [len(chunk) for chunk in table.chunks(6)] == [6, 6, 6, 2]
    np.testing.assert_array_equal(np.concatenate(list(table.chunks(6))), whole)
    assert np.shares_memory(table.read(0, 7), whole)
    assert table.read(7, 7).shape == (0, 3)


def test_rows_are_read_aligned():
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    unaligned = np.frombuffer(b"x" + values.tobytes(), np.float32, 6, offset=1).reshape(3, 2)
    assert not unaligned.flags.aligned
    read = Table([unaligned]).read(1, 3)
    assert read.flags.aligned
    np.testing.assert_array_equal(read, values[1:])


def test_ratings_are_predicted_in_the_order_asked(model, dense):
    rows, cols = np.random.default_rng(0).integers(0, (M, N), (500, 2)).T
    predictions = model.predict(dense.row_ids[rows], dense.col_ids[cols])
    assert predictions.dtype == np.float32
    np.testing.assert_allclose(predictions, dense.values[rows, cols], rtol=1e-5, atol=1e-5)


def test_portions_do_not_change_predictions(model, dense, monkeypatch):
    rows, cols = np.random.default_rng(0).integers(0, (M, N), (50, 2)).T
    whole = model.predict(dense.row_ids[rows], dense.col_ids[cols])
    monkeypatch.setattr(scorer, "WORKING", 8 * K * 7)
    np.testing.assert_array_equal(model.predict(dense.row_ids[rows], dense.col_ids[cols]), whole)


def test_unknown_ids_get_the_mean_and_the_known_bias(model, dense):
    known, item = dense.row_ids[3].item(), dense.col_ids[2].item()
    predictions, unknown = model.predict_known(
        [known, "stranger", "stranger", known], [item, item, "nothing", "nothing"]
    )
    expected = [dense.values[3, 2], MEAN + dense.col_bias[2], MEAN, MEAN + dense.row_bias[3]]
    np.testing.assert_allclose(predictions, expected, rtol=1e-5)
    assert unknown.tolist() == [False, True, True, True]


def test_one_user_goes_with_many_items(model, dense):
    one = model.predict(dense.row_ids[4].item(), dense.col_ids)
    np.testing.assert_allclose(one, dense.values[4], rtol=1e-5, atol=1e-5)
    assert model.predict(dense.row_ids[4].item(), dense.col_ids[0].item()).shape == (1,)
    assert model.predict([], []).shape == (0,)


def test_numbers_of_users_and_items_must_agree(model):
    with pytest.raises(ConfigError, match="3 users and 2 items"):
        model.predict([1, 2, 3], [1, 2])
    with pytest.raises(ConfigError, match="2 dimensions"):
        model.predict([[1, 2]], [1])
    with pytest.raises(ConfigError, match="bool"):
        model.predict([True], [1])


def test_integers_are_found_by_text_and_whole_floats():
    ids = Ids(np.array([12, -5, 7, 2**62]))
    assert (
        ids.find(np.array(["12", "-5", str(2**62), "012", "1_2", "x", "", str(2**64)])).tolist() == [0, 1, 3] + [-1] * 5
    )
    assert ids.find(np.array(["7", "12"])).tolist() == [2, 0]
    assert ids.find(np.array([12.0, 12.5, np.nan, np.inf])).tolist() == [0, -1, -1, -1]
    assert ids.find(np.array([12, 2**64 - 5], np.uint64)).tolist() == [0, -1]
    assert ids.find(np.array([b"7"])).tolist() == [2]
    assert ids.take(np.array([1, 0])).tolist() == [-5, 12]


def test_strings_are_found_by_number_bytes_and_text_of_any_width():
    ids = Ids(np.char.encode(["12", "é", "abc"], "utf-8"))
    assert ids.find(np.array([12, 13])).tolist() == [0, -1]
    assert ids.find(np.array([12.0])).tolist() == [0]
    assert ids.find(np.array(["é", "abcd", "abc", "ab", "\udcff"])).tolist() == [1, -1, 2, -1, -1]
    assert ids.find(np.array([b"abc", b"abc1"])).tolist() == [2, -1]
    assert ids.take(np.array([1, 2])).tolist() == ["é", "abc"]


def test_no_id_is_found_in_an_empty_table():
    assert Ids(np.empty(0, np.int64)).find(np.array([1, 2])).tolist() == [-1, -1]


def brute_force(values: np.ndarray, n: int, left_out: np.ndarray) -> list[int]:
    order = sorted((j for j in range(len(values)) if j not in set(left_out.tolist())), key=lambda j: (-values[j], j))
    return order[:n]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_best_columns_equal_brute_force_with_ties(data):
    columns, k = data.draw(st.integers(1, 40)), data.draw(st.sampled_from([1, 3, 8, 19]))
    n, scan = data.draw(st.integers(1, 45)), data.draw(st.integers(1, 50))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    # Few distinct columns: most scores tie, and only if each is summed alike wherever it lies.
    distinct = rng.normal(size=(4, k)).astype(np.float32)
    Q, bias = distinct[rng.integers(0, 4, columns)], rng.integers(0, 2, columns).astype(np.float32)
    P, row_bias = rng.normal(size=(2, k)).astype(np.float32), np.float32([0.5, -1])
    seen = [rng.integers(-1, columns, rng.integers(0, columns + 1)) for _ in P]
    cut = data.draw(st.integers(0, columns))
    tables = Table([Q[:cut], Q[cut:]]), Table([bias])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "SCAN", 4 * k * scan)
        found, values = topk.best(P, row_bias, *tables, MEAN, n, seen)
    for u in range(2):
        exact = topk.scores(P[u], Q, row_bias[u] + bias.astype(float), MEAN)
        expected = brute_force(exact, n, seen[u])
        assert found[u].tolist() == expected + [-1] * (n - len(expected))
        np.testing.assert_array_equal(values[u, : len(expected)], exact[expected])
        assert np.isnan(values[u, len(expected) :]).all()
        dense = MEAN + float(row_bias[u]) + bias + Q.astype(float) @ P[u]
        np.testing.assert_allclose(exact, dense, rtol=1e-4, atol=1e-5)


def test_recommendations_for_one_user(model, dense):
    items, values = model.recommend(dense.row_ids[9].item(), 6)
    best = brute_force(dense.values[9], 6, np.array([]))
    assert items.tolist() == dense.col_ids[best].tolist()
    np.testing.assert_allclose(values, dense.values[9][best], rtol=1e-5)
    np.testing.assert_array_equal(values, model.predict(dense.row_ids[9].item(), items))
    assert len(model.recommend(dense.row_ids[9].item(), 10**12)[0]) == N


def test_recommendations_for_several_users_keep_their_order(model, dense, monkeypatch):
    monkeypatch.setattr(model_module, "USERS", 2)
    users = dense.row_ids[[20, 1, 8, 1, 22]]
    items, values = model.recommend(users, 3)
    assert items.shape == values.shape == (5, 3)
    for user, row, scored in zip(users, items, values, strict=True):
        alone = model.recommend(user.item(), 3)
        np.testing.assert_array_equal(row, alone[0])
        np.testing.assert_array_equal(scored, alone[1])


def test_items_given_are_left_out_and_short_rows_are_padded(model, dense):
    left = [2, 11]
    out = dense.col_ids[[j for j in range(N) if j not in left]]
    items, values = model.recommend(dense.row_ids[[0, 5]], 4, seen=out)
    for u, row in enumerate((0, 5)):
        best = sorted(left, key=lambda j: -dense.values[row, j])
        assert items[u].tolist() == dense.col_ids[best].tolist() + ["" if model.col_ids.text else -1] * 2
        assert np.isnan(values[u]).tolist() == [False, False, True, True]
    assert len(model.recommend(dense.row_ids[0].item(), 4, seen=out)[0]) == 2


def test_recommending_to_a_stranger_or_nothing_is_refused(model, dense):
    with pytest.raises(UnknownIdError, match="user 'stranger'"):
        model.recommend([dense.row_ids[0], "stranger"])
    with pytest.raises(ConfigError, match="n=0"):
        model.recommend(dense.row_ids[0].item(), 0)
    with pytest.raises(StorageError, match="no such file"):
        model.recommend(dense.row_ids[0].item(), seen="missing.h5")


@pytest.fixture
def blocked(dense, tmp_path):
    """A blocked file and the model trained on it."""
    parts = {"train": some_ratings(M, N, 150, 1), "test": some_ratings(M, N, 60, 2, unknown=1)}
    path = tmp_path / "ratings.h5"
    checksum = write_blocked(path, dense.row_ids, dense.col_ids, Grid(ROW_CUTS, COL_CUTS), parts)
    where = {"data_checksum": checksum, "data_path": str(path)}
    return path, parts, open_model(write_model(tmp_path / "model.h5", dense, 3, **where))


@pytest.fixture
def other(dense, tmp_path):
    """A blocked file in another order, with rows and columns that the model does not know, and without some it does."""
    rng = np.random.default_rng(5)
    new = np.array(["new1", "new2"]) if dense.row_ids.dtype.kind == "U" else np.array([10**6, 10**6 + 1])
    row_ids = rng.permutation(np.concatenate((dense.row_ids[4:], new)))
    col_ids = rng.permutation(np.concatenate((dense.col_ids[3:], new)))
    m, n = len(row_ids), len(col_ids)
    parts = {"train": some_ratings(m, n, 120, 3), "test": some_ratings(m, n, 50, 4, unknown=1)}
    path = tmp_path / "other.h5"
    write_blocked(path, row_ids, col_ids, Grid(np.array([0, 9, m]), np.array([0, 2, n])), parts)
    return path, parts, row_ids, col_ids


def test_what_a_user_has_rated_is_left_out(blocked, dense, monkeypatch):
    monkeypatch.setattr(model_module, "USERS", 3)
    path, parts, model = blocked
    rows, cols, _ = parts["train"]
    items, _ = model.recommend(dense.row_ids, N, seen=path)
    for i in range(M):
        expected = brute_force(dense.values[i], N, cols[rows == i])
        assert items[i].tolist()[: len(expected)] == dense.col_ids[expected].tolist()
        alone, _ = model.recommend(dense.row_ids[i].item(), 4, seen=str(path))
        assert alone.tolist() == dense.col_ids[expected[:4]].tolist()


def test_what_a_user_has_rated_in_another_file_is_left_out_by_id(blocked, other, dense):
    path, parts, row_ids, col_ids = other
    rows, cols, _ = parts["train"]
    items, _ = blocked[2].recommend(dense.row_ids, N, seen=path)
    for i in range(M):
        rated = col_ids[cols[row_ids[rows] == dense.row_ids[i]]]
        expected = brute_force(dense.values[i], N, np.flatnonzero(np.isin(dense.col_ids, rated)))
        assert items[i].tolist()[: len(expected)] == dense.col_ids[expected].tolist()


def expected_scores(dense: Dense, users: list, items: list, values: np.ndarray) -> tuple[float, float, int, int]:
    """Plain loops over the ids of the ratings."""
    rows = {id_: i for i, id_ in enumerate(dense.row_ids.tolist())}
    cols = {id_: j for j, id_ in enumerate(dense.col_ids.tolist())}
    errors, unknown = [], 0
    for user, item, value in zip(users, items, values.tolist(), strict=True):
        i, j = rows.get(user), cols.get(item)
        z = MEAN + (0 if i is None else dense.row_bias[i]) + (0 if j is None else dense.col_bias[j])
        z += 0 if i is None or j is None else dense.P[i] @ dense.Q[j]
        unknown += i is None or j is None
        errors.append(value - float(z))
    return np.sqrt(np.mean(np.square(errors))), np.mean(np.abs(errors)), len(errors), unknown


def assert_scores(scores, expected):
    assert (scores.rmse, scores.mae) == pytest.approx(expected[:2], rel=1e-5)
    assert (scores.count, scores.unknown) == expected[2:]


def test_evaluation_on_the_held_out_part(blocked, dense, monkeypatch):
    monkeypatch.setattr(scorer, "WORKING", 8 * K * 7)
    path, parts, model = blocked
    rows, cols, values = parts["test"]
    users = [*dense.row_ids.tolist(), None]
    items = [*dense.col_ids.tolist(), None]
    expected = expected_scores(dense, [users[i] for i in rows], [items[j] for j in cols], values)
    assert expected[3] > 0
    assert_scores(model.evaluate(), expected)
    assert_scores(model.evaluate(path), expected)
    assert model.rmse() == model.evaluate(str(path)).rmse


def test_evaluation_on_the_held_out_part_of_another_file_goes_by_id(blocked, other, dense):
    path, parts, row_ids, col_ids = other
    rows, cols, values = parts["test"]
    users, items = [*row_ids.tolist(), None], [*col_ids.tolist(), None]
    expected = expected_scores(dense, [users[i] for i in rows], [items[j] for j in cols], values)
    assert_scores(blocked[2].evaluate(path), expected)


def test_evaluation_on_triples(blocked, dense, monkeypatch):
    users = [*dense.row_ids[:5].tolist(), "x"]
    items, values = [*dense.col_ids[5:10].tolist(), "y"], np.array([1, 2, 3, 4, 5, 3.5])
    expected = expected_scores(dense, users, items, values)
    assert blocked[2].rmse(users, items, values) == pytest.approx(expected[0], rel=1e-5)
    asked = []

    def read_chunks(sources, columns=None, memory=None):
        asked.append((sources, columns))
        yield np.array(users[:2]), np.array(items[:2]), values[:2]
        yield np.array(users[2:]), np.array(items[2:]), values[2:]

    monkeypatch.setitem(sys.modules, "mfpar.ratings", types.ModuleType("mfpar.ratings"))
    reading = types.ModuleType("mfpar.ratings.reading")
    reading.read_chunks = read_chunks
    monkeypatch.setitem(sys.modules, "mfpar.ratings.reading", reading)
    assert_scores(blocked[2].evaluate("some.csv", "a,b,c"), expected)
    assert asked == [("some.csv", "a,b,c")]
    with pytest.raises(ConfigError, match=r"\[2, 1, 2\]"):
        blocked[2].rmse([1, 2], [1], [1, 2])
    with pytest.raises(ConfigError, match="no ratings"):
        blocked[2].rmse([], [], [])


def test_the_training_file_is_looked_for_beside_the_model(blocked, tmp_path):
    path, _, model = blocked
    expected = model.evaluate()
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("model.h5", "model.shards", "ratings.h5"):
        shutil.move(tmp_path / name, moved / name)
    again = open_model(moved / "model.h5")
    assert again.evaluate() == expected
    # Another file of that name is no stand-in: its held-out ratings may have been trained on.
    write_blocked(
        path,
        np.arange(M),
        np.arange(N),
        Grid(ROW_CUTS, COL_CUTS),
        {p: some_ratings(M, N, 9, 9) for p in ("train", "test")},
    )
    assert again.evaluate() == expected
    (moved / "ratings.h5").unlink()
    with pytest.raises(ConfigError, match="neither at"):
        again.evaluate()


def test_a_blocked_file_without_held_out_ratings_is_refused(blocked, tmp_path):
    nothing = tuple(array[:0] for array in some_ratings(M, N, 1, 1))
    parts = {"train": some_ratings(M, N, 50, 1), "test": nothing}
    write_blocked(tmp_path / "train.h5", np.arange(M), np.arange(N), Grid(ROW_CUTS, COL_CUTS), parts)
    with pytest.raises(ConfigError, match="no held-out ratings"):
        blocked[2].evaluate(tmp_path / "train.h5")


def test_a_moved_folder_opens(dense, tmp_path):
    (tmp_path / "a").mkdir()
    write_model(tmp_path / "a" / "model.h5", dense, 3)
    shutil.move(tmp_path / "a", tmp_path / "b")
    (tmp_path / "link.h5").symlink_to(tmp_path / "b" / "model.h5")
    for path in (tmp_path / "b" / "model.h5", tmp_path / "link.h5"):
        np.testing.assert_array_equal(np.asarray(open_model(path).Q), dense.Q)


def test_a_missing_shard_is_named(dense, tmp_path):
    path = write_model(tmp_path / "model.h5", dense, 3)
    (tmp_path / "model.shards" / "1.h5").unlink()
    with h5py.File(path) as file:
        assert np.isnan(file["P"][()]).any()  # what HDF5 itself makes of it
    with pytest.raises(FormatError, match=r"model\.shards/1\.h5: .*missing"):
        open_model(path)


@pytest.mark.parametrize("name", ["model.h5", "model.shards/2.h5"])
def test_truncated_and_foreign_files_are_named(dense, tmp_path, name):
    path = write_model(tmp_path / "model.h5", dense, 3)
    damaged = tmp_path / name
    whole = damaged.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 25)):
        damaged.write_bytes(whole[:length])
        with pytest.raises(FormatError, match=damaged.name):
            open_model(path)
    damaged.write_bytes(b"user,item,rating\n1,2,3\n" * 99)
    with pytest.raises(FormatError, match=f"{damaged.name}: is not an HDF5 file"):
        open_model(path)


def test_what_is_no_model_is_refused(blocked, dense, tmp_path):
    with pytest.raises(StorageError, match="no such file"):
        open_model(tmp_path / "missing.h5")
    with pytest.raises(FormatError, match="not a model"):
        open_model(blocked[0])
    with pytest.raises(FormatError, match="version 4"):
        open_model(write_model(tmp_path / "new.h5", dense, 1, version=4))
    with pytest.raises(FormatError, match=r"P is float32 \(23, 5\), expected \(23, 6\)"):
        open_model(write_model(tmp_path / "shape.h5", dense, 1, factors=6))
    with pytest.raises(FormatError, match="header"):
        open_model(write_model(tmp_path / "curve.h5", dense, 1, curve="[{"))


def test_a_shard_of_another_model_is_refused(dense, tmp_path):
    path = write_model(tmp_path / "model.h5", dense, 3)
    with h5py.File(tmp_path / "model.shards" / "0.h5", "a") as file:
        del file["Q"]
        file["Q"] = np.zeros((8, K + 1), np.float32)
    with pytest.raises(FormatError, match=r"0\.h5: .*Q is float32"):
        open_model(path)
    with h5py.File(tmp_path / "model.shards" / "0.h5", "a") as file:
        del file["Q"]
        file.create_dataset("Q", (8, K), np.float32, chunks=(2, K))
    with pytest.raises(FormatError, match=r"0\.h5: Q was never written"):
        open_model(path)


def test_shards_that_leave_a_gap_are_refused(dense, tmp_path):
    path = write_model(tmp_path / "model.h5", dense, 1)
    with h5py.File(path, "a") as file:
        file.move("P", "elsewhere")
        for first, last in ((3, M), (0, M - 1)):
            layout = h5py.VirtualLayout((M, K), np.float32)
            layout[first:last] = h5py.VirtualSource(".", "elsewhere", (M, K), np.float32)[first:last]
            file.create_virtual_dataset(f"P{first}", layout)
    for name, message in (("P3", "gap"), ("P0", "22 of the 23")):
        with h5py.File(path, "a") as file:
            file.move(name, "P")
        with pytest.raises(FormatError, match=message):
            open_model(path)
        with h5py.File(path, "a") as file:
            del file["P"]


def test_a_shard_may_hold_more_rows_than_it_lends(dense, tmp_path):
    path = write_model(tmp_path / "model.h5", dense, 1)
    with h5py.File(path, "a") as file:
        del file["P"]
        file["elsewhere"] = np.concatenate((dense.P[:2], dense.P, dense.P[:2]))
        layout = h5py.VirtualLayout((M, K), np.float32)
        layout[:] = h5py.VirtualSource(".", "elsewhere", (M + 4, K), np.float32)[2 : M + 2]
        file.create_virtual_dataset("P", layout)
    np.testing.assert_array_equal(np.asarray(open_model(path).P), dense.P)


def test_damage_is_found_by_verifying(model, tmp_path):
    model.verify()
    with h5py.File(tmp_path / "model.h5", "a") as file:
        file["Q"][9, 1] += 1
    with pytest.raises(FormatError, match="column-block 2"):
        open_model(tmp_path / "model.h5").verify()
    with h5py.File(tmp_path / "model.h5", "a") as file:
        file["col_checksums"][2] = digest(file["Q"][8:13], file["col_bias"][8:13])
        file.attrs["checksum"] = checksum_of(file.attrs, file)
    with pytest.raises(FormatError, match="fingerprint"):
        open_model(tmp_path / "model.h5").verify()


def test_a_shard_without_rows_is_mapped(dense, tmp_path):
    path = write_model(tmp_path / "model.h5", dense, 1)
    with h5py.File(path, "a") as file:
        del file["P"], file["row_bias"], file["row_ids"], file["row_cuts"]
        file["P"], file["row_bias"] = np.empty((0, K), np.float32), np.empty(0, np.float32)
        file["row_ids"], file["row_cuts"] = np.empty(0, np.int64), np.zeros(G + 1, np.int64)
        file.attrs["checksum"] = checksum_of(file.attrs, file)
    model = open_model(path)
    assert model.shape == (0, N)
    np.testing.assert_allclose(model.predict(7, dense.col_ids), MEAN + dense.col_bias, rtol=1e-6)


def test_export_round_trip(model, dense, tmp_path, monkeypatch):
    monkeypatch.setattr("mfpar.model.export.CHUNK", 64)
    export(model, tmp_path / "factors.npz")
    with np.load(tmp_path / "factors.npz", allow_pickle=False) as archive:
        assert set(archive) == {*TABLES, "mean", "base"}
        for name in TABLES:
            np.testing.assert_array_equal(archive[name], getattr(dense, name))
        assert archive["P"].dtype == np.float32
        assert archive["mean"] == MEAN
    first = (tmp_path / "factors.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "factors.npz") as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with pytest.raises(OutputExistsError):
        export(model, tmp_path / "factors.npz")
    export(model, tmp_path / "factors.npz", force=True)
    assert (tmp_path / "factors.npz").read_bytes() == first
    assert sorted(p.name for p in tmp_path.glob("*.tmp")) == []
