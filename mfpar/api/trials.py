"""The trials of a search: what each holds out and measures, and how they share the ranks."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfpar.api.runs import Event
from mfpar.api.space import Plain, Space, split_settings
from mfpar.api.study import SEARCHES, Study, Trial
from mfpar.blockfile import BlockedFile
from mfpar.config import ModelConfig, TrainConfig
from mfpar.engine.course import Course
from mfpar.engine.report import EpochReport
from mfpar.engine.training import Training
from mfpar.errors import ConfigError, DivergedError
from mfpar.grid import owner
from mfpar.metrics import more_is_better
from mfpar.parallel.comm import Communicator

PATIENCE = 5
FRACTION = 0.1


@dataclass(frozen=True)
class Search:
    """How a search goes; what is not about the trials' own settings.

    Attributes
    ----------
    trials : int or None
        How many; None for 20, or for the whole grid. A space of no more combinations is tried out instead.
    folds, validation_fraction : int, float
        What to hold out of the training ratings: each of so many folds in turn, or (the default, 0.1) a part.
    patience : int
        A trial stops after so many epochs without a better measure.
    search : "bayesian" (TPE), "random" or "grid"
    seed : int
        Of the search and of all training.
    parallel : int
        Trials that are chosen together, and run side by side where there are so many ranks.
    """

    trials: int | None = None
    folds: int | None = None
    validation_fraction: float | None = None
    patience: int = PATIENCE
    search: str = "bayesian"
    seed: int = 0
    parallel: int = 1

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise ConfigError(f"search={self.search!r}: expected one of {', '.join(SEARCHES)}")
        for name in ("trials", "parallel", "patience"):
            value = getattr(self, name)
            if (name != "trials" or value is not None) and not (type(value) is int and value >= 1):
                raise ConfigError(f"{name}={value!r}: expected an integer ≥ 1")
        if self.folds is not None and self.validation_fraction is not None:
            raise ConfigError("folds and validation_fraction exclude each other: both say what to hold out")
        if self.folds is None and self.validation_fraction is None:
            object.__setattr__(self, "validation_fraction", FRACTION)
        if self.validation_fraction == 0:
            raise ConfigError("validation_fraction=0: a search needs ratings to measure on; hold some out")
        held = {"folds": self.folds} if self.folds is not None else {"validation_fraction": self.validation_fraction}
        TrainConfig(patience=self.patience, seed=self.seed, **held)  # checks

    def held_out(self) -> list[dict[str, Any]]:
        """Settings of the runs that make up a trial, one for each fold."""
        common = {"patience": self.patience, "seed": self.seed}
        if self.folds is None:
            return [common | {"validation_fraction": self.validation_fraction}]
        return [common | {"folds": self.folds, "fold": fold} for fold in range(1, self.folds + 1)]


class Trials:
    """Runs the trials of a search on groups of ranks.

    Parameters
    ----------
    space, plan : Space, Search
    beside : Path
        Beside it lie temporary files.
    comm : Communicator
    listen : called on the first rank with events, see `mfpar.api.tuning.tune_file`
    """

    def __init__(self, space: Space, plan: Search, beside: Path, comm: Communicator, listen: Callable[[Event], None]):
        self._space, self._plan, self._beside = space, plan, beside
        self._comm, self._listen = comm, listen
        self._groups = min(plan.parallel, comm.size)
        self._group = owner(comm.size, self._groups, comm.rank)

    def identity(self, file: BlockedFile) -> dict[str, Any]:
        """All that the values of trials depend on, as JSON values."""
        space = {name: text for name, text in self._space.as_text().items() if name not in ("threads", "epochs")}
        held = f"{self._plan.folds} folds" if self._plan.folds else f"a part of {self._plan.validation_fraction}"
        epochs = self._space.fixed.get("epochs", TrainConfig.epochs)
        rest = {"seed": self._plan.seed, "epochs": epochs, "patience": self._plan.patience, "validation": held}
        return {"checksum": file.checksum, "space": space, **rest}

    def run(self, file: BlockedFile, study: Study | None) -> list[Trial]:
        """Run what is missing of all trials; `study` is there on the first rank. Collective."""
        told, batch = 0, self._plan.parallel

        def tell() -> None:
            nonlocal told
            while study and told in study.finished and told < study.total:
                self._listen({"kind": "trial", **study.finished[told].as_dict()})
                told += 1

        with self._team() as team:
            first, total = 0, int(self._comm.gather(study.total if study else None)[0])
            while first < total:
                tell()
                last = min(first + batch, total)
                jobs: list[tuple[int, Plain]] = []
                if study:
                    for number, settings in study.missing(first, last, batch).items():
                        if known := study.same(settings):  # the same settings have the same value
                            study.add(_again(known, number))
                        else:
                            jobs.append((number, settings))
                jobs = self._comm.gather(jobs)[0]
                mine = [self._trial(file, team, *job) for job in jobs[self._group :: self._groups]]
                ranks = self._comm.gather([trial.as_dict() for trial in mine] if team.rank == 0 else [])
                done = [Trial.from_dict(trial) for rank in ranks for trial in rank]
                for trial in sorted(done, key=lambda trial: trial.number):
                    if study:
                        study.add(trial)
                tell()
                first = last
        everything = [study.finished[number].as_dict() for number in range(study.total)] if study else None
        return [Trial.from_dict(trial) for trial in self._comm.gather(everything)[0]]

    @contextlib.contextmanager
    def _team(self) -> Iterator[Communicator]:
        """The ranks that run a trial together with this one."""
        if self._groups == 1:
            yield self._comm
            return
        team = self._comm.split(self._group)
        with team.guard():
            yield team
        team.close()

    def _trial(self, file: BlockedFile, team: Communicator, number: int, plain: Plain) -> Trial:
        """Train with these settings, once for each fold. Collective on the team."""
        started, folds, message = time.perf_counter(), [], None
        for held in self._plan.held_out():
            of_model, of_run = split_settings(self._space.settings(plain))
            configs = ModelConfig(**of_model), TrainConfig(**of_run, **held)
            try:
                folds.append(self._best_epoch(file, team, number, *configs))
            except DivergedError as error:  # of the sums of all ranks: the whole team has it
                message = str(error)
            if message is None and math.isnan(folds[-1][0]):
                message = f"no epoch has a finite {self._space.measure}"
            if message is not None:
                break
        seconds = time.perf_counter() - started
        if message is not None:
            return Trial(number, plain, None, None, (), seconds, message)
        value = math.fsum(value for value, _ in folds) / len(folds)
        epochs = math.floor(sum(epoch for _, epoch in folds) / len(folds) + 0.5)
        return Trial(number, plain, value, epochs, tuple(folds), seconds)

    def _best_epoch(
        self, file: BlockedFile, team: Communicator, number: int, model: ModelConfig, train: TrainConfig
    ) -> tuple[float, int]:
        """The deciding measure of the best epoch, and which that is; not a number if no epoch has one."""
        best, best_epoch = math.nan, 0
        sign = -1 if more_is_better(self._space.measure) else 1

        def on_epoch(report: EpochReport) -> None:
            nonlocal best, best_epoch
            value = next(iter(report.validation.values())) if report.validation else math.nan
            if math.isfinite(value) and not sign * value >= sign * best:
                best, best_epoch = value, report.epoch
            if self._comm.rank == 0:
                event = {"trial": number, "fold": train.fold if train.folds else None, "epoch": report.epoch}
                self._listen({"kind": "epoch", **event, "value": value})

        model, loss = model.resolved()
        training = Training(file, model, loss, train.resolved(loss), team)
        Course(training, self._beside, on_epoch, lambda kind, content: None).run()
        return best, best_epoch


def _again(known: Trial, number: int) -> Trial:
    return Trial(number, known.settings, known.value, known.epochs, known.folds, 0.0, known.message)
