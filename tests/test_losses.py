"""Losses: gradients are those of the values, kernels compute what Python does, and a user's losses work like ours."""

import functools
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import simulated
from numba import njit
from planted import plant

from mfpar import losses
from mfpar.api import factorize
from mfpar.api.runs import train_file
from mfpar.config import ModelConfig, TrainConfig
from mfpar.errors import ConfigError
from mfpar.kernels import link_kernel, register
from mfpar.kernels.objective import gradient, is_difference, is_square, link, value
from mfpar.losses import BUILTIN, Loss, find, huber_of, importable, is_builtin
from mfpar.parallel.comm import Serial

RATINGS = {"any": (-2.5, 0.0, 0.5, 1.0, 3.0, 5.0), "binary": (-1.0, 0.0, 1.0), "counts": (0.0, 1.0, 2.0, 7.0, 400.0)}
SCORES = (*np.linspace(-7.13, 7.21, 41), 12.3, -12.3, 30.1, -30.1)
EVERY = [*BUILTIN.values(), huber_of(0.3)]
every_loss = pytest.mark.parametrize("loss", EVERY, ids=[*BUILTIN, "huber-0.3"])


def points(loss):
    """Ratings and scores, away from where a gradient jumps."""
    return tuple(np.ravel(part) for part in np.meshgrid(RATINGS[loss.ratings], SCORES))


def pairs(loss):
    """The same, one by one, as what each function computes with in double precision."""
    number = float
    return [(number(r), number(z)) for r, z in zip(*points(loss), strict=True)]


@every_loss
def test_the_gradient_is_the_derivative_of_the_value(loss):
    h = 1e-5
    for r, z in pairs(loss):
        difference = (loss.value(r, z + h) - loss.value(r, z - h)) / (2 * h)
        assert loss.gradient(r, z) == pytest.approx(difference, rel=1e-6, abs=1e-7 * (1 + abs(loss.value(r, z))))


@every_loss
def test_a_loss_is_convex_and_least_where_the_prediction_is_right(loss):
    scores = sorted(map(float, SCORES))
    for r in RATINGS[loss.ratings]:
        gradients = [loss.gradient(r, z) for z in scores]
        assert gradients == sorted(gradients)
        values = [loss.value(r, z) for z in scores]
        assert min(values) >= 0
        best = scores[np.argmin(values)]
        if loss.ratings == "any" and not loss.pairs:
            assert abs(best - r) < 0.5
        elif loss.ratings == "counts" and r:
            assert abs(math.exp(best) - r) < 0.5 * r
        elif not loss.pairs or r > 0:
            assert (best > 0) == (r > 0)


@functools.cache
def compiled(key):
    """A compiled function that writes gradient, value and link of ratings and scores."""

    @njit
    def apply(r, z, out):
        for t in range(len(r)):
            out[t, 0], out[t, 1], out[t, 2] = gradient(key, r[t], z[t]), value(key, r[t], z[t]), link(key, z[t])

    return apply


def compute(loss, r, z):
    """float64[n, 3]: gradient, value and link as kernels compute them; `r` and `z` as float32."""
    out = np.empty((len(r), 3))
    compiled(register(loss))(np.asarray(r, np.float32), np.asarray(z, np.float32), out)
    return out


def in_python(loss, r, z):
    """The same by the functions themselves, in float64."""
    rounded = zip(*(np.asarray(part, np.float32).tolist() for part in (r, z)), strict=True)
    return np.array([(loss.gradient(r, z), loss.value(r, z), loss.link_function(z)) for r, z in rounded])


@every_loss
def test_kernels_compute_what_the_functions_say(loss):
    r, z = points(loss)
    found, expected = compute(loss, r, z), in_python(loss, r, z)
    terms = 1 + np.abs(r) * np.abs(z) + np.abs(r) * np.log(np.maximum(r, 1))  # that cancel in a value
    for column, size in enumerate((1 + np.abs(r), terms, 1)):
        allowed = 1e-5 * np.abs(expected[:, column]) + 1e-6 * size
        np.testing.assert_array_less(np.abs(found - expected)[:, column], allowed)


