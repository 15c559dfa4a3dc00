"""What several verbs share: sizes, and options made from the fields of the settings."""

import argparse
import dataclasses
import re
import types
import typing
from typing import Any

POWERS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size(text: str) -> int:
    """Bytes from "512M", "2G", …; K, M, G are powers of 1024.

    >>> size("1.5K"), size("2G")
    (1536, 2147483648)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)B?", text.strip(), re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write it as 512M or 2G")
    return int(float(found[1]) * POWERS[found[2].upper()])


def add_settings(parser: argparse._ActionsContainer, settings: type[Any]) -> None:
    """An option for each field of a settings class, with its help and default."""
    for field in dataclasses.fields(settings):
        name, text = "--" + field.name.replace("_", "-"), field.metadata["help"]
        if field.default is not None:
            text += f" (default: {'yes' if field.default is True else field.default})"
        if field.type is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=field.default, help=text)
        else:
            parser.add_argument(
                name, type=_plain(field.type), default=field.default, metavar=field.name.upper(), help=text
            )


def settings_of(args: argparse.Namespace, settings: type[Any]) -> Any:
    """The settings that were given, checked."""
    return settings(**{field.name: getattr(args, field.name) for field in dataclasses.fields(settings)})


def _plain(annotation: Any) -> Any:
    """`float` of `float | None`."""
    if isinstance(annotation, types.UnionType):
        return next(part for part in typing.get_args(annotation) if part is not types.NoneType)
    return annotation
