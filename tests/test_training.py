"""Laws 2 and 5 on whole runs: the same bits on any ranks and threads, and what a run learns."""

import itertools
import math

import numpy as np
import pytest
import simulated
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import UNKNOWN, Planted, plant

from mfpar.api import load, train_file
from mfpar.blockfile import BlockedFile
from mfpar.config import ModelConfig, TrainConfig
from mfpar.engine.course import Course
from mfpar.engine.objective import unit_of
from mfpar.engine.training import Training
from mfpar.errors import ConfigError
from mfpar.parallel.comm import Serial

KINDS = [(biases, optimizer) for biases in (True, False) for optimizer in ("sgd", "adagrad")]
KIND_NAMES = [f"{'biases' if biases else 'plain'}-{optimizer}" for biases, optimizer in KINDS]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Planted:
    """A small file, with a held-out part in which some ids are unknown."""
    return plant(tmp_path_factory.mktemp("data") / "ratings.h5")


@pytest.fixture(scope="module")
def fits(tmp_path_factory):
    """A function from settings to a trained model; files stay for the module."""
    folder = tmp_path_factory.mktemp("models")
    numbers = itertools.count()

    def fit(planted, ranks=1, **settings_given):
        path = folder / f"{next(numbers)}.h5"
        train(planted, path, ranks, **settings_given)
        return load(path)

    return fit


def train(planted, output, ranks=1, comm_seed=0, **given):
    """Train on simulated ranks; returns the fingerprint."""
    model = ModelConfig(**{name: given.pop(name) for name in ModelConfig.__dataclass_fields__ if name in given})
    run = TrainConfig(**given)

    def body(comm):
        return train_file(planted.path, output, model, run, comm, lambda event: None, force=True)

    fingerprints = set(simulated.run(ranks, body, comm_seed, team=1 + comm_seed % ranks))
    assert len(fingerprints) == 1
    return fingerprints.pop()


