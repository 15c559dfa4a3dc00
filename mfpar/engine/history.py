"""The epochs of a run that stand, and ways back to the end of each: copies of the state, and from there once more."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mfpar.engine.copies import Copies
from mfpar.engine.cut import Block
from mfpar.engine.training import Training

Position = tuple[np.ndarray, float]  # see `Training.position`


class History:
    """What a run can go back to; a context manager that drops its copies. Collective.

    A run that goes on from a cut remembers which copies there were, and so decides as it would have without the
    interruption, but has only those that the cut brought; in place of another one, it goes through all epochs from the
    start again, to the same bits.

    Parameters
    ----------
    training : Training
    beside : Path
        Where copies go that do not fit the memory.

    Attributes
    ----------
    used : dict
        Rate, and its share of the first one, of each epoch that stands.
    """

    def __init__(self, training: Training, beside: Path):
        self._training = training
        self._copies = Copies(beside, training.needs.copies > 0)
        self._kept: dict[str, int] = {}  # after which epoch of those that stand each copy was taken, by its role
        self._positions: dict[str, Position] = {}  # what else belongs to it; only of those that there are
        self.used: dict[int, tuple[float, float]] = {}

    @property
    def last(self) -> int:
        """After which epoch the last copy was taken; 0 without one."""
        return self._kept.get("last", 0)

    def keep(self, epoch: int, best: bool) -> None:
        """Copy the state at the end of an epoch, and remember the copy before."""
        if "last" in self._kept:
            self._rename("last", "before")
        roles = ["last", "best"] if best else ["last"]
        with self._training.trace.span("keep"):
            self._take(roles)
        self._kept.update(dict.fromkeys(roles, epoch))

    def restore(self, epoch: int) -> None:
        """Go back to the end of the epoch before: to a copy, and from there through the epochs since, once more."""
        role = next((role for role in ("last", "before") if self._kept.get(role, epoch) < epoch), None)
        since = self._kept[role] if role else 0
        if role in self._positions:
            self.go_back(role)
            missing = range(since + 1, epoch)
        else:
            self._training.restart()
            missing = range(1, epoch)
        for again in missing:  # to the very same bits
            self._training.run_epoch(again, self._training.knobs(*self.used[again]))
        if epoch - 1 > since:
            self.keep(epoch - 1, best=False)

    def retreat(self, epoch: int) -> int:
        """Go back beyond the end of the epoch before `epoch`, and return which epoch is next."""
        if self.last > epoch - 2:
            self._positions.pop("last", None)
            del self._kept["last"]
            if "before" in self._kept:
                self._rename("before", "last")
        after = epoch - 2 if "last" in self._kept else 0
        if self._kept.get("best", 0) > after:
            self._kept["best"] = 0  # of an epoch that does not stand any more: what is made anew is not the same
        self.restore(after + 1)
        return after + 1

    def go_back(self, role: str) -> None:
        """Go back to a copy."""
        self._training.reposition(self._positions[role])
        self._copies.restore(role, self._training.state(change=True))

    def brought(self, wanted: set[str], epoch: int, step: int) -> list[str]:
        """Of the roles that are wanted, those whose copy belongs to a cut, as it is not what the cut itself is."""
        return [role for role in sorted(wanted & set(self._positions)) if not self._is_now(role, epoch, step)]

    def positions(self, roles: list[str]) -> dict[str, Any]:
        """Positions of copies, as plain JSON values."""
        return {role: [order.tolist(), offset] for role, (order, offset) in self._of(roles).items()}

    def blocks(self, roles: list[str]) -> Iterator[Block]:
        """The blocks of copies here. Local."""
        for role, (order, _) in self._of(roles).items():
            names = self._training.named(order, role)
            arrays = self._copies.read(role, [length for _, length in names])
            yield from ((name, array) for (name, _), array in zip(names, arrays, strict=True))

    def memory(self) -> dict[str, Any]:
        """What else a cut needs, as plain JSON values."""
        return {"used": list(self.used.items()), "kept": dict(self._kept)}

    def incoming(self, positions: dict[str, Any]) -> Iterator[Block]:
        """Blocks here for the copies of a cut, whose positions these are, to be written to one by one. Local."""
        self._positions = {role: (np.array(order), offset) for role, (order, offset) in positions.items()}
        for role, (order, _) in self._positions.items():
            names = self._training.named(order, role)
            arrays = self._copies.receive(role, [length for _, length in names])
            yield from ((name, array) for (name, _), array in zip(names, arrays, strict=True))

    def forget(self) -> None:
        """Have nothing of what has come for the copies of a cut that could not be had whole. Local."""
        self._positions = {}

    def remember(self, memory: dict[str, Any], epoch: int, step: int) -> None:
        """Have been where `memory` was taken: at a cut, whose state is there, and its copies too."""
        self.used = {epoch: (rate, share) for epoch, (rate, share) in memory["used"]}
        self._kept = dict(memory["kept"])
        self._take([role for role in self._kept if self._is_now(role, epoch, step)])

    def _take(self, roles: list[str]) -> None:
        if roles:
            self._copies.keep(roles, self._training.state())
            self._positions.update(dict.fromkeys(roles, self._training.position))

    def _of(self, roles: list[str]) -> dict[str, Position]:
        return {role: self._positions[role] for role in roles}

    def _is_now(self, role: str, epoch: int, step: int) -> bool:
        return step == 0 and self._kept[role] == epoch - 1

    def _rename(self, role: str, other: str) -> None:
        self._kept[other] = self._kept.pop(role)
        self._positions.pop(other, None)
        if role in self._positions:
            self._copies.rename(role, other)
            self._positions[other] = self._positions.pop(role)

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *error: Any) -> None:
        with contextlib.suppress(OSError):
            self._copies.close()
