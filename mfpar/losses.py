"""Losses: what training minimises, as scalar functions of a rating r and a score z that kernels inline.

A score is z = base + row bias + column bias + P[row]·Q[column]. A loss says how bad it is (`value`), which way is worse
(`gradient`, the derivative of the value by z), and what it predicts on the scale of the ratings (`link`). The functions
are plain Python, so that they can be read, tested and plotted; `mfpar.kernels` compiles the very same functions.

`exp`, `log`, `sigmoid`, `softplus`, `positive_part` and `label` below are for losses of your own too. Compiled, they stay
in single precision (an integer or float literal beside r or z brings double precision in), and their results are the
same bits on every machine, where `math.exp` is whatever the C library makes of it.
"""

import dataclasses
import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mfpar.errors import ConfigError

Scalar = Callable[[Any, Any], Any]

LARGEST_EXPONENT = 87.0  # beyond it e^x or e^−x leaves the normal numbers of single precision


def exp(x: float) -> float:
    """e^x; arguments are cut to ±87, where single precision ends."""
    return math.exp(max(-LARGEST_EXPONENT, min(x, LARGEST_EXPONENT)))


def log(x: float) -> float:
    """Natural logarithm of x > 0."""
    return math.log(x)


def sigmoid(z: float) -> float:
    """1 / (1 + e^−z): the probability that belongs to log-odds z."""
    return 1.0 / (1.0 + exp(-z))


def softplus(z: float) -> float:
    """log(1 + e^z), without overflow."""
    return max(z, 0.0) + math.log1p(exp(-abs(z)))


def positive_part(x: float) -> float:
    """The larger of x and 0."""
    return max(x, 0.0)


def label(r: float) -> float:
    """1 for a rating above zero, −1 for any other."""
    return 1.0 if r > 0 else -1.0


LINKS: dict[str, Callable[[float], float]] = {"identity": lambda z: z, "sigmoid": sigmoid, "exp": exp}



def _squared(r: float, z: float) -> float:
    return 0.5 * (z - r) ** 2


