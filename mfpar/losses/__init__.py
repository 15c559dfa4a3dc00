"""Losses: what training minimises, as scalar functions of a rating r and a score z that kernels inline.

A score is z = base + row bias + column bias + P[row]·Q[column]. A loss says how bad it is (`value`), which way is worse
(`gradient`, the derivative of the value by z), and what it predicts on the scale of the ratings (`link`). The functions
are plain Python, so that they can be read, tested and plotted; `mfpar.kernels` compiles the very same functions.
"""

from mfpar.losses.builtin import (
    BUILTIN,
    absolute,
    bpr_col,
    bpr_row,
    hinge,
    huber,
    huber_of,
    logistic,
    one_class,
    poisson,
    squared,
    squared_hinge,
)
from mfpar.losses.functions import (
    LARGEST_EXPONENT,
    LINKS,
    clamp,
    exp,
    label,
    log,
    positive_part,
    sigmoid,
    sign,
    softplus,
)
from mfpar.losses.lookup import find, importable, is_builtin
from mfpar.losses.loss import Loss

__all__ = [
    "BUILTIN",
    "LARGEST_EXPONENT",
    "LINKS",
    "Loss",
    "absolute",
    "bpr_col",
    "bpr_row",
    "clamp",
    "exp",
    "find",
    "hinge",
    "huber",
    "huber_of",
    "importable",
    "is_builtin",
    "label",
    "log",
    "logistic",
    "one_class",
    "poisson",
    "positive_part",
    "sigmoid",
    "sign",
    "softplus",
    "squared",
    "squared_hinge",
]  # fmt: skip
