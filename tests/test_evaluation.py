"""Measures of a saved model: against plain loops over pairs and rankings, and the same on any number of ranks."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import simulated
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import UNKNOWN, Planted, Ratings, plant, write

import mfpar
from mfpar.cli.main import main
from mfpar.errors import ConfigError
from mfpar.model import rowwise, topk
from mfpar.model.auc import auc
from mfpar.model.model import Model
from mfpar.model.ranking import Standing
from mfpar.parallel.comm import Serial

EVERYTHING = (
    *("rmse", "mae", "log_loss", "accuracy", "deviance", "auc", "row_auc", "mpr"),
    *("recall@1", "recall@10", "ndcg@3", "ndcg@10", "ndcg@1000"),
)
LOSSES = {"stars": "squared", "labels": "logistic", "counts": "poisson", "implicit": "bpr-row"}


@dataclass(frozen=True)
class Case:
    """A blocked file, what is in it, and a model trained on it."""

    data: Planted
    model: Model


def transformed(path: Path, data: Planted, change) -> Planted:
    """The same cells with other ratings."""
    parts = {
        name: dataclasses.replace(part, values=change(part.values))
        for name, part in (("train", data.train), ("test", data.test))
    }
    values = parts["train"].values
    header = dataclasses.replace(
        data.header,
        mean=float(values.mean(dtype=float)),
        deviation=float(values.std(dtype=float)),
        minimum=float(values.min()),
        maximum=float(values.max()),
    )
    write(path, data.grid, header, data.row_ids, data.col_ids, parts)
    return dataclasses.replace(data, path=path, header=header, **parts)


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("cases")
    stars = plant(folder / "stars.h5")
    data = {
        "stars": stars,
        "labels": transformed(folder / "labels.h5", stars, lambda v: np.where(v > 3.3, 1, -1).astype(np.float32)),
        "counts": transformed(folder / "counts.h5", stars, lambda v: np.maximum(np.round(v - 1), 0).astype(np.float32)),
        "implicit": plant(folder / "implicit.h5", implicit=True, seed=3),
    }
    run = {"factors": 5, "epochs": 4}
    return {
        kind: Case(its, mfpar.factorize(its.path, loss=LOSSES[kind], output=folder / f"{kind}-model.h5", **run))
        for kind, its in data.items()
    }


def naive(case: Case, data: Planted, measure: str, relevant: float | None = None) -> float:
    """A measure of the held-out part of `data`, by ids, in plain Python."""
    model = case.model
    known_rows = {id_: i for i, id_ in enumerate(model.row_ids.take(np.arange(model.shape[0])).tolist())}
    known_cols = {id_: j for j, id_ in enumerate(model.col_ids.take(np.arange(model.shape[1])).tolist())}

    def triples(part: Ratings) -> list[tuple[int, int, float]]:
        return [
            (
                -1 if i == UNKNOWN else known_rows.get(int(data.row_ids[i]), -1),
                -1 if j == UNKNOWN else known_cols.get(int(data.col_ids[j]), -1),
                float(r),
            )
            for i, j, r in zip(part.rows, part.cols, part.values, strict=True)
        ]

    held, train = triples(data.test), triples(data.train)
    z = [float(model.score_at(np.array([i]), np.array([j]))[0]) for i, j, _ in held]
    name, _, n = measure.partition("@")
    if name in ("rmse", "mae", "deviance"):
        mu = [float(model.predictions(np.array([score], np.float32))[0]) for score in z]
        target = [float(r > 0) if model.loss == "logistic" else r for _, _, r in held]
        if name == "rmse":
            return math.sqrt(sum((r - m) ** 2 for r, m in zip(target, mu, strict=True)) / len(mu))
        if name == "mae":
            return sum(abs(r - m) for r, m in zip(target, mu, strict=True)) / len(mu)
        if min(mu) < 0 or min(target) < 0:
            return math.nan
        gone = [2 * ((r * math.log(r / m) if r > 0 else 0) - r + m) for r, m in zip(target, mu, strict=True)]
        return sum(gone) / len(gone)
    if name == "log_loss":
        chances = [1 / (1 + math.exp(-score)) for score in z]
        return -sum(math.log(p if r > 0 else 1 - p) for p, (_, _, r) in zip(chances, held, strict=True)) / len(held)
    if name == "accuracy":
        return sum((score > 0) == (r > 0) for score, (_, _, r) in zip(z, held, strict=True)) / len(held)
    if name == "auc":
        return share([s for s, (_, _, r) in zip(z, held, strict=True) if r > 0],
                     [s for s, (_, _, r) in zip(z, held, strict=True) if r <= 0])  # fmt: skip
    explicit = any(r <= 0 for *_, r in held)
    total = weight = 0.0
    for row in sorted({i for i, *_ in held} - {-1}):
        dense = model.score_at(np.full(model.shape[1], row), np.arange(model.shape[1])).tolist()
        mine = {j: r for i, j, r in held if i == row and j >= 0}
        rated = {j for i, j, _ in train if i == row}
        candidates = [j for j in range(model.shape[1]) if j not in rated]
        if name == "row_auc":
            if explicit:
                positives = [dense[j] for j, r in mine.items() if r > 0]
                negatives = [dense[j] for j, r in mine.items() if r <= 0]
            else:
                positives = [dense[j] for j in mine if j not in rated]
                negatives = [dense[j] for j in candidates if j not in mine]
            if positives and negatives:
                total, weight = total + share(positives, negatives), weight + 1
            continue
        ranking = sorted(candidates, key=lambda j: (-dense[j], j))
        if name == "mpr":
            for j, r in mine.items():
                if r > 0 and j in ranking:
                    total += r * (ranking.index(j) / (len(ranking) - 1) if len(ranking) > 1 else 0)
                    weight += r
            continue
        wanted = {j for j, r in mine.items() if (r > 0 if relevant is None else r >= relevant) and j in ranking}
        if not wanted:
            continue
        weight += 1
        hits = [place for place, j in enumerate(ranking[: int(n)]) if j in wanted]
        if name == "recall":
            total += len(hits) / len(wanted)
        else:
            ideal = sum(1 / math.log2(place + 2) for place in range(min(int(n), len(wanted))))
            total += sum(1 / math.log2(place + 2) for place in hits) / ideal
    return total / weight if weight else math.nan


def share(positives: list[float], negatives: list[float]) -> float:
    won = sum(1.0 if p > q else 0.5 if p == q else 0.0 for p in positives for q in negatives)
    return won / (len(positives) * len(negatives)) if positives and negatives else math.nan


@pytest.mark.parametrize("kind", LOSSES)
def test_every_measure_is_what_plain_loops_find(cases, kind):
    case = cases[kind]
    scores = case.model.evaluate(metrics=EVERYTHING)
    assert tuple(scores.measures) == EVERYTHING
    assert (scores.count, scores.unknown) == (162, 12)
    for measure, value in scores.measures.items():
        assert value == pytest.approx(naive(case, case.data, measure), rel=1e-6, nan_ok=True), measure
    finite = {name for name, value in scores.measures.items() if math.isfinite(value)}
    one_sided = kind in ("stars", "implicit")  # nothing negative to compare with
    if kind in ("labels", "counts"):
        assert len({round(scores.measures[name], 9) for name in ("recall@1", "recall@10", "ndcg@3", "row_auc")}) == 4
    assert set(EVERYTHING) - finite <= {"deviance", *(["auc"] * one_sided)}
    assert not one_sided or math.isnan(scores.measures["auc"])


@pytest.mark.parametrize("kind", ["stars", "labels"])
def test_another_file_is_measured_by_id(cases, tmp_path, kind):
    case = cases[kind]
    data = cases["stars"].data
    # Ids of which the model knows two thirds, elsewhere in the order and the grid.
    strange = plant(tmp_path / "other.h5", grid=5, seed=9)
    rng = np.random.default_rng(0)
    row_ids = np.concatenate((rng.permutation(data.row_ids)[:40], 10**6 + np.arange(21)))
    col_ids = np.concatenate((rng.permutation(data.col_ids)[:28], 10**6 + np.arange(15)))
    other = dataclasses.replace(strange, row_ids=rng.permutation(row_ids), col_ids=rng.permutation(col_ids))
    parts = {"train": other.train, "test": other.test}
    write(other.path, other.grid, other.header, other.row_ids, other.col_ids, parts)
    scores = case.model.evaluate(other.path, metrics=EVERYTHING, relevant=3.5)
    assert scores.unknown > 50
    for measure, value in scores.measures.items():
        assert value == pytest.approx(naive(case, other, measure, 3.5), rel=1e-6, nan_ok=True), measure


def test_what_is_relevant_can_be_said(cases):
    case = cases["stars"]
    for relevant in (2.0, 3.5, 99.0):
        found = case.model.evaluate(metrics="recall@10,ndcg@10", relevant=relevant).measures
        for measure, value in found.items():
            assert value == pytest.approx(naive(case, case.data, measure, relevant), rel=1e-9, nan_ok=True)
    assert math.isnan(found["ndcg@10"])


def test_a_held_out_column_that_was_trained_on_is_no_candidate(cases, tmp_path):
    case = cases["implicit"]
    data = case.data
    again = data.train[np.arange(60)]
    test = Ratings(*(np.concatenate((getattr(data.test, f), getattr(again, f))) for f in ("rows", "cols", "values")))
    both = dataclasses.replace(data, path=tmp_path / "both.h5", test=test)
    header = dataclasses.replace(data.header, test_ratings=len(test.rows))
    write(both.path, both.grid, header, both.row_ids, both.col_ids, {"train": both.train, "test": test})
    measures = ("row_auc", "mpr", "recall@10", "ndcg@10")
    found = case.model.evaluate(both.path, metrics=measures).measures
    assert found == case.model.evaluate(metrics=measures).measures
    for measure, value in found.items():
        assert value == pytest.approx(naive(case, both, measure), rel=1e-9)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_same_bits_on_any_ranks_and_in_any_groups(cases, kind, monkeypatch):
    model = cases[kind].model
    alone = json.dumps(model.evaluate(metrics=EVERYTHING).measures)
    for ranks in (1, 2, 3, 5):
        found = simulated.run(ranks, lambda comm: model.evaluate(metrics=EVERYTHING, comm=comm), seed=ranks)
        assert [json.dumps(scores.measures) for scores in found] == [alone] * ranks
        assert {(scores.count, scores.unknown) for scores in found} == {(162, 12)}
    monkeypatch.setattr(rowwise, "USERS", 3)
    monkeypatch.setattr(topk, "SCAN", 4 * model.factors * 7)
    assert json.dumps(model.evaluate(metrics=EVERYTHING).measures) == alone


def test_more_ranks_than_blocks_and_an_error_of_one(cases):
    model = cases["labels"].model
    found = simulated.run(9, lambda comm: model.evaluate(metrics="auc,row_auc,ndcg@10", comm=comm))
    assert {json.dumps(scores.measures) for scores in found} == {
        json.dumps(model.evaluate(metrics="auc,row_auc,ndcg@10").measures)
    }
    with pytest.raises(ConfigError, match="is none of"):
        simulated.run(2, lambda comm: model.evaluate(metrics="nonsense", comm=comm))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_standing_among_candidates_with_ties(data):
    count = data.draw(st.integers(1, 30))
    scores = np.array(data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)), np.float32)
    held = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True)))
    if data.draw(st.booleans()):
        held.sort()
    step = data.draw(st.integers(1, count))
    standing = Standing(held, scores[held])
    for first in range(0, count, step):
        some = np.arange(first, min(first + step, count))
        standing.count(some, scores[some])
    ranking = sorted(range(count), key=lambda j: (-scores[j], j))
    assert standing.candidates == count
    assert standing.ranks.tolist() == [ranking.index(j) for j in held]
    assert standing.wins.tolist() == [sum(2 * (scores[j] > s) + (scores[j] == s) for s in scores) for j in held]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_pairs_of_ranks_that_have_nothing_of_a_kind(ranks):
    rng = np.random.default_rng(ranks)
    positives = [rng.integers(0, 6, rank * 7).astype(np.float32) for rank in range(ranks)]  # none on the first
    negatives = [rng.integers(0, 5, (ranks - 1 - rank) * 4).astype(np.float32) for rank in range(ranks)]
    found = simulated.run(ranks, lambda comm: auc(positives[comm.rank], negatives[comm.rank], comm))
    expected = share(np.concatenate(positives).tolist(), np.concatenate(negatives).tolist())
    assert found == [pytest.approx(expected, nan_ok=True)] * ranks
    assert math.isnan(auc(np.float32([1]), np.float32([]), Serial()))


def test_log_loss_and_predictions_survive_extreme_scores():
    from mfpar.metrics import terms

    z, labels = np.array([-2000.0, 2000.0, -800.0, 0.0]), np.array([1.0, 1.0, 0.0, 0.0])
    assert terms("log_loss", labels, z, z).tolist() == [2000.0, 0.0, 0.0, pytest.approx(math.log(2))]
    deviance = terms("deviance", np.array([0.0, 0.0, 2.0, 2.0, -1.0, 1.0]), z, np.array([0.0, 1.5, 2.0, 0, 1.0, -1.0]))
    np.testing.assert_array_equal(deviance, [0, 3, 0, math.inf, math.nan, math.nan])


def test_defaults_suit_the_loss(cases):
    expected = {
        "stars": ["rmse", "mae"],
        "labels": ["log_loss", "accuracy", "auc", "row_auc"],
        "counts": ["deviance", "rmse", "mae"],
        "implicit": ["row_auc", "mpr", "recall@10", "ndcg@10"],
    }
    for kind, measures in expected.items():
        scores = cases[kind].model.evaluate()
        assert list(scores.measures) == measures
        assert math.isnan(scores.rmse) == ("rmse" not in measures)
        assert cases[kind].model.rmse() == cases[kind].model.evaluate(metrics=["rmse"]).rmse > 0


@pytest.mark.parametrize("asked", ["nonsense", "", "rmse,", "RMSE", "recall", "ndcg@0", "ndcg@n", "mpr@3", "rmse@1"])
def test_unknown_measures_are_refused_with_those_there_are(cases, asked):
    with pytest.raises(ConfigError, match=r"is none of rmse, mae, .*, auc, row_auc, mpr, recall@n, ndcg@n "):
        cases["stars"].model.evaluate(metrics=asked)


def test_each_measure_is_taken_once(cases):
    assert list(cases["stars"].model.evaluate(metrics="mae, rmse,mae").measures) == ["mae", "rmse"]


def triples(data: Planted) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The held-out part with ids; what is unknown gets some that occur nowhere."""
    rows, cols = (
        np.where(at == UNKNOWN, 10**6, ids[at])
        for at, ids in ((data.test.rows, data.row_ids), (data.test.cols, data.col_ids))
    )
    return rows, cols, data.test.values


