"""Elementary functions for losses, in plain Python; `mfpar.kernels.elementary` has what is compiled in their place.

Compiled, they stay in single precision (an integer or float literal beside r or z brings double precision in), cost a
few operations, and give the same bits on every machine, where `math.exp` is whatever the C library makes of it.
"""

import math
from collections.abc import Callable

LARGEST_EXPONENT = 87.0  # beyond it e^x or e^−x leaves the normal numbers of single precision


def exp(x: float) -> float:
    """e^x; arguments are cut to ±87, where single precision ends."""
    return math.exp(max(-LARGEST_EXPONENT, min(x, LARGEST_EXPONENT)))


def log(x: float) -> float:
    """Natural logarithm of x > 0."""
    return math.log(x)


def sigmoid(z: float) -> float:
    """1 / (1 + e^−z): the probability that belongs to log-odds z."""
    return 1.0 / (1.0 + exp(-z))


def softplus(z: float) -> float:
    """log(1 + e^z), without overflow."""
    return max(z, 0.0) + math.log1p(exp(-abs(z)))


def positive_part(x: float) -> float:
    """The larger of x and 0."""
    return max(x, 0.0)


def clamp(x: float, limit: float) -> float:
    """x, cut to −limit … limit."""
    return max(-limit, min(x, limit))


def sign(x: float) -> float:
    """1, 0 or −1, like x."""
    return 1.0 * (x > 0) - 1.0 * (x < 0)


def label(r: float) -> float:
    """1 for a rating above zero, −1 for any other."""
    return 1.0 if r > 0 else -1.0


LINKS: dict[str, Callable[[float], float]] = {"identity": lambda z: z, "sigmoid": sigmoid, "exp": exp}
