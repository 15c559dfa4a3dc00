"""Every loss with both optimizers and all options: equal to its twin, the same bits on any ranks, and learning."""

import dataclasses
import hashlib
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
import simulated
from planted import Planted, Ratings, write

from mfpar.blockfile import BlockedFile, Header
from mfpar.config import ModelConfig, TrainConfig
from mfpar.engine.course import Course
from mfpar.engine.starting import Starter
from mfpar.engine.training import Training
from mfpar.errors import ConfigError
from mfpar.grid import Grid, balanced_cuts
from mfpar.losses import BUILTIN, find
from mfpar.metrics import from_sums
from mfpar.parallel.comm import Serial
from mfpar.schedule import meetings, ring, sample_key

K = 3  # factors, in all tests: they share kernels

RATED = ("squared", "absolute", "huber", "poisson", "logistic", "hinge", "squared-hinge")
OBJECTIVES: dict[str, dict[str, Any]] = {
    **{name: {"loss": name} for name in (*RATED, "bpr-row", "bpr-col")},
    "one-class-sampled": {"loss": "one-class", "negative_target": -0.2, "negative_weight": 0.7},
    "one-class-all": {"loss": "one-class", "negatives": "all", "negative_target": -0.2},
}
APART = {"reg_p": 0.03, "reg_q": 0.06, "reg_row_bias": 0.02, "reg_col_bias": 0.09}
L1 = {"l1_p": 0.05, "l1_q": 0.03, "l1_row_bias": 0.04, "l1_col_bias": 0.02}
OPTIONS: dict[str, dict[str, Any]] = {
    "biases": APART,
    "plain": {**APART, "biases": False},
    "weights": {**APART, "weighted": True},
    "non-negative": {**APART, "nonnegative": True},
    "l1-per-row": {**APART, **L1, "reg_per": "row"},
    "everything": {**APART, **L1, "weighted": True, "nonnegative": True, "reg_per": "row"},
}
PARTS = ("biases", "weights", "non-negative")
# With every loss the parts of the table and all options together; with one loss those too that are left.
TABLE = [
    (objective, optimizer, options)
    for objective, optimizer, options in itertools.product(OBJECTIVES, ("sgd", "adagrad"), OPTIONS)
    if objective == "squared" or options in (*PARTS, "everything")
]
the_table = pytest.mark.parametrize(("objective", "optimizer", "options"), TABLE, ids=["-".join(row) for row in TABLE])


def blocked(
    path: Path, shape: tuple[int, int], grid: int, train: Ratings, test: Ratings, weights: np.ndarray | None = None
) -> Planted:
    """A blocked file of these ratings."""
    counts = (np.bincount(x, minlength=n) for x, n in zip((train.rows, train.cols), shape, strict=True))
    cuts = Grid(*(balanced_cuts(side, grid) for side in counts))
    values = train.values.astype(float)
    header = Header(
        rows=shape[0], cols=shape[1], ratings=len(values), test_ratings=len(test.values), test_unknown=0, duplicates=0,
        seed=0, streams=1, mean=float(values.mean()), deviation=float(values.std()), minimum=float(values.min()),
        maximum=float(values.max()), implicit=bool((values == 1).all()), weighted=weights is not None,
    )  # fmt: skip
    ids = [np.random.default_rng(n).permutation(3 * n)[:n] for n in shape]
    write(path, cuts, header, *ids, {"train": train, "test": test}, weights)
    return Planted(path, cuts, header, *ids, train, test, 0.0, weights)


def latent(rng: np.random.Generator, shape: tuple[int, int], positive: bool = False) -> np.ndarray:
    """Biases and two factors, of unit variance altogether; with factors at or above zero only, if so wanted."""
    P, Q = (rng.uniform(0, 1.5, (n, 2)) if positive else rng.normal(0, 0.7, (n, 2)) for n in shape)
    product = P @ Q.T
    return rng.normal(0, 0.5, shape[0])[:, None] + rng.normal(0, 0.5, shape[1]) + product - product.mean() * positive


