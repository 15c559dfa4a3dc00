"""The course of a run: what happens when an epoch goes wrong, no longer helps, or is one too many."""

import contextlib
import dataclasses
import itertools
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import simulated
from planted import Planted, plant
from test_objectives import Run, fingerprint, kind_of, learn, run, settings, tables

from mfpar.api.runs import train_file
from mfpar.blockfile import BlockedFile
from mfpar.budget import needs_of
from mfpar.config import ModelConfig, TrainConfig
from mfpar.engine import course
from mfpar.engine.beginning import TRIED_RATES
from mfpar.engine.holdout import held_out, some
from mfpar.errors import ConfigError, DivergedError
from mfpar.losses import BUILTIN
from mfpar.parallel.comm import Serial

PARTS = ("validation", "test")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Planted:
    return plant(tmp_path_factory.mktemp("data") / "ratings.h5", grid=6)


def fit(data: Planted, loss: str = "squared", optimizer: str = "sgd", **given) -> Run:
    return run(data, *settings(loss, optimizer, **given))


def same(one: Run, other: Run) -> None:
    """The same model, to the bit."""
    for a, b in zip(tables(one.training), tables(other.training), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.training.base == other.training.base


def retries(done: Run) -> list[dict]:
    return [content for kind, content in done.events if kind == "retry"]


def rates(done: Run) -> list[float]:
    return [report.lr for report in done.reports]


# A rate that is too large.


def test_a_rate_that_is_too_large_is_repaired(data):
    done = fit(data, lr=5.0, lr_rule="constant", epochs=4)
    told = retries(done)
    assert [kind for kind, _ in done.events] == ["retry"] * len(told)
    assert 1 <= len(told) < 12
    assert told[0]["message"] == "epoch 1 diverged at learning rate 5: back to the start, with learning rate 2.5"
    assert (told[0]["epoch"], told[0]["lr"]) == (1, 2.5)
    assert all(np.isfinite(part).all() for part in tables(done.training))
    assert [report.epoch for report in done.reports] == [1, 2, 3, 4]
    assert done.reports[-1].train_loss < done.reports[0].train_loss
    # No trace is left of what was tried: the same as with the rates that held.
    same(done, fit(data, lr=rates(done), epochs=4))


def test_an_epoch_that_diverges_late_is_undone_to_the_one_before(data):
    done = fit(data, lr=[0.02, 0.02, 40.0, 40.0], epochs=4)
    told = retries(done)
    assert {content["epoch"] for content in told} == {3}
    assert re.fullmatch(
        r"epoch 3 diverged at learning rate 40: back to the end of epoch 2, with learning rate 20", told[0]["message"]
    )
    assert rates(done)[:2] == [0.02, 0.02]
    assert rates(done)[2] == rates(done)[3] == told[-1]["lr"] < 40
    same(done, fit(data, lr=rates(done), epochs=4))


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
@pytest.mark.parametrize("lr", [1e3, 1e6])
def test_any_rate_that_may_be_given_is_repaired(data, optimizer, lr):
    done = fit(data, optimizer=optimizer, lr=lr, epochs=3)
    assert all(np.isfinite(part).all() for part in tables(done.training))
    assert done.reports[-1].test["rmse"] < 3 * data.header.deviation


@pytest.mark.parametrize("ranks", [1, 3])
def test_what_is_beyond_repair_is_told(data, tmp_path, monkeypatch, ranks):
    monkeypatch.setattr(course, "REPAIRS", 2)

    def body(comm):
        train = TrainConfig(lr=1e6, lr_rule="constant", epochs=3)
        train_file(data.path, tmp_path / "m.h5", ModelConfig(factors=3), train, comm, lambda event: None)

    told = r"training diverged in epoch 1 even at learning rate \S+: use a smaller --lr"
    for outcome in simulated.run_all(ranks, body):
        assert isinstance(outcome, DivergedError)
        assert re.fullmatch(told, str(outcome))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
@pytest.mark.parametrize("loss", BUILTIN)
def test_a_rate_ten_times_too_large_is_survived_and_learns(tmp_path, loss, optimizer):
    """What a repair leaves goes on learning: it is not stuck at a rate of nothing."""
    if kind_of(loss) == "implicit":
        planted = plant(tmp_path / "ratings.h5", grid=4, implicit=True)
    else:
        planted, *_ = learn(tmp_path, kind_of(loss), (60, 40), 1500)
    model, found, train = settings("one-class-sampled" if loss == "one-class" else loss, optimizer, epochs=12)
    lr = 10 * train.lr
    done = run(planted, model, found, train.having(lr=lr, lr_row_bias=lr, lr_col_bias=lr))
    assert all(np.isfinite(part).all() for part in tables(done.training))
    assert done.reports[-1].lr > 1e-5 * train.lr
    assert done.reports[-1].train_loss <= done.reports[0].train_loss


# Rules of the rate.


def test_rules_of_the_rate(data):
    given = {"lr": 0.04, "epochs": 4, "lr_decay": 0.9}
    for rule, expected in {
        "constant": [0.04] * 4,
        "exponential": [0.04 * 0.9**epoch for epoch in range(4)],
        "inverse": [0.04 / (1 + 0.1 * epoch) for epoch in range(4)],
    }.items():
        done = fit(data, lr_rule=rule, **given)
        assert rates(done) == pytest.approx(expected, rel=1e-12)
        same(done, fit(data, lr=rates(done), epochs=4))
    listed = fit(data, lr=[0.04, 0.01], epochs=4)
    assert rates(listed) == [0.04, 0.01, 0.01, 0.01]


def test_rates_of_biases_decay_with_the_others(data):
    half = {"lr_row_bias": 0.02, "lr_col_bias": 0.02}
    done = fit(data, lr=0.04, lr_decay=0.5, epochs=3, **half)
    by_hand = fit(data, lr=[0.04, 0.02, 0.01], epochs=3, **half)
    same(done, by_hand)
    same(fit(data, lr=0.04, epochs=3, lr_row_bias=0.04, lr_col_bias=0.04), fit(data, lr=0.04, epochs=3))
    other = fit(data, lr=0.04, lr_decay=0.5, epochs=3)
    assert (tables(other.training)[1] != tables(done.training)[1]).any()


@pytest.mark.parametrize("loss", ["squared", "bpr-row", "one-class-all"])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_a_rate_is_found_and_leaves_no_trace(tmp_path, loss, optimizer):
    planted = plant(tmp_path / "ratings.h5", grid=4, implicit=loss != "squared")
    done = fit(planted, loss, optimizer, lr="auto", epochs=2)
    own = settings(loss, optimizer)[1].rates[optimizer]
    assert rates(done)[0] in [own * times / 2 for times in TRIED_RATES]
    same(done, fit(planted, loss, optimizer, lr=rates(done)[0], epochs=2))


def test_a_rate_that_is_found_is_a_good_one(tmp_path):
    planted = plant(tmp_path / "ratings.h5", grid=4, rows=200, cols=100, count=8000)
    found, *others = (
        fit(planted, lr=lr, epochs=10).reports[-1].test["rmse"] for lr in ("auto", *(10.0**-n for n in range(5)))
    )
    assert found < 1.5 * min(others) < 0.5 * max(others)


# The bold driver.


def test_the_bold_driver_goes_faster_and_takes_back_what_did_not_help(data):
    done = fit(data, lr=0.25, lr_rule="bold-driver", epochs=12, factors=3, reg=0.0)
    told = retries(done)
    assert told, "no epoch was rejected: the test shows nothing"
    expected = [0.25]
    for epoch in range(1, 13):
        cuts = [content for content in told if content["epoch"] == epoch]
        for content in cuts:
            expected[-1] *= 0.5
            assert content["lr"] == pytest.approx(expected[-1])
        assert rates(done)[epoch - 1] == pytest.approx(expected[-1])
        expected.append(expected[-1] * 1.05)
    losses = [report.train_loss for report in done.reports]
    assert losses == sorted(losses, reverse=True)
    message = next(content["message"] for content in told if "did not lower" in content["message"])
    told = r"epoch (\d+) did not lower the loss \(\S+ → \S+\): back to the end of epoch \d+, with learning rate \S+"
    assert re.fullmatch(told, message)
    # A run that never had the rejected epochs.
    same(done, fit(data, lr=rates(done), epochs=12, reg=0.0))


def test_the_bold_driver_ends_where_no_step_helps(data, monkeypatch):
    monkeypatch.setattr(course, "REJECTIONS", 1)
    done = fit(data, lr=0.25, lr_rule="bold-driver", epochs=500, reg=0.0)
    (kind, retry), (last, warning) = done.events[-2:]
    assert (kind, last) == ("retry", "warning")
    assert warning["message"] == f"no step lowers the loss any more: ends in epoch {retry['epoch']}"
    assert len(done.reports) == retry["epoch"] - 1 < 500
    same(done, fit(data, lr=rates(done), epochs=len(done.reports), reg=0.0))


# Validation and early stopping.

OVERFITS = {"lr": 0.3, "lr_rule": "constant", "reg": 0.0, "validation_fraction": 0.3}


@pytest.mark.parametrize("epochs", [60, None])
@pytest.mark.parametrize("loss", ["squared", "bpr-row"])
def test_early_stopping_goes_back_to_the_best_epoch(tmp_path, data, loss, epochs):
    overfits = OVERFITS
    if loss != "squared":
        data, overfits = plant(tmp_path / "ratings.h5", grid=4, implicit=True), {**OVERFITS, "lr": 0.1}
    done = fit(data, loss, patience=3, epochs=60, **overfits)
    measures = [next(iter(report.validation.values())) for report in done.reports]
    assert next(iter(done.reports[0].validation)) == BUILTIN[loss].metrics[0]
    best = int(np.argmin(measures) if loss == "squared" else np.argmax(measures)) + 1
    assert best > 1
    assert len(measures) == best + 3 < 60
    if epochs is None:  # also where the epochs end before the patience does
        done = fit(data, loss, patience=3, epochs=best + 1, **overfits)
        assert len(done.reports) == best + 1
    exactly = fit(data, loss, epochs=best, **overfits)
    same(done, exactly)
    longer = fit(data, loss, epochs=best + 1, **overfits)
    assert (tables(longer.training)[0] != tables(exactly.training)[0]).any()


def test_early_stopping_and_the_bold_driver_together(data):
    given = {**OVERFITS, "lr_rule": "bold-driver", "patience": 2, "epochs": 40}
    done = fit(data, **given)
    best = int(np.argmin([report.validation["rmse"] for report in done.reports])) + 1
    same(done, fit(data, **{**OVERFITS, "lr_rule": "constant", "lr": rates(done)[:best], "epochs": best}))


def split(strip, first, grid, train):
    held = held_out(strip, first, grid, train)
    return some(strip, ~held), some(strip, held)


def test_the_validation_part_is_left_out_and_measured(data):
    model, loss, train = settings("squared", "sgd", epochs=2, validation_fraction=0.25, seed=5)
    done = run(data, model, loss, train)
    with BlockedFile(data.path) as file:
        strip = file.strip("train", 0, data.grid.size)
        rest, held = split(strip, 0, data.grid, train)
    assert done.training.ratings == len(rest.values) == data.header.ratings - len(held.values)
    assert len(held.values) == pytest.approx(0.25 * data.header.ratings, rel=0.15)
    kept = np.searchsorted(np.sort(strip.values), held.values)
    assert len(kept) == len(held.values)
    i, j = (np.repeat(which, np.diff(held.offsets).ravel()) for which in divmod(np.arange(36), 6))
    P, b, Q, c = (part.astype(float) for part in tables(done.training))
    rows, cols = held.rows + data.grid.row_cuts[i], held.cols + data.grid.col_cuts[j]
    predictions = done.training.base + b[rows] + c[cols] + (P[rows] * Q[cols]).sum(axis=1)
    error = math.sqrt(np.mean((predictions - held.values) ** 2))
    assert done.reports[-1].validation["rmse"] == pytest.approx(error, rel=1e-5)
    assert done.reports[-1].test["rmse"] == done.reports[-1].test_rmse != done.reports[-1].validation["rmse"]


def test_folds_share_out_the_ratings_and_ranks_do_not_matter(data):
    shares = [TrainConfig(folds=5, fold=fold, seed=9) for fold in range(1, 6)]
    shares += [TrainConfig(validation_fraction=0.4, seed=9), TrainConfig(validation_fraction=0.4, seed=10)]
    found = []
    with BlockedFile(data.path) as file:
        for train in shares:
            whole = split(file.strip("train", 0, 6), 0, data.grid, train)
            halves = [split(file.strip("train", a, b), a, data.grid, train) for a, b in ((0, 2), (2, 6))]
            for part in (0, 1):
                for name in ("rows", "cols", "values"):
                    together = np.concatenate([getattr(half[part], name) for half in halves])
                    np.testing.assert_array_equal(together, getattr(whole[part], name))
                assert whole[part].offsets[-1, -1] == len(whole[part].values)
            found.append(cells(data, whole[1]))
            assert found[-1] | cells(data, whole[0]) == cells(data, file.strip("train", 0, 6))
            assert not found[-1] & cells(data, whole[0])
    for one, other in itertools.combinations(found[:5], 2):
        assert not one & other
    assert sum(map(len, found[:5])) == data.header.ratings
    assert max(map(len, found[:5])) < 1.4 * min(map(len, found[:5]))
    assert found[5] != found[6]


def cells(data, strip):
    """The cells of a strip of all row-blocks."""
    i, j = (np.repeat(which, np.diff(strip.offsets).ravel()) for which in divmod(np.arange(36), 6))
    rows, cols = strip.rows + data.grid.row_cuts[i], strip.cols + data.grid.col_cuts[j]
    return set(zip(rows.tolist(), cols.tolist(), strict=True))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"patience": 3}, "patience=3: early stopping needs a validation part; give validation_fraction or folds"),
        ({"folds": 3, "validation_fraction": 0.1}, "exclude each other"),
        ({"folds": 3, "fold": 4}, "fold=4: expected one from 1 to folds=3"),
        ({"lr": [0.1, 0.2], "lr_rule": "bold-driver"}, "exclude each other"),
        ({"lr": "fast"}, "lr='fast': expected a number > 0"),
        ({"lr": []}, "lr="),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0: expected a number from 0 to 1, not 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        TrainConfig(**given)


