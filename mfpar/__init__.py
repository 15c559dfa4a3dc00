"""mfpar: model-parallel matrix factorization that gives the same bits on any number of ranks and threads.

Names are imported on first use, so that `import mfpar` starts neither MPI nor the JIT.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mfpar.api import convert, factorize, load, tune
    from mfpar.config import ModelConfig, SafetyConfig, TrainConfig
    from mfpar.engine.report import EpochReport
    from mfpar.errors import MfparError
    from mfpar.losses import Loss
    from mfpar.model.model import Model

_HOMES = {
    "convert": "mfpar.api",
    "factorize": "mfpar.api",
    "load": "mfpar.api",
    "tune": "mfpar.api",
    "EpochReport": "mfpar.engine.report",
    "Loss": "mfpar.losses",
    "Model": "mfpar.model.model",
    "ModelConfig": "mfpar.config",
    "SafetyConfig": "mfpar.config",
    "TrainConfig": "mfpar.config",
    "MfparError": "mfpar.errors",
}

__all__ = [
    "EpochReport",
    "Loss",
    "MfparError",
    "Model",
    "ModelConfig",
    "SafetyConfig",
    "TrainConfig",
    "convert",
    "factorize",
    "load",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("mfpar")
    if name == "losses":
        return importlib.import_module("mfpar.losses")
    if name not in _HOMES:
        raise AttributeError(f"module 'mfpar' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
