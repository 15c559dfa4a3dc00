"""What the supervisor makes of the ranks' signs of life."""

import math
from dataclasses import dataclass, field

from mfpar.parallel.processes import Process
from mfpar.parallel.progress import Activity, Presence
from mfpar.parallel.respawn import START as AGAIN  # seconds that a rank may take to be started anew
from mfpar.supervise.folder import PERIOD, Beat, RunFolder

SLACK = 20.0  # seconds at most that ranks have to find out by themselves who hangs, and to say so
START = 2  # times the limit: what ranks may take to give the first sign of life
NEWS = 2  # periods of time that pass at most until a beat is seen
MOURNING = 30.0  # seconds at most from the end of a rank for the others to say that they go on
GONE = 10.0  # seconds for mpirun to end once none of its ranks is there any more


def limit_of(hang_timeout: float) -> float:
    """Seconds of silence after which a job has failed; 0 (never) if the timeout is.

    Ranks watch each other, with `hang_timeout`: they know better who hangs, so they speak first.
    """
    return max(hang_timeout + min(hang_timeout, SLACK), 5 * PERIOD) if hang_timeout else 0.0


@dataclass
class _Rank:
    """What is known of a rank."""

    beat: Beat
    activity: Activity
    since: float  # when the beat before the last one, or this one if it is the first, was seen
    idle: float = 0.0
    gone: bool = False  # its process is of this machine, and is not there any more


@dataclass
class Watch:
    """Tells when ranks stand still. Local.

    Parameters
    ----------
    folder : RunFolder
    ranks : how many were started
    limit : seconds, see `limit_of`
    anew : whether ranks that die are started anew now, one after the other, before the rest say that they go on
    """

    folder: RunFolder
    ranks: int
    limit: float
    anew: bool = False
    _seen: dict[str, _Rank] = field(default_factory=dict, init=False)
    _presence: Presence = field(default_factory=lambda: Presence(PERIOD), init=False)
    _lost: float = field(default=-math.inf, init=False)  # when the ranks last told of a loss
    _left: float = field(default=0.0, init=False)  # when a rank was last seen to be there
    _here: Process = field(default_factory=Process.own, init=False)

    def look(self) -> str:
        """What is wrong, as a sentence; "" if nothing."""
        self._presence.look()
        self._read()
        if len(self._seen) < self.ranks or not all(rank.gone for rank in self._seen.values()):
            self._left = self._time
        if self._time - self._left > GONE:
            return "none of the ranks is there any more, but mpirun does not end"
        if self.limit and len(self._seen) < self.ranks and self._time > START * self.limit:
            return f"{len(self._seen)} of {self.ranks} ranks have started within {START * self.limit:g} s"
        return next((problem for rank in self._seen.values() if (problem := self._of(rank))), "")

    @property
    def _time(self) -> float:
        return self._presence.now

    def lost(self) -> None:
        """The ranks have told that one of them is lost, and that they go on without it."""
        self._lost = self._time

    def _read(self) -> None:
        for name, beat in self.folder.beats():
            known = self._seen.get(name)
            if known is None:
                known = self._seen[name] = _Rank(beat, Activity(self.limit), self._time)
            elif beat.count != known.beat.count:
                known.beat, known.since = beat, self._time
            else:
                continue
            known.idle = known.activity.idle(self._time, beat.used)
        for rank in self._seen.values():
            process = rank.beat.process
            rank.gone = process.near(self._here) and not process.alive

    def _of(self, rank: _Rank) -> str:
        process = rank.beat.process
        who = f"rank {rank.beat.rank} on host {process.host} (process {process.pid})"
        silent = self._time - rank.since
        # A last beat may have been seen after the others have told that they go on without it.
        if self._time - max(silent, rank.idle) - NEWS * PERIOD < self._lost:
            return ""
        if rank.gone:
            gone = sum(rank.gone for rank in self._seen.values())
            patience = min(MOURNING, self.limit or MOURNING) + self.anew * gone * AGAIN
            return f"{who} has ended, and the others have not said that they go on" if silent > patience else ""
        if not self.limit:
            return ""
        if silent > self.limit:
            return f"{who} has given no sign of life for {self.limit:g} s"
        if rank.idle > self.limit:
            return f"{who} has done nothing for {self.limit:g} s"
        return ""