@pytest.mark.parametrize(("biases", "optimizer"), KINDS, ids=KIND_NAMES)
def test_ranks_and_threads_change_no_bit(data, tmp_path, biases, optimizer):
    given = {"factors": 7, "epochs": 2, "biases": biases, "optimizer": optimizer, "seed": 3}
    alone = train(data, tmp_path / "alone.h5", **given)
    for ranks, threads in ((1, 2), (1, 9), (2, 1), (3, 2), (5, 1), (8, 2)):
        assert train(data, tmp_path / "many.h5", ranks, threads=threads, **given) == alone
    assert load(tmp_path / "many.h5").curve[-1]["test_rmse"] == load(tmp_path / "alone.h5").curve[-1]["test_rmse"]
    load(tmp_path / "many.h5").verify()
    for other in ({"seed": 4}, {"epochs": 3}, {"lr": 0.03}, {"reg": 0.06}, {"lr_decay": 0.9}):
        assert train(data, tmp_path / "other.h5", **given | other) != alone


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_grid_on_any_ranks_gives_the_bits_of_one(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("grids")
    grid, seed = data.draw(st.integers(1, 9), "G"), data.draw(st.integers(0, 2**63 - 1), "seed")
    ranks, threads = data.draw(st.integers(1, grid), "ranks"), data.draw(st.integers(1, 4), "threads")
    planted = plant(folder / "ratings.h5", rows=17, cols=11, count=120, grid=grid, test=20, unknown=5, seed=seed % 1000)
    given_settings = {"factors": 8, "epochs": 2, "seed": seed, "optimizer": "adagrad"}
    alone = train(planted, folder / "alone.h5", **given_settings)
    assert train(planted, folder / "many.h5", ranks, seed % 99, threads=threads, **given_settings) == alone


def test_blocks_too_long_for_short_indices_give_the_same_bits_too(tmp_path):
    planted = plant(tmp_path / "ratings.h5", rows=150_000, cols=40, count=3000, grid=2, test=50)
    with BlockedFile(planted.path) as file:
        strip = file.strip("train", 0, 2)
        assert (strip.rows.dtype, strip.cols.dtype) == (np.uint32, np.uint16)
        assert strip.rows.max() >= 2**16
    alone = train(planted, tmp_path / "alone.h5", factors=7, epochs=2)
    assert train(planted, tmp_path / "many.h5", 2, factors=7, epochs=2, threads=2) == alone


@pytest.mark.parametrize("spread", [1.0, 25.0])
@pytest.mark.parametrize(("biases", "optimizer"), KINDS, ids=KIND_NAMES)
def test_the_curve_ends_at_what_the_saved_model_does(tmp_path, fits, biases, optimizer, spread):
    planted = plant(tmp_path / "ratings.h5", centre=2 * spread, spread=spread)
    model = fits(planted, 3, factors=8, epochs=4, biases=biases, optimizer=optimizer)
    scores, last = model.evaluate(planted.path), model.curve[-1]
    assert scores.rmse == pytest.approx(last["test_rmse"], abs=1e-6 * spread)
    assert scores.mae == pytest.approx(last["test_mae"], abs=1e-6 * spread)
    assert (scores.count, scores.unknown) == (planted.header.test_ratings, planted.header.test_unknown)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_unknown_ids_get_the_mean_and_the_known_bias(data, fits, optimizer):
    model = fits(data, factors=8, epochs=3, optimizer=optimizer)
    unknown = 10**9
    mean = data.header.mean
    assert model.mean == mean
    np.testing.assert_array_equal(model.predict(unknown, unknown), [np.float32(mean)])
    users = (mean + np.asarray(model.row_bias).astype(float)).astype(np.float32)
    items = (mean + np.asarray(model.col_bias).astype(float)).astype(np.float32)
    np.testing.assert_array_equal(model.predict(data.row_ids, unknown), users)
    np.testing.assert_array_equal(model.predict(unknown, data.col_ids), items)


def test_centring_changes_no_prediction_and_makes_the_average_zero(data, monkeypatch):
    moved = {}
    monkeypatch.setattr("mfpar.engine.centre.Averages.centre", lambda *arguments: None)
    for name in ("before", "after"):
        with BlockedFile(data.path) as file:
            model, loss = ModelConfig(factors=8).resolved()
            training = Training(file, model, loss, TrainConfig(epochs=3).resolved(loss), Serial())
            with Course(training, data.path, lambda report: None, lambda kind, content: None) as course:
                course.run()
            sides = [[block(b) for b in range(data.grid.size)] for block in (training.row_block, training.col_block)]
            P, b, Q, c = (np.concatenate([part[k] for part in side]).astype(float) for side in sides for k in (0, 1))
            counts = [file.ratings_of(side) for side in ("rows", "cols")]
            base = float(training.objective.base) + training._offset if name == "before" else data.header.mean
        moved[name] = base + b[:, None] + c + P @ Q.T, (P, b, Q, c)
        monkeypatch.undo()
    np.testing.assert_allclose(moved["after"][0], moved["before"][0], atol=2e-6)
    P, b, Q, c = moved["after"][1]
    for rows, before, ratings in ((P, moved["before"][1][0], counts[0]), (Q, moved["before"][1][2], counts[1])):
        assert np.abs(ratings @ rows / ratings.sum()).max() < 1e-6 < np.abs(ratings @ before / ratings.sum()).max()
    assert (counts[0] @ b + counts[1] @ c) / counts[0].sum() == pytest.approx(
        counts[0] @ b / counts[0].sum() * 2, abs=1e-5
    )


def test_train_rmse_is_that_of_the_errors_met_on_the_way(data, fits):
    """Of the first epoch at a rate that moves nothing: of the mean alone, as the starting factors are small."""
    curve = fits(data, factors=8, epochs=1, lr=1e-12, lift=0.0).curve[0]
    deviations = data.train.values.astype(float) - data.header.mean
    assert curve["train_rmse"] == pytest.approx(math.sqrt(np.mean(deviations**2)), rel=1e-3)
    assert curve["train_loss"] == pytest.approx(np.mean(deviations**2) / 2, rel=1e-3)
    assert curve["lr"] == 1e-12


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
@pytest.mark.parametrize(
    ("centre", "spread"), [(3.0, 1.0), (50.0, 25.0), (0.0, 0.4)], ids=["1 to 5", "0 to 100", "-1 to 1"]
)
def test_a_planted_matrix_is_found(tmp_path, fits, centre, spread, optimizer):
    planted = plant(
        tmp_path / "ratings.h5", rows=300, cols=200, count=20_000, centre=centre, spread=spread, test=2000, unknown=0
    )
    model = fits(planted, epochs=60, reg=0.01, optimizer=optimizer)
    error = model.evaluate().rmse
    assert error < 1.2 * planted.noise < 0.2 * planted.header.deviation


def test_a_scale_by_a_power_of_four_scales_the_model_exactly(tmp_path, fits):
    models = []
    for index, spread in enumerate((1.0, 16.0)):
        planted = plant(tmp_path / f"{index}.h5", centre=3 * spread, spread=spread)
        models.append(fits(planted, factors=8, epochs=3))
    one, sixteen = ([np.asarray(table) for table in (m.P, m.Q, m.row_bias, m.col_bias)] for m in models)
    for small, large, factor in zip(one, sixteen, (4, 4, 16, 16), strict=True):
        np.testing.assert_array_equal(large, small * np.float32(factor))


@given(st.floats(1e-30, 1e30))
def test_the_unit_is_a_power_of_four_near_the_deviation(deviation):
    unit = unit_of(deviation)
    fraction, exponent = math.frexp(unit)
    assert fraction == 0.5
    assert exponent % 2 == 1
    assert 0.5 <= deviation / unit < 2


def test_more_ranks_than_blocks_are_refused_on_every_rank(data, tmp_path):
    def body(comm):
        return train_file(data.path, tmp_path / "m.h5", ModelConfig(), TrainConfig(), comm, lambda event: None)

    outcomes = simulated.run_all(9, body)
    assert {type(outcome) for outcome in outcomes} == {ConfigError}
    assert {str(outcome) for outcome in outcomes} == {
        "9 ranks for a grid of 8: at most 8 can take part; use fewer, or convert with --grid 36"
    }


def test_a_file_without_held_out_part_has_no_test_error(tmp_path, fits):
    planted = plant(tmp_path / "ratings.h5", test=0, unknown=0)
    assert {epoch["test_rmse"] for epoch in fits(planted, 2, factors=8, epochs=2).curve} == {None}


@pytest.mark.parametrize(("rows", "cols", "count", "grid"), [(1, 1, 1, 1), (9, 8, 12, 8)], ids=["1 x 1", "sparse"])
def test_a_grid_of_one_and_blocks_without_ratings(tmp_path, fits, rows, cols, count, grid):
    planted = plant(tmp_path / "ratings.h5", rows, cols, count, grid=grid, test=0, unknown=3)
    model = fits(planted, factors=1, epochs=2)
    assert np.isfinite(model.predict(planted.row_ids[0], planted.col_ids)).all()
    assert UNKNOWN in planted.test.rows


def test_equal_ratings_are_learnt(tmp_path, fits):
    planted = plant(tmp_path / "ratings.h5", spread=0.0)
    model = fits(planted, factors=8, epochs=3)
    np.testing.assert_allclose(model.predict(planted.row_ids[0], planted.col_ids), 3.0, atol=0.05)


def test_every_rank_has_the_same_curve_and_only_the_first_tells(data, tmp_path):
    told = []

    def body(comm):
        events = []
        train_file(data.path, tmp_path / "m.h5", ModelConfig(factors=8), TrainConfig(epochs=2), comm, events.append)
        told.append((comm.rank, [event["kind"] for event in events]))

    simulated.run(8, body)
    assert dict(told) == {0: ["run", "warning", "epoch", "epoch", "saved"]} | {rank: [] for rank in range(1, 8)}
