"""Losses by name: the built-in ones, and those of a user's own modules."""

import dataclasses
import importlib
import sys
from pathlib import Path

from mfpar.errors import ConfigError
from mfpar.losses.builtin import BUILTIN
from mfpar.losses.loss import Loss


def is_builtin(loss: Loss) -> bool:
    """Whether a loss is one of mfpar's own."""
    return loss.name in BUILTIN


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
        raise ConfigError(f"loss={spec!r}: expected one of {', '.join(BUILTIN)}, or MODULE:NAME of a loss of your own")
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


def importable(loss: Loss) -> str:
    """The name under which another process finds a loss: built in, or MODULE:NAME.

    Raises
    ------
    ConfigError
        It has none: it was made in a notebook, a function or the main script.
    """
    if is_builtin(loss):
        return loss.name
    module = sys.modules.get(loss.gradient.__module__)
    if module is not None and module.__name__ != "__main__":
        for name, value in vars(module).items():
            if value is loss or (isinstance(value, Loss) and value.gradient is loss.gradient):
                return f"{module.__name__}:{name}"
    raise ConfigError(
        f"{loss.where()}: other processes can't import it; put it in a module of its own, or train without ranks="
    )