def draw_ratings(rng: np.random.Generator, scores: np.ndarray, kind: str, noise: float) -> np.ndarray:
    """Ratings of a kind that have been made by scores."""
    if kind == "binary":
        return np.where(scores + noise * rng.normal(size=len(scores)) > 0, 1.0, -1.0)
    if kind == "counts":
        return rng.poisson(np.exp(scores)).astype(float)
    return np.ones(len(scores)) if kind == "implicit" else 3 + scores + noise * rng.normal(size=len(scores))


def kind_of(loss: str) -> str:
    return "implicit" if BUILTIN[loss].cells != "rated" else BUILTIN[loss].ratings


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A function to small files, by kind of ratings and whether they have weights."""
    folder = tmp_path_factory.mktemp("small")
    made: dict[tuple[str, bool], Planted] = {}

    def make(kind: str, weighted: bool) -> Planted:
        if (kind, weighted) not in made:
            rng = np.random.default_rng(len(made))
            shape = 23, 17
            cells = rng.permutation(shape[0] * shape[1])[:190]
            i, j = np.divmod(cells, shape[1])
            values = draw_ratings(rng, latent(rng, shape)[i, j], kind, 0.1).astype(np.float32)
            ratings, weights = Ratings(i, j, values), rng.uniform(0.5, 2, 160).astype(np.float32)
            path = folder / f"{kind}-{weighted}.h5"
            made[kind, weighted] = blocked(path, shape, 4, ratings[:160], ratings[160:], weights if weighted else None)
        return made[kind, weighted]

    return make


def settings(objective: str, optimizer: str, **given: Any) -> tuple[ModelConfig, Any, TrainConfig]:
    """Resolved configurations and the loss."""
    given = {"factors": K, "epochs": 2, "optimizer": optimizer, **OBJECTIVES[objective], **given}
    of_model = {name: given.pop(name) for name in ModelConfig.__dataclass_fields__ if name in given}
    model, loss = ModelConfig(**of_model).resolved()
    return model, loss, TrainConfig(**given).resolved(loss)


@dataclass
class Run:
    """What is left of a run on one rank."""

    training: Training
    reports: list[Any]
    events: list[tuple[str, dict[str, Any]]]


def run(planted: Planted, model: ModelConfig, loss: Any, train: TrainConfig, comm: Any = None) -> Run:
    reports, events = [], []
    with BlockedFile(planted.path) as file:
        training = Training(file, model, loss, train, comm or Serial())
        with Course(
            training, planted.path, reports.append, lambda kind, content: events.append((kind, content))
        ) as course:
            course.run()
    return Run(training, reports, events)


def tables(training: Training) -> list[np.ndarray]:
    """P, b, Q and c of a rank, block after block."""
    mine = range(training.first, training.last)
    sides = [[tuple(map(np.copy, block(b))) for b in mine] for block in (training.row_block, training.col_block)]
    return [np.concatenate([part[n] for part in side]) for side in sides for n in (0, 1)]


def fingerprint(planted: Planted, ranks: int, *configs: Any) -> str:
    """Of the model that a run on simulated ranks leaves, and of what it reports."""

    def body(comm):
        done = run(planted, *configs, comm)
        told = [(report.train_loss, report.test, report.validation, report.lr) for report in done.reports]
        return tables(done.training), repr((told, done.events, done.training.base))

    outcomes = simulated.run(ranks, body)
    assert len({told for _, told in outcomes}) == 1
    sha = hashlib.sha256(outcomes[0][1].encode())
    for parts in zip(*(parts for parts, _ in outcomes), strict=True):
        sha.update(np.concatenate(parts))
    return sha.hexdigest()


class Twin:
    """A run in plain Python."""

    def __init__(self, planted: Planted, model: ModelConfig, loss: Any, train: TrainConfig):
        self.planted, self.train, self.model, self.loss = planted, train, model, loss
        with BlockedFile(planted.path) as file:
            training = Training(file, model, loss, train, Serial())
            self.objective, self.layout = training.objective, training.layout
            starter = Starter(file, model, self.layout, train.seed, self.objective.unit)
            sizes = {"rows": planted.grid.row_sizes.tolist(), "cols": planted.grid.col_sizes.tolist()}
            self.p, self.q = ([self.side(starter, side, *b) for b in enumerate(sizes[side])] for side in sizes)
            self.ratings = {part: self.blocks(file, part) for part in ("train", "test")}

    def side(self, starter: Starter, side: str, index: int, size: int) -> naive.Side:
        block = np.empty(self.layout.floats(size), np.float32)
        starter.fill(block, side, index)
        rows = [*self.layout.rows(block, size).tolist(), [0.0] * K]
        state = [*self.layout.state(block, size)[0].tolist()] if self.layout.states else []
        bias = [0.0] * (size + 1) if self.model.biases else []
        return naive.Side(rows, bias, state, self.layout.scales(block, size).tolist())

    def blocks(self, file: BlockedFile, part: str) -> list[list[list[naive.Rating]]]:
        strip = file.strip(part, 0, self.planted.grid.size)
        weights = np.ones(len(strip.values)) if strip.weights is None else strip.weights
        everything = [*zip(*(x.tolist() for x in (strip.rows, strip.cols, strip.values, weights)), strict=True)]
        return [[everything[a:b] for a, b in itertools.pairwise(offsets)] for offsets in strip.offsets.tolist()]

    def epoch(self, number: int, rate: float) -> float:
        """Returns the mean loss."""
        G = self.planted.grid.size
        share = rate / self.train.lr
        rates = (rate if own is None else own * share for own in (self.train.lr_row_bias, self.train.lr_col_bias))
        self.rules = naive.Rules(
            *(self.loss, self.objective.knobs(rate, *rates), self.model.nonnegative),
            *(self.objective.cells, self.objective.every),
        )
        order, key = ring(G, self.train.seed, number), int(sample_key(self.train.seed, number))
        done = []
        for step, i in itertools.product(range(G), range(G)):
            j = int(meetings(order, step)[i])
            done.append(naive.visit(self.p[i], self.q[j], self.ratings["train"][i][j], self.rules, key, (i, j)))
        return sum(sums.value for sums in done) / sum(sums.counted for sums in done)

    def measures(self) -> dict[str, float]:
        """Of the test part; of losses over rated cells."""
        scores = [
            naive.score(self.p[i], self.q[j], ratings, self.loss, self.rules.knobs.base)
            for i, row in enumerate(self.ratings["test"])
            for j, ratings in enumerate(row)
        ]
        sums = (sum(getattr(score, name) for score in scores) for name in ("loss", "squares", "absolutes", "right"))
        return from_sums(self.loss.metrics, *sums, len(self.planted.test.values))

    def tables(self) -> list[np.ndarray]:
        """P, b, Q and c."""
        sides = self.p, self.q
        return [
            np.concatenate([getattr(block, name)[:-1] for block in side])
            for side, name in itertools.product(sides, ("factors", "bias"))
        ]


def table_settings(objective: str, optimizer: str, options: str) -> tuple[bool, tuple[Any, ...]]:
    given = dict(OPTIONS[options])
    weighted = given.pop("weighted", False)
    rates = {"lr": 0.07, "lr_row_bias": 0.05, "lr_col_bias": 0.11}
    return weighted, settings(objective, optimizer, init_scale=0.4, lift=0.0, seed=3, **given, **rates)


@the_table
def test_equals_its_twin(small, monkeypatch, objective, optimizer, options):
    weighted, configs = table_settings(objective, optimizer, options)
    planted = small(kind_of(configs[0].loss), weighted)
    monkeypatch.setattr("mfpar.engine.centre.Averages.centre", lambda *arguments: None)
    done, twin = run(planted, *configs), Twin(planted, *configs)
    started = twin.tables()
    assert not done.events
    for epoch, report in enumerate(done.reports, 1):
        loss = twin.epoch(epoch, 0.07 * 0.95 ** (epoch - 1))
        assert report.train_loss == pytest.approx(loss, rel=1e-4, abs=1e-6)
    if configs[1].cells == "rated":
        assert report.test == pytest.approx(twin.measures(), rel=1e-4, abs=1e-6)
    untouched = {"bpr-row": 1, "bpr-col": 3}.get(objective)  # what both cells of a pair have in common cancels
    for n, (found, expected, before) in enumerate(zip(tables(done.training), twin.tables(), started, strict=True)):
        if len(expected):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
            assert (np.abs(expected - before).mean() > 1e-3) == (n != untouched)


@the_table
def test_ranks_and_threads_change_no_bit(small, objective, optimizer, options):
    weighted, (model, loss, train) = table_settings(objective, optimizer, options)
    planted = small(kind_of(model.loss), weighted)
    alone = fingerprint(planted, 1, model, loss, train)
    assert fingerprint(planted, 2, model, loss, train.having(threads=2)) == alone
    assert fingerprint(planted, 4, model, loss, train) == alone
    assert fingerprint(planted, 4, model, loss, train.having(seed=4)) != alone


# What is learnt.


def learn(folder: Path, kind: str, shape: tuple[int, int], count: int, noise: float = 0.3, part: str = ""):
    """A planted problem: its file, the scores behind it, and which cells have a rating."""
    rng = np.random.default_rng(7)
    scores = latent(rng, shape, part == "non-negative") * (2 if kind == "implicit" else 1)
    if kind == "implicit":
        cells = np.flatnonzero(rng.random(shape[0] * shape[1]) < 1 / (1 + np.exp(3.5 - 1.5 * scores.ravel())))
        cells = rng.permutation(cells)
    else:
        cells = rng.permutation(shape[0] * shape[1])[:count]
    i, j = np.divmod(cells, shape[1])
    ratings = Ratings(i, j, draw_ratings(rng, scores[i, j], kind, noise).astype(np.float32))
    held = len(cells) // 10
    known = np.isin(i, i[held:]) & np.isin(j, j[held:])
    known[held:] = True
    ratings, held = ratings[known], int(known[:held].sum())
    weights = rng.uniform(0.5, 1.5, len(ratings.values) - held).astype(np.float32) if part == "weights" else None
    planted = blocked(folder / f"{kind}-{part}.h5", shape, 4, ratings[held:], ratings[:held], weights)
    rated = np.zeros(shape, bool)
    rated[i, j] = True
    return planted, scores, rated


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """A function to planted problems by kind of ratings."""
    folder, made = tmp_path_factory.mktemp("problems"), {}

    def make(kind, part):
        if (kind, part) not in made:
            made[kind, part] = learn(folder, kind, (300, 200), 15_000, part=part)
        return made[kind, part]

    return make


def scores_of(done: Run) -> np.ndarray:
    """All scores of a finished model."""
    P, b, Q, c = (part.astype(float) for part in tables(done.training))
    return done.training.base + b[:, None] + c + P @ Q.T


def auc(scores: np.ndarray, planted: Planted, rated: np.ndarray, by: str) -> float:
    """Of held-out positives against cells of their row (column) that are not rated: the mean over positives."""
    right = []
    for i, j in zip(planted.test.rows, planted.test.cols, strict=True):
        line, free = (scores[i], ~rated[i]) if by == "row" else (scores[:, j], ~rated[:, j])
        right.append((scores[i, j] > line[free]).mean())
    return float(np.mean(right))


LEARNT = list(itertools.product(OBJECTIVES, ("sgd", "adagrad"), PARTS))


@pytest.mark.parametrize(("objective", "optimizer", "part"), LEARNT, ids=["-".join(row) for row in LEARNT])
def test_learns_what_was_planted(problems, objective, optimizer, part):
    given = {"epochs": 60, "reg": 0.02, "lr_decay": 0.98}
    if part == "non-negative":  # factors that are cut off at zero find their place more slowly
        given |= {"nonnegative": True, "epochs": 200, "lr_decay": 0.99, "lift": 0.0}
    if objective == "poisson" and optimizer == "sgd":  # whose steps grow with the rates
        given |= {"epochs": 200, "lr": 0.005, "lr_decay": 0.995}
    if objective.startswith("one-class"):
        given |= {"negative_target": 0.0, "negative_weight": 1.0 if objective.endswith("sampled") else 0.1}
    model, loss, train = settings(objective, optimizer, **given)
    train = train.having(lr_row_bias=train.lr, lr_col_bias=train.lr)  # nothing new, but the kernels of the table
    planted, truth, rated = problems(kind_of(model.loss), part)
    done = run(planted, model, loss, train)
    scores, test = scores_of(done), planted.test
    found, true, r = scores[test.rows, test.cols], truth[test.rows, test.cols], test.values.astype(float)
    if loss.cells == "rated" and loss.ratings == "any":
        noise = np.sqrt(np.mean((3 + true - r) ** 2))
        error = np.sqrt(np.mean((found - r) ** 2))
        assert error < 1.15 * noise < 0.4 * r.std()
        assert done.reports[-1].test["rmse"] == pytest.approx(error, rel=1e-5)
    elif loss.ratings == "binary":
        right = [np.mean((z > 0) == (r > 0)) for z in (true, found)]
        assert right[1] > right[0] - 0.07 > 0.8
        assert done.reports[-1].test["accuracy"] == pytest.approx(right[1])
    elif loss.ratings == "counts":
        deviance = [np.mean([2 * loss.value(x, z) for x, z in zip(r, s, strict=True)]) for s in (true, found)]
        alone = np.mean([2 * loss.value(x, math.log(r.mean())) for x in r])
        assert deviance[1] < 1.4 * deviance[0] < 0.5 * alone
        assert done.reports[-1].test["deviance"] == pytest.approx(deviance[1], rel=1e-4)
    else:
        areas = [auc(s, planted, rated, "col" if objective == "bpr-col" else "row") for s in (truth, scores)]
        assert areas[1] > areas[0] - 0.04 > 0.85
        assert done.reports[-1].test["auc"] == pytest.approx(areas[1], abs=0.04)


# What settings mean, to the bit.


def same_model(one: Run, other: Run, factors: float = 1.0) -> None:
    """The other's factors are so many times those of the first, and its biases as the square of that."""
    for n, (a, b) in enumerate(zip(tables(one.training), tables(other.training), strict=True)):
        np.testing.assert_array_equal(b, a * np.float32(factors if n % 2 == 0 else factors**2))
    assert other.training.base == pytest.approx(one.training.base * factors**2, rel=1e-7)


