"""Losses: what training minimises, as scalar functions of a rating r and a score z that kernels inline.

A score is z = base + row bias + column bias + P[row]·Q[column]. A loss says how bad it is (`value`), which way is worse
(`gradient`, the derivative of the value by z), and what it predicts on the scale of the ratings (`link`). The functions
are plain Python, so that they can be read, tested and plotted; `mfpar.kernels` compiles the very same functions.
"""

from mfpar.losses.builtin import BUILTIN, huber
from mfpar.losses.functions import (
    LARGEST_EXPONENT,
    LINKS,
    exp,
    label,
    log,
    positive_part,
    sigmoid,
    softplus,
)
from mfpar.losses.lookup import find, importable, is_builtin
from mfpar.losses.loss import Loss

__all__ = [
    "BUILTIN", "LARGEST_EXPONENT", "LINKS", "Loss",
    "exp", "find", "huber", "importable", "is_builtin", "label", "log", "positive_part", "sigmoid", "softplus",
]  # fmt: skip