def test_a_validation_part_of_nothing_is_refused(data):
    with pytest.raises(ConfigError, match=r"ratings.h5: 0 of 1500 ratings would be held out for validation;"):
        fit(data, validation_fraction=1e-9)


# All of it, on any ranks, with copies in memory and on the disk.

COURSES = {
    "diverges at once": {"lr": 5.0, "epochs": 3},
    "diverges late": {"lr": [0.02, 0.02, 40.0], "epochs": 4},
    "bold driver": {"lr": 0.25, "lr_rule": "bold-driver", "epochs": 8, "reg": 0.0},
    "early stopping": {**OVERFITS, "patience": 2, "epochs": 30},
    "early stopping, bold": {**OVERFITS, "lr_rule": "bold-driver", "patience": 2, "epochs": 30},
    "folds": {"folds": 4, "fold": 3, "epochs": 2},
    "auto": {"lr": "auto", "epochs": 2},
    "inverse": {"lr_rule": "inverse", "epochs": 3},
}


def without_copies(*arguments, **options):
    return dataclasses.replace(needs_of(*arguments, **options), copies=0)


@pytest.mark.parametrize("given", COURSES.values(), ids=COURSES)
def test_ranks_and_places_of_copies_change_no_bit(data, monkeypatch, given):
    configs = settings("squared", "adagrad" if "auto" in given.values() else "sgd", **given)
    before = set(data.path.parent.iterdir())
    found = [fingerprint(data, ranks, *configs) for ranks in (1, 3)]
    monkeypatch.setattr("mfpar.engine.parts.needs_of", without_copies)
    found += [fingerprint(data, ranks, *configs) for ranks in (1, 3)]
    assert len(set(found)) == 1
    assert set(data.path.parent.iterdir()) == before