def rewritten(planted: Planted, path: Path, times: float = 1.0, weights: np.ndarray | None = None) -> Planted:
    """The same ratings, so many times larger, with other weights."""
    parts = (Ratings(part.rows, part.cols, part.values * np.float32(times)) for part in (planted.train, planted.test))
    return blocked(path, (len(planted.row_ids), len(planted.col_ids)), planted.grid.size, *parts, weights)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
@pytest.mark.parametrize("objective", ["squared", "absolute"])
def test_a_scale_by_a_power_of_four_scales_the_model_exactly(small, tmp_path, objective, optimizer):
    planted = small("any", True)
    models = []
    for times in (1.0, 16.0):
        scaled = rewritten(planted, tmp_path / f"{times}.h5", times, planted.weights)
        given = {name: value for name, value in OPTIONS["everything"].items() if name != "weighted"}
        models.append(run(scaled, *settings(objective, optimizer, **given)))
    same_model(*models, factors=4.0)


def test_a_weight_of_four_is_a_longer_step_with_less_regularisation(small, tmp_path):
    planted = small("any", False)
    heavy = rewritten(planted, tmp_path / "heavy.h5", weights=np.full(len(planted.train.values), 4, np.float32))
    same_model(
        run(planted, *settings("squared", "sgd", lr=0.04, reg=0.05)),
        run(heavy, *settings("squared", "sgd", lr=0.01, reg=0.2)),
    )


