"""The one place that decides how kernels are compiled, and under which name Numba caches them.

No fast-math anywhere: `mfpar.kernels.vector` spells out the fused and vectorised operations, so there is nothing left
for LLVM to choose. Numba's cache keeps one index file per qualified name and rewrites it without a lock; a name of its
own for every specialisation means that concurrent processes can only ever write the same thing. The name also holds a
digest of all kernel sources, because Numba itself would not notice a change in a file that a kernel inlines.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

import mfpar.losses


@functools.cache
def _sources_digest() -> str:
    sha = hashlib.sha256()
    folders = Path(__file__).parent, Path(mfpar.losses.__file__).parent
    for source in (source for folder in folders for source in sorted(folder.glob("*.py"))):
        sha.update(source.read_bytes())
    return sha.hexdigest()[:12]


inlined = njit(nogil=True, error_model="numpy", forceinline=True)
inlined.__doc__ = "Decorate a function that kernels call: it becomes a part of them."


def compiled(
    specialisation: str, signature: Any, cached: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a kernel: compile it now for `signature`, or load it from the cache.

    Parameters
    ----------
    specialisation : str
        Tells apart the kernels that one factory makes; must name every constant that the kernel closes over.
    signature : Numba signature
        The only one that the kernel takes.
    cached : bool
        False for a kernel that depends on what no name can tell.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__qualname__ = f"{function.__name__}_{specialisation}_{_sources_digest()}"
        compile_with = functools.partial(njit, signature, nogil=True, error_model="numpy")
        try:
            return compile_with(cache=cached)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            return compile_with()(function)  # neither the package nor the user's cache folder can be written to

    return decorate