def test_gradients_of_squared_loss_round_once():
    r, z = np.random.default_rng(0).normal(size=(2, 100)).astype(np.float32)
    np.testing.assert_array_equal(compute(BUILTIN["squared"], r, z)[:, 0], z - r)


@njit
def elementary(x, out):
    for t in range(len(x)):
        out[t, 0], out[t, 1], out[t, 2] = losses.exp(x[t]), losses.sigmoid(x[t]), losses.softplus(x[t])
        out[t, 3], out[t, 4], out[t, 5] = losses.positive_part(x[t]), losses.label(x[t]), losses.log(abs(x[t]))


def test_elementary_functions_are_right_to_single_precision():
    rng = np.random.default_rng(0)
    x = np.concatenate((rng.uniform(-87, 87, 20_000), rng.normal(size=20_000), rng.uniform(-1e-3, 1e-3, 1000)))
    x = x.astype(np.float32)
    found = np.empty((len(x), 6), np.float32)
    elementary(x, found)
    exact = x.astype(np.float64)
    exp, softplus, log = np.exp(exact), np.logaddexp(0, exact), np.log(np.abs(exact))
    small = np.abs(x) <= 10
    np.testing.assert_allclose(found[small, 0], exp[small], rtol=6e-7)
    np.testing.assert_allclose(found[:, 0], exp, rtol=5e-6)
    np.testing.assert_allclose(found[:, 1], 1 / (1 + np.exp(-exact)), atol=3e-7)
    np.testing.assert_allclose(found[:, 2], softplus, rtol=5e-6)
    np.testing.assert_array_equal(found[:, 3], np.maximum(x, 0))
    np.testing.assert_array_equal(found[:, 4], np.where(x > 0, 1, -1))
    np.testing.assert_allclose(found[:, 5], log, rtol=6e-7, atol=1e-7)
    functions = losses.exp, losses.sigmoid, losses.softplus, losses.positive_part, losses.label
    for column, function in enumerate(functions):
        np.testing.assert_allclose([function(v) for v in exact[::50]], found[::50, column], rtol=5e-6, atol=3e-7)


def test_elementary_functions_at_their_ends():
    x = np.array([0, 1, 200, -200, 16, -16, np.inf, -np.inf, np.nan, 1e-30, 3e38], np.float32)
    found = np.empty((len(x), 6), np.float32)
    elementary(x, found)
    assert np.isfinite(np.delete(found[:, :2], 8, axis=0)).all()
    assert np.isnan(found[8, 0])
    assert found[0].tolist() == [1, 0.5, pytest.approx(math.log(2)), 0, -1, -np.inf]
    assert found[1, 5] == 0
    largest = np.exp([losses.LARGEST_EXPONENT, -losses.LARGEST_EXPONENT])
    np.testing.assert_allclose(found[2:4, 0], largest, rtol=5e-6)
    np.testing.assert_allclose(found[2:6, 1], [1, 0, 1, 0], atol=2e-7)
    np.testing.assert_allclose(found[9:, 5], np.log(x[9:].astype(float)), rtol=6e-7)


INVERSE = {"identity": lambda y: y, "sigmoid": lambda y: np.log(y / (1 - y)), "exp": np.log}


@pytest.mark.parametrize("loss", ["squared", "logistic", "poisson"])
def test_links_invert(loss):
    loss = BUILTIN[loss]
    scores = np.linspace(-6, 6, 99, dtype=np.float32)
    predictions = np.empty_like(scores)
    link_kernel(register(loss))(scores, predictions)
    np.testing.assert_allclose(INVERSE[loss.link_name](predictions.astype(float)), scores, atol=2e-4)
    np.testing.assert_allclose(predictions, [loss.link_function(float(z)) for z in scores], rtol=1e-5)


@pytest.mark.parametrize("name", ["logistic", "hinge", "squared-hinge"])
def test_labels_of_zero_and_of_minus_one_are_the_same(name):
    loss = BUILTIN[name]
    np.testing.assert_array_equal(*(compute(loss, np.full(len(SCORES), label), SCORES) for label in (0, -1)))


# Losses of one's own. Functions of the tests' own module, so that kernels take what they find there.

SLOPE = 0.5


def twice(x):
    return x + x


def bent(x):
    return twice(x) if x > 0 else x * np.float32(SLOPE)


@Loss
def pinball(r, z):
    return bent(z - r)