def test_regularisation_per_row_is_that_per_rating_shared_out(tmp_path):
    rng = np.random.default_rng(0)
    i, j = np.divmod(rng.permutation(256), 16)
    ratings = Ratings(i, j, rng.normal(3, 1, 256).astype(np.float32))
    planted = blocked(tmp_path / "full.h5", (16, 16), 4, ratings, ratings[:10])
    apart = {name: 16 * value for name, value in APART.items()}
    same_model(
        run(planted, *settings("squared", "sgd", **APART)),
        run(planted, *settings("squared", "sgd", reg_per="row", **apart)),
    )


def test_a_huber_loss_of_a_large_delta_is_the_squared_loss(small):
    planted, given = small("any", False), {"lift": 3.0, "reg": 0.05, "lr": 0.03}
    large = run(planted, *settings("huber", "sgd", huber_delta=1e9, **given))
    same_model(run(planted, *settings("squared", "sgd", **given)), large)
    other = run(planted, *settings("huber", "sgd", huber_delta=0.1, **given))
    assert (tables(large.training)[0] != tables(other.training)[0]).any()


@pytest.mark.parametrize("biases", [True, False])
def test_non_negative_factors_are_not_negative_in_the_end(small, biases):
    for optimizer in ("sgd", "adagrad"):
        given = {"biases": biases, "nonnegative": True, "epochs": 5, "lr": 0.1}
        done = run(small("any", False), *settings("squared", optimizer, **given))
        P, b, Q, _ = tables(done.training)
        assert min(P.min(), Q.min()) >= 0 < max(P.max(), Q.max())
        assert bool((b < 0).any()) == biases
        if not biases:  # the mean is for them to learn
            assert done.training.base == 0


