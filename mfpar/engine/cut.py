"""Cuts through a run: states between two steps that all ranks agree on, from which it can go on, on any ranks.

A cut is what is the same on every rank, as plain JSON values, and blocks, of which each rank has some: flat float32
buffers with names, such as "now/rows/17", that do not depend on who has them. What is done with cuts, and when, is the
affair of whoever gives the engine `Breaks`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Block = tuple[str, np.ndarray]  # its name, and float32[:], to be read or written before the next is asked for
Blocks = Iterable[Block]  # of one rank; names are unique over all of them


@dataclass(frozen=True)
class Cut:
    """A state of a run.

    Attributes
    ----------
    epoch, step : int
        The epoch under way, from 1, and how many of its steps are done.
    content : function without arguments
        Returns all but the blocks, as plain JSON values, with `epoch` and `step`; the same on every rank.
    blocks : function without arguments that goes through this rank's blocks
    """

    epoch: int
    step: int
    content: Callable[[], dict[str, Any]]
    blocks: Callable[[], Iterator[Block]]


class Breaks(Protocol):
    """Where a run may be interrupted for a moment; the same on every rank."""

    def steps(self, epoch: int, step: int, pace: float | None) -> int:
        """How many steps to take before the next break, if so many are left; `pace` is the seconds of one, if known."""

    def take(self, cut: Cut) -> None:
        """There is a cut. Collective.

        Raises
        ------
        StopRun
            The run shall end here.
        """


class StopRun(Exception):  # noqa: N818 - it is no error: nothing has failed
    """Raised on all ranks alike, so that the run ends before its time."""
