"""What a search may try: for each setting one value, a choice of values, or a range of numbers."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mfpar.config import ModelConfig, TrainConfig
from mfpar.errors import ConfigError
from mfpar.losses import Loss, find

FIELDS = {field.name: field for settings in (ModelConfig, TrainConfig) for field in dataclasses.fields(settings)}
HELD_OUT = ("validation_fraction", "folds", "fold", "patience")  # how the search measures
ALONE = ("epochs", "threads", "seed")  # one value for all trials
DECADE = 10.0  # a range whose ends are so many times apart is searched by factors, not by differences
# What changes the loss's value itself, so that models that differ in it can't be compared by their loss.
MEASURE_MAKING = ("loss", "huber_delta", "negatives", "negative_weight", "negative_target")

Plain = dict[str, Any]  # what a trial tries, by setting, as JSON values: a loss by its name


def is_number(name: str) -> bool:
    """Whether a setting is a number, so that it can have a range.

    >>> is_number("lr"), is_number("factors"), is_number("biases"), is_number("loss")
    (True, True, False, False)
    """
    return isinstance(parsed := FIELDS[name].metadata["parse"]("1"), int | float) and not isinstance(parsed, bool)


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]

    @property
    def plain(self) -> tuple[Any, ...]:
        """The values as JSON values."""
        return tuple(value.name if isinstance(value, Loss) else value for value in self.values)

    def meant(self, plain: Any) -> Any:
        """The value that a JSON value stands for."""
        return self.values[self.plain.index(plain)]

    def at(self, share: float) -> Any:
        """The plain value below which this share of the choice lies, 0 ≤ share < 1."""
        return self.plain[int(share * len(self.values))]

    def __str__(self) -> str:
        return ",".join(str(value).lower() if isinstance(value, bool) else str(value) for value in self.plain)


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`, both included; evenly spread over its logarithm, or over itself."""

    low: float
    high: float
    log: bool

    @property
    def integer(self) -> bool:
        """Whether only integers are meant."""
        return isinstance(self.low, int)

    def meant(self, plain: Any) -> Any:
        """The value that a JSON value stands for."""
        return plain

    def at(self, share: float) -> float:
        """The number below which this share of the range lies, 0 ≤ share < 1.

        >>> Range(0.01, 1.0, True).at(0.5), Range(1, 3, False).at(0.99)
        (0.1, 3)
        """
        low, high = self.low, self.high + self.integer  # integers take the place up to the next
        number = low * (high / low) ** share if self.log else low + share * (high - low)
        return int(number) if self.integer else min(max(number, self.low), self.high)

    def __str__(self) -> str:
        return f"{self.low!r}:{self.high!r}"