def test_l1_leaves_zeros_in_the_end(small):
    given = {**L1, "reg_per": "row", "epochs": 5}
    many = run(small("any", False), *settings("squared", "sgd", **{**given, "l1_p": 0.5, "l1_row_bias": 10.0}))
    P, b, _, c = tables(many.training)
    assert (P == 0).mean() > 0.5
    assert (b == 0).all()
    assert (c != 0).any()
    none = tables(run(small("any", False), *settings("squared", "sgd", epochs=5)).training)
    assert all((part != 0).all() for part in none)


def test_clipped_predictions_are_measured_clipped(small):
    planted = small("any", False)
    done = run(planted, *settings("squared", "sgd", clip=True, init_scale=1.5, epochs=2))
    predictions = scores_of(done)[planted.test.rows, planted.test.cols]
    low, high = planted.header.minimum, planted.header.maximum
    assert predictions.max() > high or predictions.min() < low
    error = np.sqrt(np.mean((predictions.clip(low, high) - planted.test.values) ** 2))
    assert done.reports[-1].test["rmse"] == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "kind", "told"),
    [
        ("logistic", "any", r"any-False.h5: has a rating of .*, but loss logistic takes ratings of −1 and 1, or"),
        ("hinge", "counts", r"counts-False.h5: has a rating of .*, but loss hinge takes ratings of"),
        ("poisson", "binary", r"has a rating of -1, but loss poisson takes ratings that are not negative"),
        ("squared-hinge", "implicit", r"every rating is 1, so there is nothing that loss squared-hinge could tell"),
    ],
)
def test_ratings_that_do_not_suit_a_loss_are_told(small, loss, kind, told):
    with pytest.raises(ConfigError, match=told):
        run(small(kind, False), *settings(loss, "sgd"))


