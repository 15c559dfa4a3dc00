"""The search for settings: what it may try, what it finds, how it goes on, and that ranks and timing change nothing."""

import argparse
import json
import math
import os
import sys
import tomllib

import pytest
import simulated
from planted import Planted, plant

import mfpar
from mfpar.api import tune_file
from mfpar.api.space import FIELDS, Choice, Range, Space
from mfpar.api.study import STARTUP, Trial
from mfpar.api.trials import Search, Trials
from mfpar.cli.options import read_config
from mfpar.cli.tune import parse_space
from mfpar.engine.course import Course
from mfpar.errors import ConfigError, DivergedError, FormatError, OutputExistsError, RankError
from mfpar.parallel.comm import Serial

SMALL = {"factors": 4, "epochs": 3, "lr": (0.005, 0.3), "reg": [0.02, 0.1]}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Planted:
    return plant(tmp_path_factory.mktemp("data") / "ratings.h5")


def what_happened(result):
    """All that may not depend on timing."""
    return [(t.number, t.settings, t.value, t.epochs, t.folds, t.message) for t in result.trials], result.settings


@pytest.mark.parametrize(
    ("name", "text", "space"),
    [
        ("lr", "0.02", 0.02),
        ("lr", "0.005:0.05", (0.005, 0.05)),
        ("lr", "auto,0.02", ["auto", 0.02]),
        ("factors", "16,32,64", [16, 32, 64]),
        ("factors", "8:64", (8, 64)),
        ("biases", "true,false", [True, False]),
        ("biases", "no", False),
        ("optimizer", "sgd,adagrad", ["sgd", "adagrad"]),
        ("loss", "my.losses:cosh", "my.losses:cosh"),
    ],
)
def test_a_space_as_text(name, text, space):
    assert parse_space(FIELDS[name], text) == space


