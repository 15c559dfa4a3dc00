"""Which rank reads which sources: contiguous runs of them, of about equal size."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from mfpar.errors import RatingsError
from mfpar.parallel.comm import Communicator
from mfpar.ratings.sources import expand, name_of


def own_sources(sources: Any, comm: Communicator) -> list[Any]:
    """The sources that this rank is to read, one by one. Collective.

    Ranks that follow one on the other get what follows one on the other. A source is never cut: each goes where the
    middle of its bytes lies.

    Parameters
    ----------
    sources : path, glob pattern, things in memory, or a list (see `mfpar.ratings.sources.expand`); alike on all ranks

    Raises
    ------
    RatingsError
        What `expand` raises; or the ranks do not see the same files.
    """
    everything = list(expand(sources))
    names = [name_of(source) for source in everything]
    sizes = [_size(source) for source in everything] if comm.rank == 0 else None
    seen = comm.gather([names, sizes] if comm.rank == 0 else None)[0]
    if seen[0] != names:
        odd = next((name for name in names if name not in set(seen[0])), "a source")
        raise RatingsError(f"{odd}: is not what all ranks see; put the sources on a file system that they share")
    return [source for source, rank in zip(everything, _readers(seen[1], comm.size), strict=True) if rank == comm.rank]


def _readers(sizes: list[int], ranks: int) -> list[int]:
    """The rank of each source.

    >>> _readers([5, 5, 5, 5, 20, 1], 2), _readers([7], 3), _readers([0, 0], 2)
    ([0, 0, 0, 0, 1, 1], [1], [0, 1])
    """
    parts = np.array(sizes, np.int64) + 1  # nothing is no size
    middles = np.cumsum(parts) - parts / 2
    return [int(rank) for rank in middles * ranks // parts.sum()]


def _size(source: Any) -> int:
    """Bytes of a source, as far as they are known before it is read."""
    if isinstance(source, Path):
        return os.path.getsize(source)
    arrays = source.values() if isinstance(source, dict) else source if isinstance(source, tuple) else [source]
    return sum(int(getattr(array, "nbytes", 0)) for array in arrays)
