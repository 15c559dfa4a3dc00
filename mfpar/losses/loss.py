"""What a loss is: scalar functions of a rating and a score, and the settings that suit them."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfpar.errors import ConfigError
from mfpar.losses.functions import LINKS

Scalar = Callable[[Any, Any], Any]


def squared_value(r: float, z: float) -> float:
    """½(r − z)²."""
    return 0.5 * (r - z) ** 2


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
    reg, lift, curvature : float
        L2 regularisation, where `reg` is not given; how far below the mean biases start (docs/method.md), in standard
        deviations of the ratings, or in scores where those have no unit; the typical second derivative of the value by
        z, with which training corrects what the lift leaves.
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
        The training loss is the mean over every rating, every second, …, for a value that costs more than a step; over
        every one where ratings are few.
        Best with no factor in common with the 16 streams of a block (docs/format.md).
    """

    gradient: Scalar
    value: Scalar = squared_value
    link: Callable[[Any], Any] | str = "identity"
    name: str = ""
    rates: dict[str, float] = dataclasses.field(default_factory=lambda: {"sgd": 0.02, "adagrad": 0.05})
    reg: float = 0.05
    lift: float = 3.0
    curvature: float = 1.0
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
    def settings(self) -> dict[str, Any]:
        """All of it but the functions, as plain JSON values."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in plain.items() if not callable(value)}

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

    def where(self, role: str = "gradient") -> str:
        """Name, file and line of one of its functions, for messages."""
        function = self.link_function if role == "link" else getattr(self, role)
        code = getattr(function, "__code__", None)
        place = f" ({Path(code.co_filename).name}, line {code.co_firstlineno})" if code else ""
        return f"loss {self.name}{place}"


def _arguments(role: str) -> str:
    return "z" if role == "link" else "r and z"