@pytest.mark.parametrize(
    ("name", "text"), [("factors", "1.5"), ("biases", "perhaps"), ("lr", "1:2:3"), ("reg", "a,b"), ("reg", ":")]
)
def test_text_that_is_no_space(name, text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected"):
        parse_space(FIELDS[name], text)


def test_what_a_space_means():
    space = Space.of(
        {"factors": (4, 64), "lr": (0.01, 0.02), "lift": (0, 5), "clip": [True, False], "reg": [1], "epochs": 7}, False
    )
    assert space.searched == {
        "factors": Range(4, 64, True),
        "lr": Range(0.01, 0.02, True),  # by factors, however narrow
        "lift": Range(0.0, 5.0, False),
        "clip": Choice((True, False)),
    }
    assert space.fixed == {"reg": 1.0, "epochs": 7}
    assert space.measure == "rmse"
    for settings in space.spread(50, 3):
        assert type(settings["factors"]) is int
        assert 4 <= settings["factors"] <= 64
        assert 0.01 <= settings["lr"] <= 0.02
    evenly = sorted(settings["lift"] for settings in space.spread(5, 0))
    assert [int(value) for value in evenly] == [0, 1, 2, 3, 4]


def test_what_is_searched_unless_one_says():
    assert Space.of({}, False).searched == {"lr": Range(0.005, 0.05, True), "reg": Range(0.01, 0.2, True)}
    assert list(Space.of({"lr": 0.1, "loss": "logistic"}, False).searched) == ["reg"]
    assert Space.of({}, True).size == 16


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"rate": 0.1}, "unknown setting 'rate'"),
        ({"factors": [8, 0]}, "factors=0: expected an integer from 1"),
        ({"factors": (8, 8)}, "expected a range LOW:HIGH"),
        ({"optimizer": ("sgd", "adagrad")}, "has no ranges"),
        ({"lr": (0.1, 0.2, 0.3)}, r"a range is \(low, high\)"),
        ({"lr": ("auto", 0.3)}, "expected a range LOW:HIGH"),
        ({"reg": []}, "at least one value"),
        ({"epochs": [10, 20]}, "expected one value"),
        ({"threads": (1, 2)}, "has no ranges"),
        ({"seed": 3}, "seed is no part of the space"),
        ({"folds": 3}, "folds is no part of the space"),
        ({"lr": 0.1, "reg": 0.1}, "nothing is left to search"),
        ({"loss": ["squared", "absolute"]}, "squared is decided by rmse and absolute is decided by mae"),
        ({"loss": "huber", "huber_delta": [0.5, 1.0]}, "can't be compared where huber_delta differs"),
    ],
)
def test_spaces_that_are_refused(data, space, sentence):
    with pytest.raises(ConfigError, match=sentence):
        mfpar.tune(data.path, space, trials=2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"trials": 0}, "trials=0: expected an integer ≥ 1"),
        ({"parallel": 0}, "parallel=0"),
        ({"search": "magic"}, "expected one of bayesian, random, grid"),
        ({"folds": 1}, "folds=1"),
        ({"validation_fraction": 0}, "hold some out"),
        ({"validation_fraction": 1.5}, "validation_fraction=1.5"),
        ({"folds": 3, "validation_fraction": 0.1}, "exclude each other"),
        ({"search": "grid"}, "a grid has no ranges"),
    ],
)
def test_searches_that_are_refused(data, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        mfpar.tune(data.path, SMALL, **options)


def test_finds_the_better_of_two(data, capsys):
    told = []
    result = mfpar.tune(data.path, SMALL | {"lr": [1e-5, 0.2], "reg": 0.02, "epochs": 15}, callback=told.append)
    assert result.settings == {"factors": 4, "reg": 0.02, "lr": 0.2, "epochs": result.epochs}
    assert len(result.trials) == 2  # each of a small space once
    assert tuple(told) == result.trials
    assert result.best.value == result.value == min(trial.value for trial in result.trials)
    assert not any(capsys.readouterr())
    model = mfpar.factorize(data.path, **result.settings)
    assert model.factors == 4


def test_bayesian_search_gets_better_than_its_start(data):
    result = mfpar.tune(data.path, SMALL | {"lr": (1e-4, 0.3), "epochs": 5}, trials=STARTUP + 8)
    values = [trial.value for trial in result.trials]
    assert sum(values[STARTUP:]) / 8 < sum(values[:STARTUP]) / STARTUP
    assert sum(trial.settings["lr"] > 0.05 for trial in result.trials[STARTUP:]) >= 5  # a fifth of the range


def test_a_measure_of_which_more_is_better(tmp_path):
    implicit = plant(tmp_path / "ratings.h5", implicit=True)
    result = mfpar.tune(implicit.path, {"loss": "bpr-row", "factors": 4, "epochs": 3, "lr": [1e-4, 0.2]})
    assert result.measure == "auc"
    assert result.value == max(trial.value for trial in result.trials)


@pytest.mark.parametrize("search", ["random", "grid"])
def test_other_searches(data, search):
    space = {"factors": [2, 4], "reg": [0.02, 0.1, 0.5], "epochs": 2}
    result = mfpar.tune(data.path, space, search=search, trials=4)
    assert len(result.trials) == 4
    if search == "grid":
        assert len({json.dumps(trial.settings) for trial in result.trials}) == 4
        assert len(mfpar.tune(data.path, space, search=search).trials) == 6


def test_folds_are_those_of_training(data):
    result = mfpar.tune(data.path, SMALL | {"lr": [0.1, 0.3], "reg": 0.1, "epochs": 12}, folds=3, patience=2, seed=4)
    best = []
    for fold in (1, 2, 3):
        reports = []
        settings = {"factors": 4, "lr": result.settings["lr"], "reg": 0.1, "epochs": 12, "seed": 4, "patience": 2}
        mfpar.factorize(data.path, **settings, folds=3, fold=fold, callback=reports.append)
        best.append(min((report.validation["rmse"], report.epoch) for report in reports))
    assert list(result.best.folds) == best
    assert result.value == pytest.approx(sum(value for value, _ in best) / 3)
    assert result.epochs == math.floor(sum(epoch for _, epoch in best) / 3 + 0.5)
    assert result.settings["seed"] == 4


class Killed(BaseException):
    """The end of a process, nearly."""


@pytest.mark.parametrize("search", ["bayesian", "random"])
def test_a_search_goes_on_where_it_was_killed(data, tmp_path, monkeypatch, search):
    options = {"trials": STARTUP + 5, "parallel": 2, "search": search, "seed": 7}
    whole = mfpar.tune(data.path, SMALL, **options)
    output, journal = tmp_path / "best.toml", tmp_path / "best.toml.journal"
    train, left = Trials._trial, STARTUP + 3

    def kill(self, file, team, number, plain):
        if number == left:
            raise Killed
        return train(self, file, team, number, plain)

    monkeypatch.setattr(Trials, "_trial", kill)
    with pytest.raises(Killed):
        mfpar.tune(data.path, SMALL, **options, output=output)
    assert sorted(path.name for path in tmp_path.iterdir()) == [journal.name]
    whole_lines = journal.read_bytes()
    journal.write_bytes(whole_lines + b'{"op_code": 4, "wor')  # killed while it wrote
    ran = []
    monkeypatch.setattr(Trials, "_trial", lambda *job: ran.append(job[3]) or train(*job))
    told = []
    again = mfpar.tune(data.path, SMALL, **options, output=output, callback=told.append)
    assert ran == list(range(STARTUP + 2, STARTUP + 5))  # a batch is told of as a whole
    assert what_happened(again) == what_happened(whole)
    assert tuple(told) == again.trials
    assert journal.read_bytes().startswith(whole_lines)

    ran.clear()
    more = mfpar.tune(data.path, SMALL, **options | {"trials": STARTUP + 6}, output=output)
    assert ran == [STARTUP + 5]
    assert what_happened(more)[0][:-1] == what_happened(whole)[0]
    fresh = mfpar.tune(data.path, SMALL, **options | {"trials": STARTUP + 6})
    assert what_happened(more) == what_happened(fresh)


def test_a_batch_that_was_written_in_part_is_completed(data, tmp_path):
    """Also when the number of trials side by side was another."""
    first = mfpar.tune(data.path, SMALL, trials=3, study=tmp_path / "journal")
    more = mfpar.tune(data.path, SMALL, trials=6, parallel=2, study=tmp_path / "journal")
    assert what_happened(more)[0][:3] == what_happened(first)[0]
    assert [trial.number for trial in more.trials] == list(range(6))


def test_other_searches_keep_out_of_a_study(data, tmp_path):
    output, options = tmp_path / "best.toml", {"trials": 2, "output": tmp_path / "best.toml"}
    mfpar.tune(data.path, SMALL, **options)
    other = plant(tmp_path / "other.h5", seed=1)
    for path, space, changed, sentence in (
        (other.path, SMALL, {}, "is a study of other data"),
        (data.path, SMALL | {"factors": 8}, {}, "is a study of another space"),
        (data.path, SMALL, {"folds": 3}, "is a study of another validation"),
        (data.path, SMALL, {"seed": 1}, "is a study of another seed"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            mfpar.tune(path, space, **options | changed)
    mfpar.tune(data.path, SMALL | {"factors": 8}, **options, force=True)
    assert tomllib.loads(output.read_text())["model"]["factors"] == 8
    assert mfpar.tune(data.path, SMALL | {"factors": 8, "threads": 2}, **options).settings["threads"] == 2


def test_files_that_are_not_its_own_stay(data, tmp_path):
    output = tmp_path / "best.toml"
    output.write_text("mine")
    with pytest.raises(OutputExistsError, match="exists already"):
        mfpar.tune(data.path, SMALL, trials=1, output=output)
    with pytest.raises(FormatError, match="is no journal"):
        mfpar.tune(data.path, SMALL, trials=1, study=output)
    with pytest.raises(OutputExistsError, match="choose two names"):
        mfpar.tune(data.path, SMALL, trials=1, study=output, output=output, force=True)
    with pytest.raises(OutputExistsError, match="is also an input"):
        mfpar.tune(data.path, SMALL, trials=1, study=data.path, force=True)
    assert output.read_text() == "mine"


def test_trials_that_fail_do_not_end_the_search(data, tmp_path, monkeypatch):
    run = Course.run

    def fragile(self):
        if self._train.lr > 0.2:
            raise DivergedError("training diverged")
        run(self)

    monkeypatch.setattr(Course, "run", fragile)
    options = {"trials": 12, "study": tmp_path / "journal"}
    result = mfpar.tune(data.path, SMALL, **options)
    failed = [trial for trial in result.trials if trial.settings["lr"] > 0.2]
    assert failed
    assert all(trial.value is None and trial.message == "training diverged" for trial in failed)
    assert what_happened(mfpar.tune(data.path, SMALL, **options)) == what_happened(result)
    with pytest.raises(DivergedError, match="none of 2 trials came to an end, the first because training diverged"):
        mfpar.tune(data.path, SMALL | {"lr": [0.3, 0.4], "reg": 0.1})
    monkeypatch.setattr(Course, "run", lambda self: None)  # no epoch, so no measure
    with pytest.raises(DivergedError, match="no epoch has a finite rmse"):
        mfpar.tune(data.path, SMALL, trials=1)


own = mfpar.Loss(lambda r, z: z - r, name="test_tuning:own")


def test_losses_of_ones_own(data, tmp_path):
    space = SMALL | {"loss": own, "lr": [0.02, 0.1], "reg": 0.1}
    result = mfpar.tune(data.path, space, output=tmp_path / "best.toml")
    assert result.settings["loss"] is own
    assert tomllib.loads((tmp_path / "best.toml").read_text())["model"]["loss"] == "test_tuning:own"
    assert result.value == mfpar.tune(data.path, space | {"loss": "squared"}).value
    nameless = mfpar.Loss(lambda r, z: r * 0 + z)
    assert mfpar.tune(data.path, space | {"loss": [nameless, own], "lr": 0.1}).settings["loss"] is own
    with pytest.raises(ConfigError, match="can't import it"):
        mfpar.tune(data.path, space | {"loss": nameless}, output=tmp_path / "other.toml")
    with pytest.raises(ConfigError, match="can't import it"):
        mfpar.tune(data.path, space | {"loss": [own, nameless]}, output=tmp_path / "other.toml")


def test_errors_of_the_user_end_the_search(data):
    with pytest.raises(ConfigError, match="poisson"):
        mfpar.tune(data.path, {"loss": "poisson", "epochs": 1}, trials=3)


def test_says_what_to_install(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"install mfpar\[tune\]"):
        mfpar.tune(data.path, SMALL, trials=1)


def test_ratings_in_memory():
    users, items = [number // 30 for number in range(600)], [number % 30 for number in range(600)]
    result = mfpar.tune((users, items, [u % 3 + i % 2 for u, i in zip(users, items, strict=True)]), SMALL, trials=2)
    assert len(result.trials) == 2


def in_parallel(data: Planted, parallel: int, **options):
    def body(comm):
        plan = Search(trials=5, parallel=parallel, **options)
        return tune_file(data.path, data.path, SMALL, plan, comm, lambda event: None, write=False)

    return body


@pytest.mark.parametrize("parallel", [1, 2, 3])
def test_ranks_change_nothing(data, parallel):
    alone = what_happened(in_parallel(data, parallel)(Serial()))
    for size in (2, 3, 4):
        for result in simulated.run(size, in_parallel(data, parallel)):
            assert what_happened(result) == alone


def test_folds_on_ranks(data):
    alone = what_happened(in_parallel(data, 2, folds=2)(Serial()))
    assert what_happened(simulated.run(4, in_parallel(data, 2, folds=2))[3]) == alone


def test_an_error_in_one_group_reaches_all(data, monkeypatch):
    def fail(self, file, team, number, plain):
        if self._comm.rank == 3:
            raise OSError("the disk of one node")
        return original(self, file, team, number, plain)

    original = Trials._trial
    monkeypatch.setattr(Trials, "_trial", fail)
    outcomes = simulated.run_all(4, in_parallel(data, 2))
    assert isinstance(outcomes[3], OSError)
    assert all(isinstance(outcome, RankError) and "the disk of one node" in str(outcome) for outcome in outcomes[:3])


def test_command_line(data, tmp_path, run_cli):
    options = ("--factors", "4", "--epochs", "4", "--lr", "0.05:0.3", "--reg", "0.02,0.1", "--biases", "true,false")
    options += ("--trials", "4", "--folds", "2", "--seed", "2")
    command = ("tune", data.path, "-o", tmp_path / "best.toml", *options)
    done = run_cli(*command, "--parallel", "2")
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert lines[0] == ["trial", "rmse", "biases", "reg", "lr", "epochs", "seconds"]
    assert [line[0] for line in lines[1:]] == ["0", "1", "2", "3", "best"]
    assert not done.stderr
    best = tomllib.loads((tmp_path / "best.toml").read_text())
    assert f"{best['result']['value']:.6f}" == lines[-1][1]
    names = ("factors", "epochs", "lr", "reg", "biases")
    assert best["result"]["space"] == dict(zip(names, options[1:10:2], strict=True))
    settings = read_config(str(tmp_path / "best.toml"))
    assert set(settings["model"]) == {"factors", "biases", "reg"}
    assert set(settings["train"]) == {"epochs", "lr", "seed"}

    trained = run_cli("train", data.path, "-o", tmp_path / "m.h5", "--config", tmp_path / "best.toml")
    assert trained.returncode == 0, trained.stderr
    epochs = best["result"]["epochs"]
    assert f"epoch   {epochs}/{epochs}" in trained.stdout

    ranks = run_cli(*command, "--parallel", "2", "--json", "--study", tmp_path / "other", "--force", ranks=2)
    assert ranks.returncode == 0, ranks.stderr
    result = json.loads(ranks.stdout)
    assert result["value"] == best["result"]["value"]
    assert result["settings"] == settings["model"] | settings["train"]
    again = tomllib.loads((tmp_path / "best.toml").read_text())
    assert again == best
    space = {"factors": 4, "epochs": 4, "lr": (0.05, 0.3), "reg": [0.02, 0.1], "biases": [True, False]}
    kept = mfpar.tune(data.path, space, trials=4, folds=2, seed=2, study=tmp_path / "other")  # all from the journal
    assert kept.trials == tuple(map(Trial.from_dict, result["trials"]))


@pytest.mark.parametrize("ranks", [2, 3])
def test_an_error_in_one_group_ends_the_job(data, tmp_path, run_cli, ranks):
    """Rank 1 fails in the middle of a trial while the others train or wait, alone or beside it in its group."""
    (tmp_path / "sitecustomize.py").write_text(
        "from mfpar.parallel.launch import launched_rank\n"
        "if launched_rank() == 1:\n"
        "    from mfpar.engine.training import Training\n"
        "    def fail(self, *rest, **more):\n"
        "        raise RuntimeError('a bad day')\n"
        "    Training.measure = fail\n"
    )
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}"}
    options = ("--epochs", "100000", "--patience", "100000", "--trials", "4", "--parallel", "2", "--factors", "4")
    command = ("tune", data.path, "-o", tmp_path / "best.toml", *options)
    done = run_cli(*command, ranks=ranks, timeout=60, environment=environment)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.count("mfpar: error: rank 1 failed: RuntimeError: a bad day") == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_command_line_refuses(data, tmp_path, run_cli):
    done = run_cli("tune", data.path, "-o", "best.toml", "--factors", "many")
    assert done.returncode == 2
    assert "argument --factors: 'many': expected an integer from 1 to 4096, or several with commas, or a range" in (
        " ".join(done.stderr.split())
    )
    done = run_cli("tune", data.path, "-o", "best.toml", "--lr", "0.3:0.1")
    assert done.returncode == 2
    assert done.stderr == "mfpar: error: lr=0.3:0.1: expected a range LOW:HIGH with LOW below HIGH\n"
