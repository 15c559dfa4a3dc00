"""Decides, at every break of a run, what is kept of it: replicas, checkpoints; and whether it shall end there.

All ranks meet at a break and hear what each has to say: whether it is asked to stop, whether its part of the checkpoint
under way is written. What clocks decide, the first rank's decide.
"""

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mfpar.config import SafetyConfig
from mfpar.engine.course import Course
from mfpar.engine.cut import Blocks, Cut, StopRun
from mfpar.errors import ConfigError, FormatError
from mfpar.parallel.comm import Communicator
from mfpar.recovery.checkpoints import Checkpoints
from mfpar.recovery.reading import newest
from mfpar.recovery.replicas import Replicas

LOG = logging.getLogger(__name__)
LONGEST = 5.0  # seconds between breaks, about: so long a request to stop may wait

SHORTEST = 0.2  # seconds between meetings of the ranks, unless a checkpoint is due: to meet costs milliseconds

Tell = Callable[[str, dict[str, Any]], None]  # kind of event, and what it says


@dataclass
class Precautions:
    """What keeps a run safe, in one process, from one attempt of its ranks to the next.

    Attributes
    ----------
    safety : SafetyConfig
    stop : function without arguments
        Whether this process is asked to end the run before its time.
    begun : bool
        An attempt of this process has begun: what it writes to was its to write to.
    lost : str
        What to tell of the last loss; "" before there was any.
    data : str
        The checksum of the ratings that this process began with; "" before.
    replicas : Replicas or None
    kept : dict or None
        The cut that they hold, if one can be had from them.
    """

    safety: SafetyConfig = field(default_factory=SafetyConfig)
    stop: Callable[[], bool] = bool
    begun: bool = False
    lost: str = ""
    data: str = ""

    def __post_init__(self) -> None:
        self.replicas = Replicas() if self.safety.replicas else None
        self.kept: dict[str, Any] | None = None

    def take_stock(self, comm: Communicator) -> tuple[bool, bool]:
        """Find out what ranks hold, before anything is built anew. Collective.

        Returns
        -------
        lost, again : bool
            Whether ranks were lost before, and whether the run had begun by then.
        """
        lost, again = map(any, zip(*comm.gather([bool(self.lost), self.begun]), strict=True))
        self.kept = self.replicas.best(comm) if self.replicas and again else None
        return lost, again

    def require_data(self, comm: Communicator, path: Path, checksum: str) -> None:
        """Raise ConfigError unless all ranks have the same ratings, and those that the run began with. Collective."""
        self.data = self.data or checksum
        ranks = comm.gather([checksum, self.data])
        if other := next((rank for rank, (found, _) in enumerate(ranks) if found != ranks[0][0]), None):
            raise ConfigError(f"{path}: is not the same file on rank 0 and on rank {other}; all need the same ratings")
        if any(found != before for found, before in ranks):
            raise ConfigError(f"{path}: is of other data than it was when this run began; start it anew")


