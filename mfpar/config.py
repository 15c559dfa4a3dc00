"""Settings: what the model is (`ModelConfig`), how this run goes (`TrainConfig`); each default stands here only.

A field carries its help text, its check and its parser, from which the command line builds its options, a
configuration file is read, and each error gets its sentence. None stands for what follows from other settings:
`resolved` fills it in.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from mfpar.errors import ConfigError
from mfpar.losses import BUILTIN, Loss, find, huber_of

LOSSES = ", ".join(BUILTIN)
POWERS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
OPTIMIZERS = ("sgd", "adagrad")
RULES = ("constant", "inverse", "exponential", "bold-driver")
INITS = ("uniform", "normal", "positive")


def size(text: str) -> int:
    """Bytes from "512M", "2G", …; K, M, G, T are powers of 1024.

    Raises
    ------
    ValueError
        The text is no such size.

    >>> size("1.5K"), size("2G")
    (1536, 2147483648)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not found:
        raise ValueError(f"{text!r} is not a size; write it as 512M or 2G")
    return int(float(found[1]) * POWERS[found[2].upper()])


def _setting(default: Any, text: str, expected: str, holds: Callable[[Any], bool], parse: Any = str) -> Any:
    metadata = {"help": text, "expected": expected, "holds": holds, "parse": parse}
    return dataclasses.field(default=default, metadata=metadata)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _integer(default: Any, text: str, least: int, most: int, optional: bool = False) -> Any:
    expected = f"an integer from {least} to {most}" if most < 2**62 else f"an integer ≥ {least}"
    return _setting(
        default, text, expected, lambda v: (optional and v is None) or (_is_int(v) and least <= v <= most), int
    )


def _number(default: float | None, text: str, least: float = 0.0, most: float = 1e6, optional: bool = False) -> Any:
    expected = f"a number from {least:g} to {most:g}"
    return _setting(
        default, text, expected, lambda v: (optional and v is None) or (_is_real(v) and least <= v <= most), float
    )


def _choice(default: str, text: str, choices: Sequence[str]) -> Any:
    return _setting(default, text, f"one of {', '.join(choices)}", lambda v: v in choices)


def _flag(default: bool | None, text: str) -> Any:
    return _setting(
        default, text, "true or false", lambda v: isinstance(v, bool) or (default is None and v is None), bool
    )


def _is_rate(value: Any) -> bool:
    return _is_real(value) and 0 < value <= 1e6


def _are_rates(value: Any) -> bool:
    several = isinstance(value, tuple) and len(value) > 0 and all(map(_is_rate, value))
    return value is None or value == "auto" or _is_rate(value) or several


def _rates(text: str) -> float | str | tuple[float, ...]:
    """The parser of `--lr`: a number, "auto", or numbers separated by commas."""
    if text == "auto":
        return text
    rates = tuple(float(part) for part in text.split(","))
    return rates if len(rates) > 1 else rates[0]


def _numbers(several: Any) -> tuple[Any, ...]:
    """A list as a tuple of floats; as it is where it holds other things, which no setting takes."""
    try:
        return tuple(float(part) for part in several)
    except (TypeError, ValueError):
        return tuple(several)


class _Checked:
    """Check every field once, on construction; JSON and back."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, np.generic):  # as notebooks have them
                value = value.item()
            elif isinstance(value, list | np.ndarray):
                value = _numbers(value)
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
            elif isinstance(value, tuple | list):
                options += [f"--{option}", ",".join(map(repr, value))]
            elif value is not None:
                options += [f"--{option}", str(value)]
        return options

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values; a loss by its name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {name: value.name if isinstance(value, Loss) else value for name, value in values.items()}

    def having(self, **changes: Any) -> Self:
        """The same settings but for some."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


