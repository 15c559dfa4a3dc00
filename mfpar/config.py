"""Settings: what the model is (`ModelConfig`), how this run goes (`TrainConfig`); each default stands here only.

A field carries its help text and its check, from which the command line builds its options and each error its sentence.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mfpar.errors import ConfigError

DEFAULT_RATES = {"sgd": 0.02, "adagrad": 0.05}
OPTIMIZERS = tuple(DEFAULT_RATES)


def _setting(default: Any, text: str, expected: str, holds: Callable[[Any], bool]) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, "expected": expected, "holds": holds})


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class _Checked:
    """Check every field once, on construction; JSON and back."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, np.generic):  # as notebooks have them
                value = value.item()
                object.__setattr__(self, field.name, value)
            if not field.metadata["holds"](value):
                raise ConfigError(f"{field.name}={value!r}: expected {field.metadata['expected']}")

    def as_options(self) -> list[str]:
        """The settings as options of `mfpar train`; what is None is left out."""
        options = []
        for name, value in self.as_dict().items():
            option = name.replace("_", "-")
            if isinstance(value, bool):
                options.append(f"--{option}" if value else f"--no-{option}")
            elif value is not None:
                options += [f"--{option}", str(value)]
        return options

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class ModelConfig(_Checked):
    """What the model is: r ≈ mean + row bias + column bias + P[row]·Q[column]."""

    factors: int = _setting(
        32, "length of each row of P and Q", "an integer from 1 to 4096", lambda v: _is_int(v) and 1 <= v <= 4096
    )
    biases: bool = _setting(
        True, "learn a bias for each row and each column", "true or false", lambda v: isinstance(v, bool)
    )
    reg: float = _setting(
        0.05,
        "L2 regularisation of factors and biases, applied per rating",
        "a number from 0 to 1e6",
        lambda v: _is_real(v) and 0 <= v <= 1e6,
    )
    lift: float = _setting(
        3.0, "how far below the ratings the biases start, in standard deviations (docs/method.md)", "a number ≥ 0",
        lambda v: _is_real(v) and v >= 0,
    )  # fmt: skip


@dataclass(frozen=True)
class TrainConfig(_Checked):
    """How this run goes. Only `seed`, `optimizer`, `lr`, `lr_decay` and `epochs` can change a bit of the result."""

    epochs: int = _setting(30, "how often each rating is visited", "an integer ≥ 1", lambda v: _is_int(v) and v >= 1)
    seed: int = _setting(
        0,
        "seed of starting values and block order",
        "an integer from 0 to 2^63 − 1",
        lambda v: _is_int(v) and 0 <= v < 2**63,
    )
    optimizer: str = _setting(
        "sgd",
        "step rule: sgd, or adagrad (a rate per row)",
        f"one of {', '.join(OPTIMIZERS)}",
        lambda v: v in OPTIMIZERS,
    )
    lr: float | None = _setting(
        None,
        "learning rate (default: by optimizer)",
        "a number > 0, at most 1e6",
        lambda v: v is None or (_is_real(v) and 0 < v <= 1e6),
    )
    lr_decay: float = _setting(
        0.95,
        "the rate is multiplied by this after every epoch",
        "a number from 0 to 1, not 0",
        lambda v: _is_real(v) and 0 < v <= 1,
    )
    threads: int = _setting(1, "threads of each rank", "an integer ≥ 1", lambda v: _is_int(v) and v >= 1)

    @property
    def rate(self) -> float:
        """The learning rate of the first epoch: `lr`, or the optimizer's default."""
        return DEFAULT_RATES[self.optimizer] if self.lr is None else self.lr
