"""What a pass amounts to: sums and times that its workers note for each row-block, and all ranks read at its end.

The ranks of a team note it in memory that they share, so that on a node nothing is sent, and nobody waits for anything
but the end of the pass. Sums are kept for each row-block, in the order of the grid, so that whatever is made of them
does not depend on which rank had it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mfpar.engine.ferry import Port
from mfpar.kernels import CLOCKS, FINISHED, SCORES, STARTED, SUMS, WAITED, WORKED
from mfpar.parallel.comm import Communicator

PAGES = 2  # one is written while some rank may still read the other
WIDEST = max(SUMS, SCORES)


@dataclass(frozen=True)
class Totals:
    """What a pass amounts to; the same on every rank.

    Attributes
    ----------
    sums : float64[G, width]
        Of each row-block.
    seconds : float
        From the first visit to the last, on the team that took longest.
    waited, worked : float
        Seconds that a worker has waited for turns, and been inside blocks, means over all.
    exchanged : float
        Seconds until column-blocks lay in the order of the pass, on the team that took longest.
    bytes_sent : int
        From team to team.
    """

    sums: np.ndarray
    seconds: float
    waited: float
    worked: float
    exchanged: float
    bytes_sent: int

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Totals":
        """From what `as_dict` returned."""
        return cls(**{**values, "sums": np.array(values["sums"])})

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return {**vars(self), "sums": self.sums.tolist()}

    def after(self, before: "Totals | None") -> "Totals":
        """What this pass and those `before` amount to, from whose sums it went on."""
        if before is None:
            return self
        return Totals(
            sums=self.sums,
            seconds=before.seconds + self.seconds,
            waited=before.waited + self.waited,
            worked=before.worked + self.worked,
            exchanged=before.exchanged + self.exchanged,
            bytes_sent=before.bytes_sent + self.bytes_sent,
        )


class Tally:
    """Sums and clocks of the row-blocks of a team. Collective.

    Parameters
    ----------
    comm : Communicator
    port : Port
    """

    def __init__(self, comm: Communicator, port: Port):
        self._comm, self._port = comm, port
        self._held = port.last - port.first
        cells = PAGES * self._held * (WIDEST + CLOCKS)
        shared = comm.share(cells * 8)
        sums, clocks = np.split(shared, [PAGES * self._held * WIDEST * 8])
        self._sums = sums.view(np.float64).reshape(PAGES, self._held * WIDEST)
        self._clocks = clocks.view(np.int64).reshape(PAGES, self._held, CLOCKS)
        first, last = port.spans[comm.rank - port.leaders[comm.rank]]
        self._rows, self._own = slice(first, last), slice(first - port.first, last - port.first)
        self._page = 0
        self._sent = 0

    def begin(self, width: int, so_far: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Sums float64[B, width] and clocks int64[B, CLOCKS] of this rank's row-blocks for the next pass. Local.

        All are 0, or the sums what they are `so_far` (float64[G, width]). Every rank begins every pass, and only once
        it has ended the one before.
        """
        self._page = (self._page + 1) % PAGES
        self._width, self._sent = width, self._comm.bytes_sent
        sums, clocks = self._table()[self._own], self._clocks[self._page, self._own]
        sums[:], clocks[:] = 0, 0
        if so_far is not None:
            sums[:] = so_far[self._rows]
        return sums, clocks

    def end(self, workers: int, exchanged: float) -> Totals:
        """What the pass amounts to that all workers, so many, of this team have ended. Collective.

        `exchanged` is as of `Totals`, for the first rank of this team.
        """
        sums, clocks = self._table(), self._clocks[self._page]
        seconds = (int(clocks[:, FINISHED].max()) - int(clocks[:, STARTED].min())) / 1e9
        nanoseconds = clocks.sum(axis=0).tolist()
        waited, worked = nanoseconds[WAITED] / 1e9, nanoseconds[WORKED] / 1e9
        if self._port.alone:
            return Totals(sums.copy(), seconds, waited / workers, worked / workers, 0.0, 0)
        sent = self._comm.bytes_sent - self._sent
        said: Any = [sums.tolist(), seconds, exchanged, waited, worked, workers, sent] if self._port.leads else None
        teams = [team for team in self._comm.gather(said) if team]
        rows, longest, exchanges, *shares = zip(*teams, strict=True)
        waited, worked, everybody, sent = (sum(share) for share in shares)
        everything = np.array([row for team in rows for row in team])
        return Totals(everything, max(longest), waited / everybody, worked / everybody, max(exchanges), sent)

    def _table(self) -> np.ndarray:
        return self._sums[self._page, : self._held * self._width].reshape(self._held, self._width)
