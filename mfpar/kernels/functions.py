"""Plain Python functions on their way into a kernel: made ready for it, and told apart by all that they depend on."""

import dis
import hashlib
from collections.abc import Collection, Iterator
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from mfpar.kernels.compile import inlined

LIBRARIES = ("math", "builtins", "numpy")  # whose functions are what they are called


def inlinable(thing: Any, as_is: Collection[Any], done: dict[int, Any] | None = None) -> Any:
    """A function for kernels to inline, together with the plain functions that it calls; anything else as it is.

    Parameters
    ----------
    as_is : functions that Numba has another implementation for
    """
    if not isinstance(thing, FunctionType) or thing in as_is:
        return thing
    done = {} if done is None else done
    if id(thing) not in done:
        done[id(thing)] = thing  # a function that calls itself stays plain there, which Numba refuses
        names = [name for name in _globals(thing.__code__) if name in thing.__globals__]
        called = {name: inlinable(thing.__globals__[name], as_is, done) for name in names}
        cells = tuple(CellType(inlinable(cell.cell_contents, as_is, done)) for cell in thing.__closure__ or ())
        made = FunctionType(
            thing.__code__, thing.__globals__ | called, thing.__name__, thing.__defaults__, cells or None
        )
        done[id(thing)] = inlined(made)
    return done[id(thing)]


def digest_of(thing: Any) -> tuple[str, bool]:
    """SHA-256 (hex) of what functions compile to depends on, and whether that is all that there is to tell."""
    sha = hashlib.sha256()
    known = _digest(thing, sha, set())
    return sha.hexdigest(), known


def _digest(thing: Any, sha: Any, seen: set[int]) -> bool:
    if isinstance(thing, int | float | str | bytes | np.generic | None.__class__):
        return _feed(sha, type(thing).__name__, repr(thing))
    if isinstance(thing, tuple | frozenset):
        parts = thing if isinstance(thing, tuple) else sorted(thing, key=repr)
        _feed(sha, type(thing).__name__, str(len(parts)))
        known = [_digest(part, sha, seen) for part in parts]  # all of them, also behind one that is not known
        return all(known)
    if isinstance(thing, CodeType):
        _feed(sha, "code", thing.co_code.hex())
        return _digest((thing.co_consts, thing.co_names, thing.co_varnames), sha, seen)
    thing = getattr(thing, "py_func", thing)  # of a function that is compiled already
    if isinstance(thing, FunctionType):
        if id(thing) in seen:
            return _feed(sha, "again", thing.__name__)
        seen.add(id(thing))
        cells = tuple(cell.cell_contents for cell in thing.__closure__ or ())
        return _digest((thing.__code__, thing.__defaults__, tuple(_used(thing)), cells), sha, seen)
    if getattr(thing, "__module__", None) in LIBRARIES and hasattr(thing, "__name__"):
        return _feed(sha, "library", f"{thing.__module__}.{thing.__name__}")
    return False


def _used(function: FunctionType) -> Iterator[Any]:
    """What a function finds in its module, and in the modules that it names there."""
    attributes = sorted({name for code in _codes(function.__code__) for name in code.co_names})
    for name in _globals(function.__code__):
        value = function.__globals__.get(name)
        if not isinstance(value, ModuleType):
            yield value
            continue
        yield value.__name__
        if value.__name__ not in LIBRARIES:
            yield from (getattr(value, attribute) for attribute in attributes if hasattr(value, attribute))


def _feed(sha: Any, kind: str, text: str) -> bool:
    """With their lengths, so that what follows one another can't be taken for something else."""
    sha.update(f"{kind} {len(text)} {text} ".encode())
    return True


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _codes(const)


def _globals(code: CodeType) -> list[str]:
    """Names that a function looks up in its module, not those of attributes."""
    steps = (step for part in _codes(code) for step in dis.get_instructions(part))
    return sorted({step.argval for step in steps if step.opname == "LOAD_GLOBAL"})