@pytest.mark.parametrize("loss", ["logistic", "hinge", "squared-hinge"])
def test_labels_of_zero_learn_what_those_of_minus_one_do(small, tmp_path, loss):
    planted = small("binary", False)
    parts = (Ratings(part.rows, part.cols, np.maximum(part.values, 0)) for part in (planted.train, planted.test))
    zeros = blocked(tmp_path / "zeros.h5", (23, 17), 4, *parts)
    models = [run(data, *settings(loss, "sgd")) for data in (planted, zeros)]
    same_model(*models)
    assert models[0].reports[-1].test == models[1].reports[-1].test


def test_settings_that_follow_from_the_loss():
    for name, loss in BUILTIN.items():
        model, found = ModelConfig(loss=name).resolved()
        assert found.name == find(name).name == name
        assert {model.reg_p, model.reg_q, model.reg_row_bias, model.reg_col_bias} == {loss.reg}
        assert (model.lift, model.mean) == (loss.lift, True)
        for optimizer in ("sgd", "adagrad"):
            assert TrainConfig(optimizer=optimizer).resolved(loss).lr == loss.rates[optimizer]
    assert ModelConfig(reg=0.3, reg_q=0.1).resolved()[0].reg_p == 0.3
    assert ModelConfig(biases=False, nonnegative=True).resolved()[0].mean is False
    assert ModelConfig(biases=False).resolved()[0].lift == 0
    assert dataclasses.replace(BUILTIN["huber"]).degree == 1
