"""What Numba compiles for, and where it keeps what it has compiled."""

import hashlib
import os
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba

SETTINGS: Any = numba.config  # which has its names from the environment, so that no type checker knows them


def target() -> dict[str, str]:
    """The CPU that kernels are compiled for: `name`, and a digest of its `features`."""
    name: str = SETTINGS.CPU_NAME or llvm.get_host_cpu_name()
    features: str | None = SETTINGS.CPU_FEATURES
    if features is None:
        features = "" if SETTINGS.CPU_NAME else llvm.get_host_cpu_features().flatten()
    return {"name": name, "features": hashlib.sha256(features.encode()).hexdigest()[:12]}


def cache_folder() -> str | None:
    """Where kernels are kept; None where no folder can be written to."""
    folders = [Path(__file__).parent / "__pycache__", Path.home() / ".cache" / "numba"]
    if SETTINGS.CACHE_DIR:
        folders = [Path(SETTINGS.CACHE_DIR)]
    for folder in folders:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if there.is_dir() and os.access(there, os.W_OK):
            return str(folder)
    return None