@dataclass(frozen=True)
class Space:
    """Settings that all trials share, and those that are searched."""

    fixed: dict[str, Any]
    searched: dict[str, Choice | Range]

    @classmethod
    def of(cls, settings: Mapping[str, Any], grid: bool) -> "Space":
        """The space of these settings, each a value, a list (a choice) or a tuple (low, high); checked.

        Where only values are given, learning rate and regularisation are searched, around what suits the loss; with
        `grid` by a list of each.

        Raises
        ------
        ConfigError
            A setting is unknown, out of range, none that can be searched, or can't be compared.
        """
        fixed: dict[str, Any] = {}
        searched: dict[str, Choice | Range] = {}
        for name, given in settings.items():
            found = _understood(name, given)
            if isinstance(found, Range) or (isinstance(found, Choice) and len(found.values) > 1):
                searched[name] = found
            elif found.values[0] is not None:
                fixed[name] = found.values[0]
        space = cls(fixed, searched or _usual(fixed, grid))
        if grid and (ranges := [name for name, part in space.searched.items() if isinstance(part, Range)]):
            raise ConfigError(f"{ranges[0]}={space.searched[ranges[0]]}: a grid has no ranges; give a list of values")
        space._check_comparable()
        return space

    @property
    def losses(self) -> list[Loss]:
        """The losses that trials may have."""
        part = self.searched.get("loss", Choice((self.fixed.get("loss", ModelConfig.loss),)))
        return [find(loss) for loss in part.values]  # type: ignore[union-attr]

    @property
    def measure(self) -> str:
        """The measure that decides: the first of the loss's."""
        return self.losses[0].metrics[0]

    @property
    def size(self) -> int | None:
        """How many combinations there are; None where a setting has a range."""
        lists = self._lists()
        return None if lists is None else math.prod(map(len, lists))

    def combinations(self, seed: int) -> list[Plain]:
        """All combinations, in an order that belongs to the seed: its beginning is as good as a random choice."""
        everything = list(itertools.product(*(self._lists() or [])))
        order = np.random.default_rng(seed).permutation(len(everything))
        return [dict(zip(self.searched, everything[index], strict=True)) for index in order]

    def spread(self, count: int, seed: int) -> list[Plain]:
        """So many combinations that are spread evenly over the space (a Latin hypercube: McKay et al. 1979)."""
        rng = np.random.default_rng(seed)
        shares = {name: (rng.permutation(count) + rng.random(count)) / count for name in self.searched}
        return [{name: part.at(float(shares[name][i])) for name, part in self.searched.items()} for i in range(count)]

    def _lists(self) -> list[tuple[Any, ...]] | None:
        """What there is to choose from, by setting; None where one has a range."""
        choices = [part.plain for part in self.searched.values() if isinstance(part, Choice)]
        return choices if len(choices) == len(self.searched) else None

    def settings(self, plain: Plain) -> dict[str, Any]:
        """All settings of a trial."""
        return self.fixed | {name: self.searched[name].meant(value) for name, value in plain.items()}

    def as_text(self) -> dict[str, str]:
        """The whole space as the command line takes it."""
        return {name: str(Choice((value,))) for name, value in self.fixed.items()} | {
            name: str(part) for name, part in self.searched.items()
        }

    def _check_comparable(self) -> None:
        measures = {loss.metrics[0]: loss.name for loss in self.losses}
        if len(measures) > 1:
            told = " and ".join(f"{loss} is decided by {measure}" for measure, loss in measures.items())
            raise ConfigError(f"loss={self.searched['loss']}: {told}, which can't be compared; search for each alone")
        makers = [name for name in MEASURE_MAKING if name in self.searched]
        if makers and self.measure == "loss":
            raise ConfigError(
                f"{makers[0]}={self.searched[makers[0]]}: trials are decided by their loss, which can't be compared "
                f"where {makers[0]} differs; give one value"
            )


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the model and of the run."""
    of_model = {name: value for name, value in settings.items() if name in ModelConfig.__dataclass_fields__}
    return of_model, {name: value for name, value in settings.items() if name not in of_model}


def _understood(name: str, given: Any) -> Choice | Range:
    """What is meant by a value, a list or a tuple; every value checked."""
    if name in HELD_OUT or name == "seed":
        raise ConfigError(f"{name} is no part of the space: give it to the search itself")
    if name not in FIELDS:
        raise ConfigError(f"unknown setting {name!r}; the settings are {', '.join(_searchable())}")
    several = isinstance(given, list | np.ndarray)
    if isinstance(given, tuple):
        part: Choice | Range = _range(name, given)
    else:
        values = list(given) if several else [given]
        part = Choice(tuple(dict.fromkeys(_checked(name, value) for value in values)))
    if isinstance(part, Choice) and not part.values:
        raise ConfigError(f"{name}=[]: expected at least one value")
    if name in ALONE and (isinstance(part, Range) or len(part.values) > 1):
        why = "is the most of a trial, how many are best is found" if name == "epochs" else "changes no result"
        raise ConfigError(f"{name}={part}: expected one value: it {why}")
    return part


def _searchable() -> Iterator[str]:
    return (name for name in FIELDS if name not in HELD_OUT and name != "seed")


def _range(name: str, given: tuple[Any, ...]) -> Range:
    if not is_number(name) or name in ALONE:
        raise ConfigError(f"{name}={given!r}: has no ranges; give one value" + ("" if name in ALONE else " or a list"))
    if len(given) != 2:
        raise ConfigError(f"{name}={given!r}: a range is (low, high); a list, in brackets, is a choice of values")
    low, high = (_checked(name, end) for end in given)
    if isinstance(low, str) or isinstance(high, str) or low is None or high is None or not low < high:
        raise ConfigError(f"{name}={low}:{high}: expected a range LOW:HIGH with LOW below HIGH")
    by_factors = name.startswith(("lr", "reg")) and name != "lr_decay"
    return Range(low, high, low > 0 and (by_factors or high / low >= DECADE))


def _checked(name: str, value: Any) -> Any:
    metadata = FIELDS[name].metadata
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple) or not metadata["holds"](value):
        raise ConfigError(f"{name}={value!r}: expected {metadata['expected']}")
    if isinstance(value, int) and not isinstance(value, bool) and isinstance(metadata["parse"]("1"), float):
        return float(value)  # 1 and 1.0 are one choice
    return value


def _usual(fixed: Mapping[str, Any], grid: bool) -> dict[str, Choice | Range]:
    """What is searched when nothing was said: up to a few times less and more than suits the loss."""
    loss = find(fixed.get("loss", ModelConfig.loss))
    rate = loss.rates[fixed.get("optimizer", TrainConfig.optimizer)]
    # Rounded: 5 · 0.05 is to be 0.25 for those who read it.
    usual: dict[str, Choice | Range] = {
        "lr": Choice(tuple(float(f"{rate * times:.3g}") for times in (0.25, 0.5, 1, 2))),
        "reg": Choice(tuple(float(f"{loss.reg * times:.3g}") for times in (0.25, 0.5, 1, 2))),
    } if grid else {
        "lr": Range(float(f"{rate / 4:.3g}"), float(f"{rate * 2.5:.3g}"), True),
        "reg": Range(float(f"{loss.reg / 5:.3g}"), float(f"{loss.reg * 4:.3g}"), True),
    }  # fmt: skip
    left = {name: part for name, part in usual.items() if name not in fixed}
    if not left or not loss.reg:
        left.pop("reg", None)
    if not left:
        raise ConfigError("nothing is left to search: give some setting a list of values or a range")
    return left