@pinball.with_value
def pinball(r, z):
    return bent(z - r) * (z - r) / 2


@pinball.with_link
def pinball(z):
    return twice(z)


def scaled(factor):
    return Loss(lambda r, z: factor * (z - r), lambda r, z: factor * (z - r) ** 2 / 2)


@pytest.mark.parametrize(
    "loss", [pinball, scaled(np.float32(3)), scaled(3), Loss(lambda r, z: math.tanh(z - r)), Loss(np.subtract)],
    ids=["decorated, with helpers", "closure", "closure of an integer", "lambda", "ufunc"],
)  # fmt: skip
def test_losses_of_ones_own_compute_what_they_say(loss):
    r, z = points(loss)
    np.testing.assert_allclose(compute(loss, r, z), in_python(loss, r, z), rtol=1e-5, atol=1e-6)


def test_what_a_loss_is_called():
    assert pinball.name == "test_losses:pinball"
    assert re.fullmatch(r"test_losses:scaled\.<locals>\.<lambda>", scaled(2).name)
    assert importable(pinball) == "test_losses:pinball"
    assert not is_builtin(pinball)
    assert all(is_builtin(loss) and importable(loss) == name for name, loss in BUILTIN.items())
    assert re.fullmatch(r"loss test_losses:pinball \(test_losses.py, line \d+\)", pinball.where())


def two_sevens(r, z):
    return 1 * z + 23 * r


def one_seven(r, z):
    return 12 * z + 3 * r


def test_losses_that_differ_have_different_kernels():
    functions = [two_sevens, one_seven, *(scaled(factor).gradient for factor in (1, 2, 1.0, np.float32(1)))]
    functions += [lambda r, z: z - r, lambda r, z: r - z, lambda z, r: z - r]
    functions += [lambda r, z: twice(z), lambda r, z: bent(z)]
    keys = [register(Loss(function, name="tests:same")) for function in functions]
    assert len(set(keys)) == len(keys)
    results = [compute(Loss(function, name="tests:same"), [5], [7])[0, 0] for function in functions[:2]]
    assert results == [7 + 5 * 23, 7 * 12 + 15]
    same = {"gradient": functions[-2], "name": "tests:same"}
    others = [{"value": bent}, {"value": twice}, {"link": twice}, {"link": bent}, {"value": bent, "link": bent}]
    others = [register(Loss(**same, **parts)) for parts in others]
    assert len({*keys, *others}) == len(keys) + len(others)
    again = [register(Loss(scaled(factor).gradient, name="tests:same")) for factor in (1, 2)]
    assert again == keys[2:4]


def test_constants_and_helpers_that_a_loss_calls_are_a_part_of_it(monkeypatch):
    keys = [register(pinball)]
    for name, other in (("SLOPE", 0.25), ("twice", lambda x: 2 * x + 1), ("twice", lambda x: 2 * x + 2)):
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules[__name__], name, other)
            keys.append(register(pinball))
    assert len(set(keys)) == len(keys)
    assert register(pinball) == keys[0]


