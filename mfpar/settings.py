"""What settings are made of: fields with a help text, a check and a parser, checked once, on construction.

From them the command line builds its options, a configuration file is read, and each error gets its sentence.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from mfpar.errors import ConfigError
from mfpar.losses import Loss

POWERS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


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


def setting(default: Any, text: str, expected: str, holds: Callable[[Any], bool], parse: Any = str) -> Any:
    """A field of settings: its default, help, what a message says was expected, its check, and its parser from text."""
    metadata = {"help": text, "expected": expected, "holds": holds, "parse": parse}
    return dataclasses.field(default=default, metadata=metadata)


def is_int(value: Any) -> bool:
    """Whether a value is an integer, which True is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether a value is a finite number, which True is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def integer(default: Any, text: str, least: int, most: int, optional: bool = False) -> Any:
    """An integer from `least` to `most`; None too where it is optional."""
    expected = f"an integer from {least} to {most}" if most < 2**62 else f"an integer ≥ {least}"
    return setting(
        default, text, expected, lambda v: (optional and v is None) or (is_int(v) and least <= v <= most), int
    )


def number(default: float | None, text: str, least: float = 0.0, most: float = 1e6, optional: bool = False) -> Any:
    """A finite number from `least` to `most`; None too where it is optional."""
    expected = f"a number from {least:g} to {most:g}"
    return setting(
        default, text, expected, lambda v: (optional and v is None) or (is_real(v) and least <= v <= most), float
    )


def choice(default: str, text: str, choices: Sequence[str]) -> Any:
    """One of some words."""
    return setting(default, text, f"one of {', '.join(choices)}", lambda v: v in choices)


def flag(default: bool | None, text: str) -> Any:
    """True or false; None too where that is the default."""
    return setting(
        default, text, "true or false", lambda v: isinstance(v, bool) or (default is None and v is None), bool
    )


def _numbers(several: Any) -> tuple[Any, ...]:
    """A list as a tuple of floats; as it is where it holds other things, which no setting takes."""
    try:
        return tuple(float(part) for part in several)
    except (TypeError, ValueError):
        return tuple(several)


class Settings:
    """Settings whose every field is checked once, on construction; JSON and back."""

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