class Keeper:
    """The breaks of a run (`mfpar.engine.cut.Breaks`), what is done at them, and what it goes on from. Collective.

    Parameters
    ----------
    precautions : Precautions
    comm : Communicator
    identity : dict
        Of the run, see `mfpar.recovery.manifest.Manifest`.
    size : int
        Steps of an epoch.
    curve : list
        Reports of epochs so far, as plain JSON values, the same on every rank; what a run goes on from changes it.
    tell : called on each rank with events: "checkpoint" when one is whole, "resume", "stopped", "warning"
    background : bool
        There is memory for a copy of what a checkpoint holds, so that it can be written while training goes on.
    again : bool
        Some rank has begun this before.
    """

    def __init__(
        self,
        precautions: Precautions,
        comm: Communicator,
        identity: dict[str, Any],
        size: int,
        curve: list[dict[str, Any]],
        tell: Tell,
        background: bool,
        again: bool,
    ):
        self._comm, self._size, self._curve, self._tell = comm, size, curve, tell
        self._safety, self._stop = precautions.safety, precautions.stop
        self._replicas, self._kept, self._lost = precautions.replicas, precautions.kept, precautions.lost
        self._identity, self._background, self._again = identity, background, again
        self._every, self._unit = self._safety.interval
        self._begun = time.monotonic()  # when the last checkpoint was
        self._steps_then = 0  # how many steps of the run were done then
        self._under_way: tuple[int, int] | None = None  # epoch and step of the one that is being written
        self._checkpoints: Checkpoints | None = None
        self._met_at, self._met = 0, time.monotonic()  # how many steps of the run were done when ranks last met
        self._apart = 0.0  # how many steps may pass until they meet again
        self._is_saved = False  # the last one that was begun
        self.farewell = ""  # what to say of a run that was stopped

    def __enter__(self) -> Self:
        if self._safety.checkpoint is not None:
            folder = Path(self._safety.checkpoint)
            self._checkpoints = Checkpoints(
                folder, self._comm, self._identity, self._safety.keep, self._warn, self._again
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._checkpoints:
            self._checkpoints.__exit__(kind, error, at)

    @property
    def wanted(self) -> bool:
        """Whether there is anything to do at breaks."""
        return self._checkpoints is not None or self._replicas is not None

    def go_on(self, course: Course, epochs: int) -> None:
        """Have the course go on from the last cut that is to be had, if there is one. Collective.

        Raises
        ------
        ConfigError, FormatError
            See `mfpar.recovery.reading.newest`.
        """
        found, source = self._from_replicas(course), "the neighbours' memory"
        if found is None:
            found, source = self._from_disk(course, epochs)
        if found is None:
            if self._lost:
                self._tell(
                    "resume", {"epoch": 1, "step": 0, "ranks": self._comm.size, "message": "goes on from the start"}
                )
            return
        course.resume(found)
        self._curve[:] = found["curve"]
        self._steps_then = self._met_at = self._count(found["epoch"], found["step"])
        where = f"epoch {found['epoch']}" + (f", step {found['step']} of {self._size}" if found["step"] else "")
        message = f"goes on with {where}, from {source}, on {self._comm.size} rank{'s' * (self._comm.size > 1)}"
        self._tell(
            "resume", {"epoch": found["epoch"], "step": found["step"], "ranks": self._comm.size, "message": message}
        )

    def _from_replicas(self, course: Course) -> dict[str, Any] | None:
        if self._replicas and self._kept:
            self._replicas.restore(self._comm, course.sizes(self._kept), course.lay_out(self._kept))
        return self._kept

    def _from_disk(self, course: Course, epochs: int) -> tuple[dict[str, Any] | None, str]:
        named = self._safety.resume if self._safety.resume != "auto" else None
        # What was named to begin with is older than what this run has left since.
        places = [self._safety.checkpoint, named] if self._again else [named or self._safety.checkpoint]
        for place in filter(None, places):
            lay_out, required = functools.partial(_laid_out, course), place == named
            found = newest(Path(place), self._comm, self._identity, epochs, lay_out, self._warn, required, self._again)
            if found:
                if self._checkpoints:
                    self._checkpoints.damaged.update(found.damaged)
                return found.cut, str(found.path)
        return None, ""

    def steps(self, epoch: int, step: int, pace: float | None) -> int:
        """See `Breaks.steps`."""
        longest = min(LONGEST, self._every) if self._unit == "seconds" else LONGEST
        steps = max(1, int(longest / pace)) if pace else 1
        if self._checkpoints and self._unit == "steps":
            steps = min(steps, self._every - self._count(epoch, step) % self._every)
        return steps

    def take(self, cut: Cut) -> None:
        """See `Breaks.take`."""
        if not self._is_worth_it(cut):
            return
        written = self._checkpoints.written if self._checkpoints else None
        replicate = self._replicas is not None and self._replicas.due
        said = self._comm.gather([self._stop(), written, replicate, self._is_due(cut), time.monotonic() - self._met])
        stop, all_written = any(rank[0] for rank in said), all(rank[1] for rank in said)
        replicate, checkpoint, seconds = said[0][2:]
        self._note_meeting(cut, seconds)
        if replicate or checkpoint or stop:
            wanted = {"replicas": replicate, "checkpoint": checkpoint, "stop": stop}
            LOG.debug("epoch %d, %d steps done: %s", cut.epoch, cut.step, wanted)
        if self._under_way and (all_written or stop):
            self.settle()
        content = {**cut.content(), "curve": list(self._curve)} if replicate or checkpoint or stop else {}
        if self._replicas and replicate and not stop:
            self._replicas.refresh(self._comm, content, cut.blocks)
        if self._checkpoints and (checkpoint or stop):
            self._write(self._checkpoints, cut, content, stop)
        if stop:
            self._stopped(cut)

    def settle(self) -> None:
        """Finish the checkpoint under way. Collective."""
        place, self._under_way = self._under_way, None
        path = self._checkpoints.settle() if self._checkpoints and place else None
        self._is_saved = path is not None
        if path and place:
            seconds = time.monotonic() - self._begun
            self._tell("checkpoint", {"epoch": place[0], "step": place[1], "path": str(path), "seconds": seconds})

    def _write(self, checkpoints: Checkpoints, cut: Cut, content: dict[str, Any], at_once: bool) -> None:
        self.settle()
        self._begun, self._steps_then = time.monotonic(), self._count(cut.epoch, cut.step)
        self._under_way = cut.epoch, cut.step
        checkpoints.begin(content, cut.blocks(), self._background and not at_once)
        if at_once or not self._background:
            self.settle()

    def _is_due(self, cut: Cut) -> bool:
        """Whether a checkpoint is due by this rank's clock, or by what is done."""
        if self._checkpoints is None:
            return False
        if self._unit == "seconds":  # a slow disk gets fewer of them, rather than that training waits for it
            return self._under_way is None and time.monotonic() - self._begun >= self._every
        done, every = self._count(cut.epoch, cut.step), self._every * (self._size if self._unit == "epochs" else 1)
        return done // every > self._steps_then // every

    def _is_worth_it(self, cut: Cut) -> bool:
        """Whether to meet here: all ranks say the same, as none looks at its own clock."""
        return self._since(cut) >= self._apart or (self._unit != "seconds" and self._is_due(cut))

    def _note_meeting(self, cut: Cut, seconds: float) -> None:
        """All have met, so many seconds after the last time by the first rank's clock.

        That counts what was done beside the training, too. What is hardly known yet is found out step by step.
        """
        self._apart = self._since(cut) * min(SHORTEST / max(seconds, 1e-9), 2.0)
        self._met_at, self._met = self._count(cut.epoch, cut.step), time.monotonic()

    def _since(self, cut: Cut) -> int:
        """Steps since ranks last met."""
        return abs(self._count(cut.epoch, cut.step) - self._met_at)

    def _count(self, epoch: int, step: int) -> int:
        """Steps of the run up to here."""
        return (epoch - 1) * self._size + step

    def _stopped(self, cut: Cut) -> None:
        done = f"{cut.step} of {self._size} steps of epoch {cut.epoch}" if cut.step else f"epoch {cut.epoch - 1}"
        self.farewell = f"stopped as asked after {done}; the same command with --resume auto goes on from "
        self.farewell += "there" if self._is_saved else "what was saved before, as no checkpoint could be written now"
        self._tell("stopped", {"epoch": cut.epoch, "step": cut.step, "message": self.farewell})
        raise StopRun

    def _warn(self, message: str) -> None:
        self._tell("warning", {"message": message})


def _laid_out(course: Course, content: dict[str, Any]) -> Blocks:
    """See `Course.lay_out`; what this module has added to a cut is looked at, too."""
    curve = content.get("curve")
    if not (isinstance(curve, list) and len(curve) >= content["epoch"] - 1 and all(isinstance(r, dict) for r in curve)):
        raise FormatError("the cut has no curve of the epochs before")
    return course.lay_out(content)
