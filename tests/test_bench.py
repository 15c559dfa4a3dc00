"""The benchmarks' own arithmetic: what they measure is only worth as much."""

import doctest
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

import mfpar

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture(scope="module")
def bench():
    """Modules of the benchmarks by name; they are scripts, in no package."""
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module
    sys.path.remove(str(BENCH))


@pytest.mark.parametrize("name", ["report", "runs", "limits", "libmf", "scaling", "growth"])
def test_examples_in_docstrings(bench, name):
    found = doctest.testmod(bench(name))
    assert found.attempted
    assert not found.failed


def test_a_matrix_is_a_function_of_its_seed(bench):
    matrix = bench("matrix")
    shape = matrix.SHAPES["ml-10m"].with_ratings(20_000)
    first, again, other = matrix.ratings(shape, 3), matrix.ratings(shape, 3), matrix.ratings(shape, 4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", ["ml-1m", "ml-10m", "ml-20m", "netflix", "hugewiki"])
def test_a_matrix_has_its_shape_and_distinct_cells(bench, name):
    matrix = bench("matrix")
    shape = matrix.SHAPES[name].with_ratings(50_000)
    users, items, values = matrix.ratings(shape)
    assert len(users) == len(items) == len(values) == 50_000
    assert np.array_equal(np.unique(users), np.arange(shape.rows))
    assert 0 <= items.min() <= items.max() < shape.cols
    assert len(np.unique(users.astype(np.int64) * shape.cols + items)) == 50_000
    assert set(np.unique(values * 2)) <= set(range(1, 11))
    whole = matrix.SHAPES[name]
    least = min(shape.ratings // 5, int(whole.rows * (50_000 / whole.ratings) ** 0.5))
    assert shape.rows == least
    assert shape.cols == pytest.approx(whole.cols * (50_000 / whole.ratings) ** 0.5, rel=0.02)


def test_rows_and_columns_follow_power_laws(bench):
    matrix = bench("matrix")
    shape = matrix.SHAPES["ml-1m"]
    users, items, _ = matrix.ratings(shape)
    for side, count, (exponent, offset) in ((users, shape.rows, matrix.ROW_LAW), (items, shape.cols, matrix.COL_LAW)):
        counts = np.sort(np.bincount(side, minlength=count))[::-1]
        ranks = np.arange(100, count // 2)
        slope = np.polyfit(np.log(ranks + offset), np.log(counts[ranks]), 1)[0]
        assert slope == pytest.approx(-exponent, abs=0.1)


def test_degrees_keep_their_bounds_and_their_sum(bench):
    matrix = bench("matrix")
    skewed = np.array([0.9, 0.05, 0.05 - 3e-9, 1e-9, 1e-9, 1e-9])
    degrees = matrix._degrees(skewed, 40, 12)
    assert degrees.sum() == 40
    assert degrees.min() >= 1
    assert degrees.max() <= 12
    with pytest.raises(ValueError, match="takes 1 to 12 a row"):
        matrix._degrees(skewed, 73, 12)


def test_an_alias_table_draws_what_it_was_made_from(bench):
    probabilities = np.random.default_rng(5).dirichlet(np.full(50, 0.3))
    accept, other = bench("matrix").alias_table(probabilities.copy())
    drawn = accept / 50
    np.add.at(drawn, other, (1 - accept) / 50)
    np.testing.assert_allclose(drawn, probabilities, atol=1e-12)


def test_planted_factors_are_found(bench, tmp_path):
    matrix, accuracy = bench("matrix"), bench("accuracy")
    training, heldout = accuracy.divide(matrix.ratings(matrix.Shape(1000, 800, 100_000)), 7)
    model = mfpar.factorize(training, factors=8, epochs=30, lr=0.03)
    assert model.rmse(*heldout) < 0.96 < heldout[2].std()  # 0.8 of noise, and what rounding and learning cost


def test_averaging_on_one_rank_is_mfpar(bench, tmp_path):
    pytest.importorskip("mpi4py")
    parallel, matrix = bench("data_parallel"), bench("matrix")
    file = parallel.converted(tmp_path / "ratings.h5", matrix.Shape(500, 300, 20_000), 4)
    job = {"file": str(file), "factors": 8, "averagings": 2, "settings": {"epochs": 3, "lr": 0.02}}
    ours, theirs = (parallel.launch(1, **job, system=system) for system in ("mfpar", "averaging"))
    assert [rmse for _, rmse in theirs["curve"]] == pytest.approx([rmse for _, rmse in ours["curve"]], rel=1e-6)
    assert ours["tables"] == pytest.approx(theirs["tables"], rel=0.1)
    assert ours["bytes"] == theirs["bytes"] == 0


def test_a_model_of_more_ranks_than_there_are(bench, monkeypatch):
    simulate, matrix, cluster = bench("simulate"), bench("matrix"), bench("mfpar.planning.cluster")
    monkeypatch.setattr(simulate, "MATRICES", {"small": matrix.Shape(4000, 3000, 200_000)})
    monkeypatch.setattr(simulate.calibration, "update_rate", lambda *_: 1e6)  # whatever this machine is up to
    network = cluster.Network(1e9, 1e-5)
    args = bench("argparse").Namespace(
        factors=8, skew=0.2, seconds=0.0, network=network, per_node=2, write=1e6, every=9.0
    )
    args.ranks = [1, 4, 16]
    model = simulate.Bench(args)
    assert model.grids(simulate.MATRICES["small"], 16) == [16, 32, 64]
    rows = simulate.growth(model)
    assert [(row["ranks"], row["nodes"]) for row in rows] == [(1, 1), (4, 2), (16, 8)]
    assert rows[0]["GB sent an epoch"] == 0 < rows[1]["GB sent an epoch"] < rows[2]["GB sent an epoch"]
    assert rows[1]["times one rank"] == pytest.approx(rows[0]["s an epoch"] / rows[1]["s an epoch"])
    (worth,) = simulate.worth(rows)
    assert worth["its s an epoch"] == min(row["s an epoch"] for row in rows)
    (cost,) = simulate.checkpoints(model, rows)
    assert cost["s a checkpoint"] == pytest.approx(7000 * 9 * 4 / 8 / 1e6, rel=0.01)  # k + 1 floats, 8 nodes
    cut, uneven = simulate.cuts(model, 4), simulate.troubles(model, "small", 4)
    assert uneven[0]["of an even one"] == 1 < uneven[3]["of an even one"]
    assert len(simulate.panels_of(rows, cut, uneven)) == 4


def test_a_report_is_a_table_a_description_and_a_picture(bench, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    report, picture = bench("report"), bench("picture")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    panels = [
        picture.Lines("a", "x", "y", {"one": ([1, 2], [3, 4]), "(limit)": ([1, 2], [5, 5])}, "xy"),
        picture.Bars("b", "y", ["p", "q"], {"one": [1, 2], "two": [2, 1]}, line=1.5),
    ]
    report.report("some", "A title", [{"a": 1, "b": 2.0}, {"a": 2, "c": "x"}], panels)
    assert "A title" in capsys.readouterr().out
    written = bench("json").loads((tmp_path / "results/some.json").read_text())
    assert written["rows"][1] == {"a": 2, "c": "x"}
    assert {"cpu", "cores", "caches", "packages"} <= set(written["machine"])
    image = (tmp_path / "results/some.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    assert len(image) < 100_000
