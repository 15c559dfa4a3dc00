"""The functions of a loss, as kernels call them: ``gradient(loss, r, z)``, the loss being a compile-time string.

A kernel that closed over a compiled function would miss Numba's cache in every new process, because the cache's key
holds what is closed over, and functions do not pickle to the same bytes twice. A string does; what it stands for is
looked up while the kernel compiles.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core.errors import NumbaError
from numba.extending import overload

from mfpar.errors import ConfigError
from mfpar.kernels.compile import compiled
from mfpar.kernels.elementary import ELEMENTARY
from mfpar.kernels.functions import digest_of, inlinable
from mfpar.losses import Loss, squared

ROLES = {"gradient": 2, "value": 2, "link": 1}  # with the number of arguments

PROBES = (-1e4, -37.0, -3.5, -1.0, -0.3, 0.0, 1e-3, 0.5, 1.0, 2.0, 3.0, 4.5, 5.0, 62.0, 1e3, 3e5)

_LOSSES: dict[str, Loss] = {}  # by key
_FUNCTIONS: dict[str, dict[str, Any]] = {}  # by key and role, to be inlined
_KNOWN: dict[str, bool] = {}  # by key: whether the key tells all that a kernel with this loss depends on


def register(loss: Loss) -> str:
    """Make a loss known to kernels: the string that stands for it, made of all that its functions depend on."""
    functions = {"gradient": loss.gradient, "value": loss.value, "link": loss.link_function}
    plain = "".join(c if c.isalnum() else "-" for c in loss.name)[:40]
    digest, known = digest_of(tuple(functions.values()))
    key = f"{plain}-{digest[:16]}" + ("" if known else f"-{id(loss)}")
    if key not in _LOSSES:
        _LOSSES[key], _KNOWN[key] = loss, known
        _FUNCTIONS[key] = {role: inlinable(function, ELEMENTARY) for role, function in functions.items()}
    return key


@functools.cache
def is_square(key: str) -> bool:
    """Whether a loss's value is half its gradient's square, by trying: a kernel then has it for one operation."""
    loss = _LOSSES[key]
    try:
        return all(
            math.isclose(loss.value(r, z), 0.5 * loss.gradient(r, z) ** 2, rel_tol=1e-9)
            for r, z in itertools.product(PROBES, repeat=2)
        )
    except Exception:  # noqa: BLE001 - a user's code, which need not run outside of kernels
        return False


@functools.cache
def is_difference(key: str) -> bool:
    """Whether a loss's gradient is z − r, by its code: that of squared loss or the same."""
    return digest_of(_LOSSES[key].gradient) == digest_of(squared.gradient)


def gradient(loss, r, z):
    """float32: derivative of the value by z."""
    raise NotImplementedError("for compiled code")


def value(loss, r, z):
    """float64: value of the loss."""
    raise NotImplementedError("for compiled code")


def link(loss, z):
    """float32: the prediction."""
    raise NotImplementedError("for compiled code")


def _by_literal(stub: Callable[..., Any], role: str, result: type) -> None:
    """Let compiled code call a function of a loss by the stub of its role."""

    def function_of(loss):
        # Numba also asks with a string that is no literal, when a literal did not compile, before it says why.
        return _FUNCTIONS[loss.literal_value][role] if isinstance(loss, types.StringLiteral) else None

    def choose_pair(loss, r, z):
        function = function_of(loss)
        return function and (lambda loss, r, z: result(function(r, z)))

    def choose_link(loss, z):
        function = function_of(loss)
        return function and (lambda loss, z: result(function(z)))

    choose = choose_link if ROLES[role] == 1 else choose_pair
    overload(stub, prefer_literal=True, jit_options={"forceinline": True, "error_model": "numpy"})(choose)


_by_literal(gradient, "gradient", np.float32)
_by_literal(value, "value", np.float64)
_by_literal(link, "link", np.float32)


def compiled_for(key: str, specialisation: str, signature: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`compiled` for a kernel that inlines the loss of this key; an error of Numba's that is the loss's is told as one.

    Raises
    ------
    ConfigError
        Numba can't compile a function of the loss; says which, and where it stands.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return compiled(f"{specialisation}_{key}", signature, _KNOWN[key])(function)
        except NumbaError:
            _blame(key)
            raise

    return decorate


def _blame(key: str) -> None:
    """Raise ConfigError for the function of a loss that can't be compiled by itself, if there is one."""
    loss = _LOSSES[key]
    for role, arguments in ROLES.items():
        function = _FUNCTIONS[key][role]
        try:
            function.compile((types.float32,) * arguments)
        except Exception as error:
            raise ConfigError(
                f"{loss.where(role)}: Numba can't compile its {role}: {_first_line(error)}; "
                "use arithmetic, comparisons, math, and functions made of these"
            ) from error
        result = function.nopython_signatures[-1].return_type
        if not isinstance(result, types.Integer | types.Float | types.Boolean):
            raise ConfigError(f"{loss.where(role)}: its {role} returns {result}; expected a number")


def _first_line(error: Exception) -> str:
    """What an error of Numba's says in the end, in one line."""
    noise = ("Failed in", "During:", "File ", "- ", "- Resolution", "<source", "Enable logging", "There are")
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(noise) and "^" not in line]
    return (telling[0] if telling else type(error).__name__)[:200]


@functools.cache
def link_kernel(key: str) -> Callable[[np.ndarray, np.ndarray], None]:
    """Compile `apply(scores, predictions)`: predictions float32[n] become the link of scores float32[n]."""

    @compiled_for(key, "link", types.void(types.float32[::1], types.float32[::1]))
    def apply(scores, predictions):
        for t in range(len(scores)):
            predictions[t] = link(key, scores[t])

    return apply