def _identity(z: float) -> float:
    return z


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss: functions of a rating r and a score z, and the settings that suit it.

    Also a decorator of a gradient; `with_value` and `with_link` add the other functions to it::

        @mfpar.Loss
        def log_cosh(r, z):
            return math.tanh(z - r)

        @log_cosh.with_value
        def log_cosh(r, z):
            return math.log(math.cosh(z - r))

    Parameters
    ----------
    gradient : function of r and z (float32 each)
        Derivative of the value by z. Compiled by Numba: arithmetic, comparisons, `math`, and what it calls itself.
    value : function of r and z
        What is minimised; ½(r − z)² unless given. It is only reported and compared: steps follow the gradient.
    link : function of z, or "identity", "sigmoid", "exp"
        From a score to a prediction.
    name : str
        What it is called in messages, logs and models. By default MODULE:NAME of the gradient; a loss that ranks are
        to find for themselves (`--loss`, `ranks=`) needs the name under which it can be imported.
    rates : dict
        Learning rate by optimizer ("sgd", "adagrad"), where `lr` is not given.
    reg, lift : float
        L2 regularisation, where `reg` is not given; how far below the mean biases start (docs/method.md).
    degree : 2, 1 or 0
        How the value grows with the unit of the ratings: like its square (squared loss), like it (absolute), or not at
        all because scores have no unit (logistic). Makes a learning rate mean the same on any scale.
    start : "mean", "logit", "log" or "zero"
        What the base of all scores is made of: the mean of the ratings, or its log-odds, or its logarithm.
    ratings : "any", "binary" or "counts"
        What ratings it takes: all, −1 and 1 (or 0 and 1), or all ≥ 0.
    cells : "rated", "row", "col" or "one-class"
        What it is a sum over: rated cells; pairs of a rated cell and another one of its row (column), r being 1 and z
        the difference of their scores; rated cells and all or some of the others.
    metrics : tuple of str
        What is reported of a held-out part, the deciding measure first.
    every : int
        The training loss is the mean over every rating, every second, …: for a value that costs more than a step.
        Best with no factor in common with the 8 streams of a block (docs/format.md).
    """

    gradient: Scalar
    value: Scalar = _squared
    link: Callable[[Any], Any] | str = "identity"
    name: str = ""
    rates: dict[str, float] = dataclasses.field(default_factory=lambda: {"sgd": 0.02, "adagrad": 0.05})
    reg: float = 0.05
    lift: float = 3.0
    degree: int = 2
    start: str = "mean"
    ratings: str = "any"
    cells: str = "rated"
    metrics: tuple[str, ...] = ("rmse", "mae")
    every: int = 1

    def __post_init__(self) -> None:
        for role in ("gradient", "value") + (() if isinstance(self.link, str) else ("link",)):
            if not callable(getattr(self, role)):
                raise ConfigError(f"{role}={getattr(self, role)!r}: expected a function of {_arguments(role)}")
        if isinstance(self.link, str) and self.link not in LINKS:
            raise ConfigError(f"link={self.link!r}: expected a function of z, or one of {', '.join(LINKS)}")
        if not self.name:
            function = self.gradient
            object.__setattr__(
                self, "name", f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"
            )

    def with_value(self, value: Scalar) -> "Loss":
        """The same loss with this value; for use as a decorator."""
        return dataclasses.replace(self, value=value)

    def with_link(self, link: Callable[[Any], Any]) -> "Loss":
        """The same loss with this link; for use as a decorator."""
        return dataclasses.replace(self, link=link)

    @property
    def builtin(self) -> bool:
        """Whether it is one of mfpar's own."""
        return ":" not in self.name

    @property
    def link_name(self) -> str:
        """The link as a model file names it: "identity", "sigmoid", "exp", or "custom" for a function."""
        return self.link if isinstance(self.link, str) else "custom"

    @property
    def link_function(self) -> Callable[[Any], Any]:
        """The link as a function of z."""
        return LINKS[self.link] if isinstance(self.link, str) else self.link

    @property
    def pairs(self) -> bool:
        """Whether it compares two cells."""
        return self.cells in ("row", "col")

    def importable(self) -> str:
        """MODULE:NAME under which another process finds this loss.

        Raises
        ------
        ConfigError
            It has none: it was made in a notebook, a function or the main script.
        """
        if self.builtin:
            return self.name
        module = sys.modules.get(self.name.partition(":")[0])
        if module is not None and module.__name__ != "__main__":
            for name, value in vars(module).items():
                if value is self or (isinstance(value, Loss) and value.gradient is self.gradient):
                    return f"{module.__name__}:{name}"
        raise ConfigError(
            f"{self.where()}: other processes can't import it; put it in a module of its own, or train without ranks="
        )

    def where(self, role: str = "gradient") -> str:
        """Name, file and line of one of its functions, for messages."""
        function = self.link_function if role == "link" else getattr(self, role)
        code = getattr(function, "__code__", None)
        place = f" ({Path(code.co_filename).name}, line {code.co_firstlineno})" if code else ""
        return f"loss {self.name}{place}"


def _arguments(role: str) -> str:
    return "z" if role == "link" else "r and z"


def _absolute(r: float, z: float) -> float:
    return abs(r - z)


def _sign(r: float, z: float) -> float:
    return (z > r) - (z < r)


def huber(delta: float = 1.0) -> Loss:
    """½e² for errors e = r − z up to `delta` (in ratings), beyond it delta·(|e| − ½delta) (Huber 1964)."""

    limit = np.float32(delta)

    def value(r: float, z: float) -> float:
        inside = min(abs(r - z), limit)
        return inside * (abs(r - z) - 0.5 * inside)

    def gradient(r: float, z: float) -> float:
        return max(-limit, min(z - r, limit))

    return Loss(gradient, value, name="huber", lift=0.0, degree=1)


def _kullback_leibler(r: float, z: float) -> float:
    """Rate exp(z) for the count r: its generalised divergence r log(r / rate) − r + rate."""
    return exp(z) - r - r * (z - log(max(r, 1e-30)))