@dataclass(frozen=True)
class ModelConfig(_Checked):
    """What the model is: a score base + row bias + column bias + P[row]·Q[column], and the loss that it minimises."""

    factors: int = _integer(32, "length of each row of P and Q", 1, 4096)
    loss: str | Loss = _setting(  # noqa: RUF009 - a field like the others, whose types ruff knows
        "squared",
        f"{LOSSES}, or MODULE:NAME of your own Python code, which is run",
        f"one of {LOSSES}, MODULE:NAME, or an mfpar.Loss",
        lambda v: isinstance(v, Loss) or (isinstance(v, str) and (v in BUILTIN or ":" in v)),
    )
    huber_delta: float = _number(1.0, "error, in ratings, from which on the huber loss is linear", 1e-30, 1e30)
    biases: bool = _flag(True, "learn a bias for each row and each column")
    mean: bool | None = _flag(
        None, "start from the ratings' mean (default: yes, but for non-negative factors without biases)"
    )
    nonnegative: bool = _flag(False, "keep P and Q at or above zero")
    reg: float | None = _number(None, "L2 regularisation of factors and biases (default: by loss)", optional=True)
    reg_p: float | None = _number(None, "of P instead of --reg", optional=True)
    reg_q: float | None = _number(None, "of Q instead of --reg", optional=True)
    reg_row_bias: float | None = _number(None, "of row biases instead of --reg", optional=True)
    reg_col_bias: float | None = _number(None, "of column biases instead of --reg", optional=True)
    l1_p: float = _number(0.0, "L1 regularisation of P")
    l1_q: float = _number(0.0, "L1 regularisation of Q")
    l1_row_bias: float = _number(0.0, "L1 regularisation of row biases")
    l1_col_bias: float = _number(0.0, "L1 regularisation of column biases")
    reg_per: str = _choice(
        "rating", "regularise at each rating, so that long rows feel more of it (as with ALS-WR), or once per row",
        ("rating", "row"),
    )  # fmt: skip
    lift: float | None = _number(
        None,
        "how far below the ratings biases start: in their standard deviations, or in scores (default: by loss)",
        optional=True,
    )
    clip: bool = _flag(False, "cut predictions to the range of the training ratings")
    init: str = _choice("uniform", "starting factors: uniform or normal around zero, or positive (uniform)", INITS)
    init_scale: float = _number(0.01, "root mean square of the starting factors")
    negatives: str = _choice(
        "sampled",
        "one-class: cells without a rating that count: sampled (one for each rating) or all",
        ("sampled", "all"),
    )
    negative_weight: float | None = _number(
        None, "one-class: weight of a cell without a rating (default: 1 sampled, 0.05 all)", optional=True
    )
    negative_target: float = _number(0.0, "one-class: rating that such a cell is taken for", -1e6)

    def resolved(self) -> tuple["ModelConfig", Loss]:
        """These settings with nothing left open, and the loss that they name.

        Raises
        ------
        ConfigError
            There is no such loss.
        """
        loss = find(self.loss)
        if loss.name == "huber":
            loss = dataclasses.replace(loss, gradient=(own := huber_of(self.huber_delta)).gradient, value=own.value)
        lifted = self.biases and self.mean is not False
        reg = loss.reg if self.reg is None else self.reg
        parts = ("reg_p", "reg_q", "reg_row_bias", "reg_col_bias")
        filled: dict[str, Any] = {name: reg for name in parts if getattr(self, name) is None}
        if self.mean is None:
            filled["mean"] = self.biases or not self.nonnegative
        if self.lift is None:
            filled["lift"] = loss.lift
        if not lifted:
            filled["lift"] = 0.0
        if self.negative_weight is None:
            filled["negative_weight"] = 1.0 if self.negatives == "sampled" else 0.05
        return self.having(reg=reg, **filled), loss


@dataclass(frozen=True)
class TrainConfig(_Checked):
    """How this run goes. `threads` alone can't change a bit of the result."""

    epochs: int = _integer(30, "how often each rating is visited", 1, 2**62)
    seed: int = _integer(0, "seed of starting values, samples and block order", 0, 2**63 - 1)
    optimizer: str = _choice("sgd", "step rule: sgd, or adagrad (a rate per row)", OPTIMIZERS)
    lr: float | str | tuple[float, ...] | None = _setting(
        None,
        "learning rate; a list with commas gives one for each epoch; auto finds it on a sample (default: by loss)",
        "a number > 0, at most 1e6, a list of such, or 'auto'",
        _are_rates,
        _rates,
    )
    lr_rule: str = _choice(
        "exponential",
        "what becomes of the rate: constant, inverse (lr / (1 + (1 − decay)·epoch)), exponential (lr·decay^epoch), or "
        "bold-driver (5 %% more after an epoch that lowered the loss, half after one that did not, which is undone)",
        RULES,
    )
    lr_decay: float = _setting(
        0.95, "decay of the rate", "a number from 0 to 1, not 0", lambda v: _is_real(v) and 0 < v <= 1, float
    )
    lr_row_bias: float | None = _number(None, "rate of row biases in the first epoch instead of --lr", 1e-30, 1e6, True)
    lr_col_bias: float | None = _number(None, "the same of column biases", 1e-30, 1e6, True)
    validation_fraction: float = _setting(
        0.0, "share of the training ratings to hold out, by seed, and to watch",
        "a number from 0 to 1, not 1", lambda v: _is_real(v) and 0 <= v < 1, float,
    )  # fmt: skip
    folds: int | None = _integer(None, "cut the training ratings into so many folds, by seed", 2, 1000, True)
    fold: int = _integer(1, "which of the folds to hold out and to watch, from 1", 1, 1000)
    patience: int | None = _integer(
        None, "stop after so many epochs without a better validation measure, and go back to the best", 1, 2**62, True
    )
    threads: int = _integer(1, "threads of each rank", 1, 2**62)
    memory: int | None = _setting(
        None,
        "bytes that each rank may take, as 512M or 2G (default: its share of what the job or the machine has); ratings "
        "that don't fit are streamed from the file",
        "a number of bytes > 0", lambda v: v is None or (_is_int(v) and v > 0), size,
    )  # fmt: skip
    spill: str | None = _setting(
        None, "folder for a file with the rows of P, if they don't fit the memory", "the path of a folder",
        lambda v: v is None or isinstance(v, str), str,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds is not None and self.fold > self.folds:
            raise ConfigError(f"fold={self.fold}: expected one from 1 to folds={self.folds}")
        if self.folds is not None and self.validation_fraction:
            raise ConfigError("folds and validation_fraction exclude each other: both say what to hold out")
        if self.patience is not None and not self.validates:
            raise ConfigError(
                f"patience={self.patience}: early stopping needs a validation part; give validation_fraction or folds"
            )
        if isinstance(self.lr, tuple) and self.lr_rule == "bold-driver":
            raise ConfigError("a rate for each epoch and the bold driver exclude each other: both set the rate")

    @property
    def validates(self) -> bool:
        """Whether a part of the training ratings is held out for validation."""
        return bool(self.validation_fraction) or self.folds is not None

    def resolved(self, loss: Loss) -> "TrainConfig":
        """These settings with the loss's rate where none is given."""
        return self if self.lr is not None else self.having(lr=loss.rates[self.optimizer])
