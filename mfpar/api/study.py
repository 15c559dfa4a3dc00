"""The trials of a search: which come next, and the journal of Optuna's in which they are kept.

What a batch of trials tries depends on the seed and on the trials before the batch, on nothing else. So the journal
holds finished trials only, each written in one piece, and Optuna's sampler starts anew for each batch: a search that
was killed goes on as if nothing had happened.
"""

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mfpar.api.space import Choice, Plain, Range, Space
from mfpar.atomic import drop_half_line, storage_errors
from mfpar.errors import ConfigError, FormatError
from mfpar.metrics import more_is_better

SEARCHES = ("bayesian", "random", "grid")
STARTUP = 10  # trials spread over the space, from which the bayesian search learns first
NAME = "mfpar"  # of the study, and of what mfpar notes with it and with its trials
NAMES = {"checksum": "other data", "space": "another space", "seed": "another seed"}


@dataclass(frozen=True)
class Trial:
    """What became of a trial."""

    number: int  # from 0
    settings: Plain  # those that are searched, as JSON values
    value: float | None  # the deciding measure of the best epoch, mean over folds; None if it failed
    epochs: int | None  # the best epoch, mean over folds
    folds: tuple[tuple[float, int], ...]  # value and best epoch of each fold that was trained
    seconds: float
    message: str | None = None  # why it failed

    def as_dict(self) -> dict[str, Any]:
        """The trial as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Trial":
        """The trial that `as_dict` has made these values of."""
        return cls(**content | {"folds": tuple((value, epoch) for value, epoch in content["folds"])})


def require_optuna() -> None:
    """Raise ConfigError where what a search needs is not installed."""
    try:
        import optuna  # noqa: F401 - before the work, so that nobody searches for hours what can't be written
        import tomli_w  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"tuning needs {error.name or 'optuna'}, which is missing; install mfpar[tune]") from error


class Study:
    """Finished trials, and what to try next. Local: on the first rank.

    Parameters
    ----------
    space : Space
    search : "bayesian", "random" or "grid"
    seed : int
    trials : int or None
        How many there are to be; None for 20, or for the whole grid.
    """

    def __init__(self, space: Space, search: str, seed: int, trials: int | None):
        self.finished: dict[int, Trial] = {}
        self._space, self._search, self._seed = space, search, seed
        self._journal: Any = None  # Optuna's study
        self._path = Path()
        size = space.size
        if trials is None:
            trials = size if search == "grid" and size else 20
        # A small space is better tried out than sampled.
        self._exhausts = size is not None and (search == "grid" or size <= trials)
        self.total = min(trials, size) if size is not None and self._exhausts else trials

    @property
    def _direction(self) -> Literal["minimize", "maximize"]:
        return "maximize" if more_is_better(self._space.measure) else "minimize"

    def keep(self, path: Path, identity: dict[str, Any], anew: bool) -> None:
        """Keep trials in a journal, after those that are in it already.

        Parameters
        ----------
        identity : JSON values
            All that a trial's value depends on but for what it tries.
        anew : bool
            Drop what is in it.

        Raises
        ------
        ConfigError
            It is the journal of another search.
        FormatError, StorageError
            It is no journal; it can't be read or written.
        """
        import optuna
        from optuna.storages.journal import JournalFileBackend

        self._path = path.absolute()  # what a stale lock refers to from any folder
        with storage_errors(path):
            if anew:
                path.unlink(missing_ok=True)
            _mend(path)
        try:
            with _quiet(), storage_errors(path):
                storage = optuna.storages.JournalStorage(JournalFileBackend(str(self._path)))
                if NAME not in optuna.get_all_study_names(storage):
                    self._journal = optuna.create_study(storage=storage, study_name=NAME, direction=self._direction)
                    self._journal.set_user_attr(NAME, identity)
                    return
                self._journal = optuna.load_study(study_name=NAME, storage=storage)
                noted = self._journal.user_attrs.get(NAME)
                kept = [trial.user_attrs[NAME] for trial in self._journal.get_trials() if NAME in trial.user_attrs]
        except (ValueError, LookupError, TypeError, AssertionError) as error:
            raise FormatError(f"{path}: is no journal of a study: {error}; name another with --study") from error
        if noted is None and not kept:  # killed right after it was created
            self._journal.set_user_attr(NAME, identity)
        elif (noted := noted or {}) != identity:
            differs = next(name for name in [*identity, *noted] if noted.get(name) != identity.get(name))
            raise ConfigError(
                f"{path}: is a study of {NAMES.get(differs, 'another ' + differs)} ({noted.get(differs)}, not "
                f"{identity.get(differs)}); name another with --study, or start anew with --force (force=True)"
            )
        for content in kept:
            trial = Trial.from_dict(content)
            self.finished.setdefault(trial.number, trial)

    def missing(self, first: int, last: int, batch: int) -> dict[int, Plain]:
        """What to try in those of the trials first … last − 1 that are not finished; `first` begins a batch."""
        numbers = [number for number in range(first, last) if number not in self.finished]
        if not numbers:
            return {}
        if self._exhausts:
            tried = [trial.settings for trial in self.finished.values()]
            left = [settings for settings in self._space.combinations(self._seed) if settings not in tried]
            return dict(zip(numbers, left, strict=False))
        asked = self._ask(first, batch)
        return {number: asked[number - first] for number in numbers}

    def same(self, settings: Plain) -> Trial | None:
        """A finished trial of the same settings."""
        return next((trial for trial in self.finished.values() if trial.settings == settings), None)

    def add(self, trial: Trial) -> None:
        """Take note of a finished trial."""
        self.finished[trial.number] = trial
        if self._journal is not None:
            with _quiet(), storage_errors(self._path):
                self._journal.add_trial(self._frozen(trial))

    def _ask(self, first: int, batch: int) -> list[Plain]:
        """What a whole batch is to try that begins with trial number `first`."""
        import optuna

        seed = int(np.random.SeedSequence([self._seed, first]).generate_state(1)[0])
        tpe = {"n_startup_trials": STARTUP, "multivariate": True, "constant_liar": True}
        with _quiet():
            sampler: optuna.samplers.BaseSampler = (
                optuna.samplers.RandomSampler(seed)
                if self._search == "random"
                else optuna.samplers.TPESampler(seed=seed, **tpe)  # type: ignore[arg-type]
            )
            study = optuna.create_study(sampler=sampler, direction=self._direction)
            study.add_trials([self._frozen(self.finished[number]) for number in range(first)])
            if self._search == "bayesian":
                for settings in self._space.spread(STARTUP, self._seed)[first : first + batch]:
                    study.enqueue_trial(settings)
            return [study.ask(self._distributions()).params for _ in range(batch)]

    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        def of(part: Choice | Range) -> Any:
            if isinstance(part, Choice):
                return CategoricalDistribution(part.plain)
            kind = IntDistribution if part.integer else FloatDistribution
            return kind(part.low, part.high, log=part.log)  # type: ignore[arg-type]

        return {name: of(part) for name, part in self._space.searched.items()}

    def _frozen(self, trial: Trial) -> Any:
        """A trial as Optuna takes it; to the sampler one that failed is worse than all others."""
        import optuna

        states = optuna.trial.TrialState
        return optuna.trial.create_trial(
            state=states.PRUNED if trial.value is None else states.COMPLETE,
            value=trial.value,
            params=trial.settings,
            distributions=self._distributions(),
            user_attrs={NAME: trial.as_dict()},
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna says nothing of what it does, nor of what it holds for experimental."""
    from optuna import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _mend(path: Path) -> None:
    """Cut off a last line that was being written when its writer was killed; refuse what is no journal."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb") as file:
        try:
            fits = "op_code" in json.loads(file.readline())
        except (ValueError, TypeError):
            fits = False
        if not fits:
            raise FormatError(f"{path}: is no journal of a study; name another with --study")
    drop_half_line(path)