def test_constants_of_another_module_are_a_part_of_it_too(monkeypatch, tmp_path):
    (tmp_path / "settings_of_a_loss.py").write_text("slope = 2.0\n")
    (tmp_path / "loss_with_settings.py").write_text(
        "import settings_of_a_loss as settings\ndef gradient(r, z):\n    return settings.slope * (z - r)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    loss = find("loss_with_settings:gradient")
    before = register(loss), compute(loss, [1], [2])[0, 0]
    monkeypatch.setattr("settings_of_a_loss.slope", 3.0)
    after = register(loss), compute(loss, [1], [2])[0, 0]
    assert (before[1], after[1]) == (2, 3)
    assert before[0] != after[0]


def sinh(x):
    return math.sinh(x)


def test_a_helper_may_be_called_like_what_it_calls():
    assert compute(Loss(lambda r, z: sinh(z - r)), [1], [1.5])[0, 0] == pytest.approx(math.sinh(0.5), rel=1e-6)


def factorial(n):
    return n * factorial(n - 1) if n > 1 else np.float32(1)


# Through training.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("data") / "ratings.h5", grid=4)


def train(data, loss, comm=None, **given):
    """Train for two epochs; returns the fingerprint."""
    model = ModelConfig(factors=3, loss=loss, **given)
    output = data.path.with_name("model.h5")
    return train_file(data.path, output, model, TrainConfig(epochs=2), comm or Serial(), lambda event: None, force=True)


def test_a_copy_of_squared_loss_gives_the_same_bits(data):
    squared = Loss(gradient=lambda r, z: z - r, value=lambda r, z: 0.5 * (r - z) ** 2)
    assert train(data, squared) == train(data, "squared")
    assert train(data, Loss(lambda r, z: z - r)) == train(data, "squared")


def strings(r, z):
    return "worse" if z > r else "better"


def unknown_functions(r, z):
    return subprocess.run(z)


def dictionary(z):
    return {"prediction": z}


@pytest.mark.parametrize(
    ("loss", "role", "function"),
    [
        (Loss(unknown_functions), "gradient", unknown_functions),
        (Loss(strings), "gradient", strings),
        (Loss(lambda r, z: z - r, value=unknown_functions), "value", unknown_functions),
        (Loss(lambda r, z: z - r, link=dictionary), "link", dictionary),
        (Loss(lambda r, z, w: z - r), "gradient", None),
    ],
    ids=["gradient", "a gradient that is no number", "value", "link", "a function of three"],
)
def test_a_loss_that_can_not_be_compiled_is_told(data, loss, role, function):
    with pytest.raises(ConfigError) as caught:
        train(data, loss)
    said = str(caught.value)
    assert said.startswith(f"loss {loss.name} (test_losses.py, line ")
    assert f"its {role}" in said
    assert "\n" not in said
    if function:
        assert f"(test_losses.py, line {function.__code__.co_firstlineno})" in said


def test_what_is_no_function_is_told_at_once():
    for arguments in ({"gradient": 3}, {"gradient": abs, "value": "squared"}, {"gradient": abs, "link": "cube"}):
        with pytest.raises(ConfigError, match="expected a function of"):
            Loss(**arguments)


def breaks(r, z):
    return (z - r) / np.float32(0) if z > np.float32(3.5) else z - r


def root(r, z):
    return math.sqrt(z - r)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("function", [breaks, root])
def test_a_loss_that_returns_no_number_is_told(data, ranks, function):
    loss = Loss(function)
    place = rf"\(test_losses.py, line {function.__code__.co_firstlineno}\)"
    told = re.escape(f"loss test_losses:{function.__name__} ") + place
    told += r": its gradient is not a finite number for rating [-\d.]+ and score [-\d.]+ \(epoch \d\)"
    with pytest.raises(ConfigError, match=told) as caught:
        simulated.run(ranks, lambda comm: train(data, loss, comm))
    r, z = map(float, re.search(r"rating (\S+) and score (\S+)", str(caught.value)).groups())
    assert not (z <= 3.5 if function is breaks else z >= r)


def test_a_loss_that_calls_itself_is_told(data):
    with pytest.raises(ConfigError, match=r"^loss test_losses:\S+ \(test_losses.py, line "):
        train(data, Loss(lambda r, z: factorial(z - r)))


def test_a_value_that_is_no_number_is_told(data):
    with pytest.raises(ConfigError, match=r"^loss test_losses:\S+ \(test_losses.py, line \d+\): its value is not"):
        train(data, Loss(lambda r, z: z - r, value=lambda r, z: math.log(z - np.float32(3))))


# By name, and in other processes.

MODULE = """
import mfpar.losses

def gradient(r, z):
    return z - r

class Group:
    own = mfpar.losses.Loss(gradient, lambda r, z: 0.5 * (r - z) ** 2, rates={"sgd": 0.01, "adagrad": 0.3})

own = Group.own
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's in the current folder."""
    (tmp_path / "own_loss_of_a_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield "own_loss_of_a_test"
    sys.modules.pop("own_loss_of_a_test", None)


def test_a_loss_is_found_by_name(module):
    found = find(f"{module}:own")
    assert (found.name, found.rates["sgd"], found.gradient(1, 3)) == (f"{module}:own", 0.01, 2)
    assert find(f"{module}:Group.own").rates == found.rates
    assert find(f"{module}:gradient").rates == BUILTIN["squared"].rates
    assert find(found) is found
    assert find("logistic") is BUILTIN["logistic"]
    assert importable(found) == f"{module}:own"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("cubed", r"loss='cubed': expected one of squared, .*, one-class, or MODULE:NAME of a loss of your own"),
        (":own", "expected one of"),
        ("own_loss_of_a_test:", "expected one of"),
        ("own_loss_of_a_test:absent", "can't be imported: AttributeError: module 'own_loss_of_a_test' has no "),
        ("no_such_module:loss", "can't be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("own_loss_of_a_test:number", "is a int; expected mfpar.Loss or a gradient function"),
    ],
)
def test_a_loss_that_is_not_there_is_told(module, spec, told):
    with pytest.raises(ConfigError, match=told):
        find(spec)


SCRIPT = """
import numpy as np
import mfpar
from mfpar.losses import Loss
from own_loss_of_a_test import own

if __name__ == "__main__":
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 40, 600), rng.integers(0, 30, 600)
    ratings = users, items, np.float32(3 + np.sin(users) * np.cos(items))
    for loss, ranks in ((own, None), (own, 2), (Loss(lambda r, z: z - r), 2)):
        try:
            model = mfpar.factorize(ratings, factors=3, epochs=2, loss=loss, ranks=ranks)
            print(model.fingerprint)
        except mfpar.MfparError as error:
            print(error)
"""


def test_ranks_find_a_loss_that_can_be_imported(module, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    alone, on_ranks, refused = done.stdout.splitlines()
    assert re.fullmatch("[0-9a-f]{64}", alone)
    assert on_ranks == alone
    assert refused == (
        "loss __main__:<lambda> (script.py, line 11): other processes can't import it; put it in a module of its own, "
        "or train without ranks="
    )


def test_a_second_process_finds_a_loss_of_ones_own_in_the_cache(module, data, run_cli, tmp_path):
    def state():
        found = [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".nbi", ".nbc")]
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in found}

    command = ["train", data.path, "-o", "m.h5", "--epochs", 1, "--factors", 3, "--loss", f"{module}:own", "--force"]
    states, environment = [], {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    for changed in (False, False, True):
        if changed:
            (tmp_path / f"{module}.py").write_text(MODULE.replace("return z - r", "return 2 * (z - r)"))
        done = run_cli(*command, environment=environment)
        assert done.returncode == 0, done.stderr
        states.append(state())
    assert len(states[0]) == 10  # two kernels and the board's three functions, each an index and its code
    assert states[0] == states[1]
    assert len(states[2]) == 14
    assert states[2].items() > states[0].items()


def test_factorize_takes_a_loss(data):
    events = []
    model = factorize(str(data.path), 3, loss=pinball, epochs=2, callback=events.append)
    assert [event.epoch for event in events] == [1, 2]
    assert events[0].train_rmse is None
    assert set(events[0].test) == {"rmse", "mae"}
    assert model.predict(data.row_ids[:3], data.col_ids[:3]).dtype == np.float32


def test_a_kernel_knows_a_square_by_what_it_computes():
    squares = [
        BUILTIN["squared"],
        BUILTIN["squared-hinge"],
        Loss(lambda r, z: z - r, lambda r, z: 0.5 * (r - z) ** 2, name="tests:square"),
    ]
    others = [loss for name, loss in BUILTIN.items() if name not in ("squared", "squared-hinge", "one-class")]
    others += [
        Loss(lambda r, z: z - r, lambda r, z: (r - z) ** 2, name="tests:twice"),
        Loss(lambda r, z: z - r if z > r else 2 * (z - r), name="tests:lopsided"),
        Loss(lambda r, z: undefined(z), name="tests:undefined"),  # noqa: F821
    ]
    assert all(is_square(register(loss)) for loss in squares)
    assert not any(is_square(register(loss)) for loss in others)
    differences = [BUILTIN["squared"], BUILTIN["one-class"], Loss(lambda r, z: z - r, name="tests:difference")]
    assert all(is_difference(register(loss)) for loss in differences)
    others = [BUILTIN["squared-hinge"], BUILTIN["huber"], Loss(lambda r, z: r - z, name="tests:sign")]
    assert not any(is_difference(register(loss)) for loss in others)