def test_any_source_is_measured_without_ranking(cases):
    measures = ("rmse", "log_loss", "accuracy", "auc", "row_auc")
    case = cases["labels"]
    blocked, plain = (case.model.evaluate(source, metrics=measures) for source in (None, triples(case.data)))
    assert plain.measures == pytest.approx(blocked.measures, rel=1e-12)
    assert (plain.count, plain.unknown) == (blocked.count, blocked.unknown)
    found = simulated.run(2, lambda comm: case.model.evaluate(triples(case.data), metrics=measures, comm=comm))
    assert found == [plain] * 2


def test_ranking_takes_a_blocked_file(cases):
    for kind, names in (("labels", "mpr, ndcg@3"), ("implicit", "mpr, recall@10, ndcg@10"), ("stars", "row_auc")):
        case = cases[kind]
        metrics = {"labels": "auc,mpr,ndcg@3", "implicit": None, "stars": "row_auc"}[kind]
        with pytest.raises(ConfigError, match=f"^{names}.*blocked file"):
            case.model.evaluate(triples(case.data), metrics=metrics)


def test_the_command_line_tells_the_same_on_ranks(cases, run_cli, tmp_path):
    data, path = cases["labels"].data, cases["labels"].model.path
    measures = "auc,row_auc,rmse,mpr,recall@5,ndcg@10"
    one = run_cli("evaluate", path, "--json", "--metrics", measures, "--relevant", 1)
    two = run_cli("evaluate", path, data.path, "--json", "--metrics", measures, "--relevant", 1, ranks=2)
    assert (one.returncode, one.stderr, two.returncode, two.stderr) == (0, "", 0, "")
    assert one.stdout == two.stdout  # one line: the first rank alone speaks
    expected = cases["labels"].model.evaluate(metrics=measures, relevant=1)
    assert json.loads(one.stdout) == {**expected.measures, "count": 162, "unknown": 12}
    failed = run_cli("evaluate", path, "--metrics", "nonsense", ranks=2)
    assert failed.returncode == 2
    assert failed.stderr.count("mfpar: error: ") == 1  # among what a launcher may say before or behind it
    assert "mfpar: error: metrics: 'nonsense' is none of" in failed.stderr


