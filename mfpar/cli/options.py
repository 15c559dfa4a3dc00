"""What several verbs share: sizes, and options made from the fields of the settings."""

import argparse
import dataclasses
import tomllib
from collections.abc import Collection
from typing import Any

from mfpar.config import ModelConfig, SafetyConfig, TrainConfig
from mfpar.errors import ConfigError

WORDS = {True: "yes", False: "no"}
SETTINGS: dict[str, type[Any]] = {"model": ModelConfig, "train": TrainConfig}  # of all that trains
TABLES = {**SETTINGS, "safety": SafetyConfig}  # of a configuration file
INFORMATIVE = {"result"}  # tables of a configuration file that say where it comes from


def add_settings(parser: argparse._ActionsContainer, settings: type[Any], only: Collection[str] | None = None) -> None:
    """An option for each field of a settings class (or some), with help and default; what is not given is not set."""
    for field in dataclasses.fields(settings):
        if only is not None and field.name not in only:
            continue
        name, text = "--" + field.name.replace("_", "-"), field.metadata["help"]
        if field.default is not None:
            text += f" (default: {WORDS[field.default] if isinstance(field.default, bool) else field.default})"
        if field.metadata["parse"] is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            parser.add_argument(
                name, type=field.metadata["parse"], default=argparse.SUPPRESS, metavar=field.name.upper(), help=text
            )


def settings_of(args: argparse.Namespace, settings: type[Any], file: dict[str, Any] | None = None) -> Any:
    """The settings that were given, checked: on the command line, or else in a table of a configuration file."""
    fields = [field.name for field in dataclasses.fields(settings)]
    given = {name: getattr(args, name) for name in fields if hasattr(args, name)}
    return settings(**{**(file or {}), **given})


def read_config(path: str | None) -> dict[str, dict[str, Any]]:
    """The tables of a configuration file (TOML), "model", "train" and "safety"; empty ones without a file.

    Raises
    ------
    ConfigError
        It can't be read, or has settings that there are not.
    """
    tables: dict[str, dict[str, Any]] = {name: {} for name in TABLES}
    if path is None:
        return tables
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no TOML file: {error}") from error
    for name, settings in TABLES.items():
        table = found.pop(name, {})
        known = {field.name for field in dataclasses.fields(settings)}
        unknown = sorted(set(table) - known) if isinstance(table, dict) else [name]
        if unknown:
            raise ConfigError(f"{path}: [{name}] has no setting {unknown[0]!r}; it takes {', '.join(sorted(known))}")
        tables[name] = table
    if unknown := sorted(set(found) - INFORMATIVE):
        named = ", ".join(f"[{name}]" for name in TABLES)
        raise ConfigError(f"{path}: has {unknown[0]!r}; the tables of a configuration are {named}")
    return tables