@pytest.mark.parametrize("fails", [False, True])
def test_copies_on_the_disk_are_there_while_they_are_needed(data, tmp_path, monkeypatch, fails):
    monkeypatch.setattr("mfpar.engine.parts.needs_of", without_copies)
    seen = []

    def listen(event):
        if event["kind"] == "epoch":
            assert list(tmp_path.iterdir()) == []  # a process that is killed leaves nothing
            seen.append([link for link in opened() if link.startswith(str(tmp_path)) and link.endswith("(deleted)")])
            if fails and event["epoch"] == 4:
                raise KeyboardInterrupt

    train = TrainConfig(epochs=6, validation_fraction=0.3, patience=6, lr=0.3, lr_rule="constant")
    arguments = data.path, tmp_path / "m.h5", ModelConfig(factors=3), train

    if fails:
        with pytest.raises(KeyboardInterrupt):
            train_file(*arguments, Serial(), listen)
        assert list(tmp_path.iterdir()) == []
    else:
        train_file(*arguments, Serial(), listen)
        assert [path.name for path in tmp_path.iterdir()] == ["m.h5"]
    assert seen[0] == []
    assert all(1 <= len(names) <= 2 for names in seen[1:])


def opened():
    """What files this process has open."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            yield os.readlink(entry)


def test_what_a_run_tells(data, tmp_path):
    events = []
    train = TrainConfig(lr=40.0, epochs=2, validation_fraction=0.2)
    train_file(data.path, tmp_path / "m.h5", ModelConfig(factors=3), train, Serial(), events.append)
    kinds = [event["kind"] for event in events]
    assert kinds[0] == "run"
    assert set(kinds[1:-1]) == {"retry", "epoch"}
    retry, epoch = (next(event for event in events if event["kind"] == kind) for kind in ("retry", "epoch"))
    assert set(retry) == {"kind", "epoch", "lr", "message"}
    assert set(epoch["validation"]) == set(epoch["test"]) == {"rmse", "mae"}
    assert (epoch["test_rmse"], epoch["test_mae"]) == (epoch["test"]["rmse"], epoch["test"]["mae"])
    assert epoch["train_rmse"] == pytest.approx(math.sqrt(2 * epoch["train_loss"]))