# With labels as random as they are, a branch on the label would be mispredicted half of the time and cost more than all
# else: these functions compute with it.


def _log_loss(r: float, z: float) -> float:
    return softplus(-label(r) * z)


def _log_loss_gradient(r: float, z: float) -> float:
    return -label(r) * sigmoid(-label(r) * z)


def _slack(r: float, z: float) -> float:
    """What a score lacks of being right by a margin of 1: 1 − yz, or 0."""
    return positive_part(label(r) * (label(r) - z))


def _hinge_gradient(r: float, z: float) -> float:
    return -label(r) * (_slack(r, z) > 0)


def _squared_hinge(r: float, z: float) -> float:
    return 0.5 * _slack(r, z) ** 2


def _squared_hinge_gradient(r: float, z: float) -> float:
    return -label(r) * _slack(r, z)


def _bpr(cells: str) -> Loss:
    """Bayesian personalised ranking (Rendle et al., UAI 2009): the log-odds that the rated cell goes before another."""
    return Loss(
        _log_loss_gradient, _log_loss, name=f"bpr-{cells}", rates={"sgd": 0.1, "adagrad": 0.1}, reg=0.01, lift=0.0,
        degree=0, start="zero", cells=cells, metrics=("auc", "loss"), every=25,
    )  # fmt: skip


def _difference(r: float, z: float) -> float:
    return z - r


_BINARY: dict[str, Any] = {"lift": 0.0, "degree": 0, "ratings": "binary"}

BUILTIN = {
    loss.name: loss
    for loss in (
        Loss(_difference, _squared, name="squared"),
        Loss(_sign, _absolute, name="absolute", lift=0.0, degree=1, metrics=("mae", "rmse")),
        dataclasses.replace(huber(), metrics=("loss", "rmse", "mae")),
        Loss(
            lambda r, z: exp(z) - r, _kullback_leibler, "exp", "poisson", reg=0.02, lift=0.0, degree=0, start="log",
            ratings="counts", metrics=("deviance", "rmse", "mae"), every=25,
        ),
        Loss(
            _log_loss_gradient, _log_loss, "sigmoid", "logistic", {"sgd": 0.05, "adagrad": 0.1}, 0.02, start="logit",
            metrics=("log_loss", "accuracy"), every=25, **_BINARY,
        ),
        Loss(_hinge_gradient, _slack, name="hinge", reg=0.02, start="zero", metrics=("loss", "accuracy"), **_BINARY),
        Loss(
            _squared_hinge_gradient, _squared_hinge, name="squared-hinge", reg=0.02, start="zero",
            metrics=("loss", "accuracy"), **_BINARY,
        ),
        _bpr("row"),
        _bpr("col"),
        Loss(
            _difference, _squared, name="one-class", reg=0.02, lift=0.0, degree=0, start="zero", cells="one-class",
            metrics=("loss", "auc"),
        ),
    )
}  # fmt: skip


def find(spec: "str | Loss") -> Loss:
    """The loss that is meant by a built-in name, by MODULE:NAME (the current folder is importable), or by itself.

    Naming a module runs it: it is code of whoever names it, and never comes from a data or model file.

    Raises
    ------
    ConfigError
        There is no such loss.
    """
    if isinstance(spec, Loss):
        return spec
    if spec in BUILTIN:
        return BUILTIN[spec]
    module_name, colon, name = spec.partition(":")
    if not (colon and module_name and name):
        raise ConfigError(
            f"loss={spec!r}: expected one of {', '.join(BUILTIN)}, or MODULE:NAME of a loss of your own"
        )
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise ConfigError(f"loss={spec!r}: can't be imported: {type(error).__name__}: {error}") from error
    if isinstance(found, Loss):
        return dataclasses.replace(found, name=spec)
    if not callable(found):
        raise ConfigError(f"loss={spec!r}: is a {type(found).__name__}; expected mfpar.Loss or a gradient function")
    return Loss(found, name=spec)