def test_the_command_line_prints_names_and_strict_json(cases, capsys):
    path = str(cases["stars"].model.path)
    assert main(["evaluate", path, "--json", "--metrics", "rmse,auc"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert list(found) == ["rmse", "auc", "count", "unknown"]
    assert found["auc"] is None
    assert main(["evaluate", str(cases["labels"].model.path)]) == 0
    scores = cases["labels"].model.evaluate()
    values = dict(zip(("log loss", "accuracy", "AUC", "row AUC"), scores.measures.values(), strict=True))
    line = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
    assert capsys.readouterr().out == f"{line}  on 162 ratings, 12 of them with an unknown user or item\n"


def test_info_tells_of_loss_and_data(cases, capsys):
    for kind, loss in LOSSES.items():
        case = cases[kind]
        assert main(["info", "--json", str(case.model.path)]) == main(["info", "--json", str(case.data.path)]) == 0
        model, data = (json.loads(line) for line in capsys.readouterr().out.splitlines())
        assert (model["loss"], model["link"], model["base"]) == (loss, case.model.link, case.model.base)
        assert model["clip"] is case.model.clip
        assert (data["implicit"], data["weighted"]) == (kind == "implicit", False)
        assert main(["info", str(case.model.path)]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
        name = {"stars": "RMSE", "labels": "log loss", "counts": "deviance", "implicit": "AUC"}[kind]
        assert 2 <= len(lines) <= 3
        assert all(f", test {name} 0." in line or f", test {name} 1." in line for line in lines)
        tests = [next(iter(epoch["test"].values())) for epoch in case.model.curve]
        best = 1 + tests.index(max(tests) if kind == "implicit" else min(tests))
        assert [line.split(":")[0] for line in lines if "(best)" in line] == [f"epoch {best}"]


def test_a_loss_of_ones_own_is_named_for_predictions(cases, run_cli, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import mfpar\n\n@mfpar.Loss\ndef halves(r, z):\n    return z / 2 - r\n\n"
        "@halves.with_link\ndef halves(z):\n    return z / 2\n"
    )
    data = cases["stars"].data
    train = ("train", data.path, "-o", "m.h5", "--factors", 4, "--epochs", 1)
    assert run_cli(*train, "--loss", "mine:halves").stderr == ""
    without = run_cli("evaluate", "m.h5")
    assert without.returncode == 2
    assert "--loss MODULE:NAME" in without.stderr
    given = run_cli("evaluate", "m.h5", "--loss", "mine:halves", "--json")
    assert json.loads(given.stdout)["rmse"] > 0
    (tmp_path / "pairs.csv").write_text(f"user,item\n{data.row_ids[0]},{data.col_ids[0]}\n")
    assert run_cli("predict", "m.h5", "pairs.csv", "--loss", "mine:halves").returncode == 0
    user = data.row_ids[0]
    assert run_cli("recommend", "m.h5", "--user", user, "--loss", "mine:halves", "--json").returncode == 0
