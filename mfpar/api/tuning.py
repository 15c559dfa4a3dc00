"""The choice of settings by what they do for ratings held out: a search whose trials run side by side on the ranks."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfpar.api.runs import Event
from mfpar.api.sources import blocked, place_of
from mfpar.api.space import FIELDS, Choice, Space, split_settings
from mfpar.api.study import Study, Trial, require_optuna
from mfpar.api.trials import PATIENCE, Search, Trials
from mfpar.atomic import refuse_existing, replacing
from mfpar.blockfile import BlockedFile
from mfpar.errors import DivergedError, OutputExistsError
from mfpar.losses import Loss, importable
from mfpar.metrics import more_is_better
from mfpar.parallel import launch
from mfpar.parallel.comm import Communicator
from mfpar.ratings.sources import files_of


@dataclass(frozen=True)
class TuningResult:
    """The best settings of a search, and all its trials; the same on every rank."""

    settings: dict[str, Any]  # for `factorize`: all that the best trial had, with as many epochs as were best
    measure: str
    value: float
    best: Trial
    trials: tuple[Trial, ...]

    @property
    def epochs(self) -> int:
        """The best number of epochs."""
        return int(self.settings["epochs"])

    def as_dict(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        settings = {name: value.name if isinstance(value, Loss) else value for name, value in self.settings.items()}
        told = {"measure": self.measure, "value": self.value, "epochs": self.epochs, "best": self.best.number}
        return told | {"settings": settings, "trials": [trial.as_dict() for trial in self.trials]}


def tune(
    ratings: Any,
    space: Mapping[str, Any] | None = None,
    *,
    trials: int | None = None,
    folds: int | None = None,
    validation_fraction: float | None = None,
    patience: int = PATIENCE,
    search: str = "bayesian",
    seed: int = 0,
    parallel: int = 1,
    comm: Any = None,
    study: str | Path | None = None,
    output: str | Path | None = None,
    force: bool = False,
    implicit: bool = False,
    weights: str | None = None,
    callback: Callable[[Trial], None] | None = None,
) -> TuningResult:
    """Choose settings by k-fold cross-validation or a validation part. Collective where `comm` is given.

    Parameters
    ----------
    ratings : path of a blocked file, or anything that `convert` takes
    space : dict
        By name of a setting (any of `ModelConfig` and `TrainConfig`): a value that all trials share, a list of values
        to choose from, or a tuple (low, high). `epochs` is the most epochs of a trial. Without anything to choose,
        learning rate and regularisation are searched.
    trials, folds, validation_fraction, patience, search, seed, parallel : see `Search`
    comm : mpi4py communicator, optional
        Its ranks are cut into `parallel` groups; what is found does not depend on their number.
    study : path, optional
        The journal (Optuna's) of finished trials, with which a search goes on; by default beside `output`.
    output : path, optional
        Write the best settings there, for `mfpar train --config`.
    force : bool
        Overwrite `output`, and start the study anew.
    implicit, weights : see `convert`; not for a blocked file, which knows
    callback : function of a Trial, optional
        Called on the first rank with every trial in order, those of the journal too.

    Returns
    -------
    TuningResult
        `mfpar.factorize(ratings, **result.settings)` trains with what was found.

    Raises
    ------
    ConfigError
        A setting is unknown, out of range or can't be searched; the study is one of other data or another space;
        Optuna is not installed.
    DivergedError
        No trial came to an end.
    OutputExistsError, StorageError, FormatError, RatingsError, LaunchError
    """
    plan = Search(trials, folds, validation_fraction, patience, search, seed, parallel)
    space = space or {}
    Space.of(space, search == "grid")  # checks, before a conversion that may take long
    require_optuna()
    team = launch.adopt(comm)

    def listen(event: Event) -> None:
        if event["kind"] == "trial" and callback:
            callback(Trial.from_dict({name: value for name, value in event.items() if name != "kind"}))

    with team.guard(), contextlib.ExitStack() as cleaning:
        beside, _ = place_of(output, team, cleaning)
        if team.rank == 0:
            for name in (output, study):
                if name is not None:
                    refuse_existing(Path(name), True, files_of(ratings))
        source = blocked(ratings, team, beside, cleaning, implicit=implicit, weights=weights)
        write = output is not None
        result = tune_file(source, beside, space, plan, team, listen, study=study, write=write, force=force)
    team.close()
    return result


def tune_file(
    path: str | Path,
    output: str | Path,
    space: Mapping[str, Any],
    plan: Search,
    comm: Communicator,
    listen: Callable[[Event], None],
    *,
    study: str | Path | None = None,
    write: bool = True,
    force: bool = False,
) -> TuningResult:
    """`tune` on a blocked file, within `comm.guard`. Collective.

    Parameters
    ----------
    output : beside it lie temporary files and, unless `study` says otherwise, the journal
    listen : called on the first rank
        With {"kind": "search", "measure", "searched", "trials", "finished", "study"} at the start,
        {"kind": "epoch", "trial", "fold", "epoch", "value"} after epochs of its own group, and
        {"kind": "trial", …} (see `Trial`) in order.
    write : whether to write the output and keep a journal

    Raises
    ------
    As `tune`.
    """
    output, found = Path(output), Space.of(space, plan.search == "grid")
    runner = Trials(found, plan, output, comm, listen)
    journal = Path(study) if study is not None else output.with_name(f"{output.name}.journal") if write else None
    with BlockedFile(path) as file:
        kept: Study | None = None
        if comm.rank == 0:
            require_optuna()
            kept = Study(found, plan.search, plan.seed, plan.trials)
            _refuse_outputs(Path(path), output if write else None, journal, force)
            if write:
                part = found.searched.get("loss")
                for loss in part.values if isinstance(part, Choice) else [found.fixed.get("loss")]:
                    _as_toml({"loss": loss})  # what can't be written is refused before the work
            if journal is not None:
                kept.keep(journal, runner.identity(file), force)
            listen({
                "kind": "search", "measure": found.measure, "searched": [*found.searched], "trials": kept.total,
                "finished": sum(number < kept.total for number in kept.finished), "study": str(journal or ""),
            })  # fmt: skip
        trials = runner.run(file, kept)
    result = _result(found, plan, trials)
    if comm.rank == 0 and write:
        _write(output, found, result)
    return result


def _refuse_outputs(path: Path, output: Path | None, journal: Path | None, force: bool) -> None:
    """Neither the settings nor the journal may replace the ratings, nor one the other."""
    if journal is not None:
        if output is not None and journal.absolute() == output.absolute():
            raise OutputExistsError(f"{journal}: is wanted for the study and for the settings; choose two names")
        refuse_existing(journal, True, [path])
    if output is not None:  # what an earlier part of the same search has written is its own to replace
        refuse_existing(output, force or (journal is not None and journal.exists()), [path])


def _result(space: Space, plan: Search, trials: list[Trial]) -> TuningResult:
    sign = -1 if more_is_better(space.measure) else 1
    sound = [trial for trial in trials if trial.value is not None]
    if not sound:
        raise DivergedError(f"none of {len(trials)} trials came to an end, the first because {trials[0].message}")
    best = min(sound, key=lambda trial: (sign * trial.value, trial.number))  # type: ignore[operator]
    chosen = space.settings(best.settings) | {"epochs": best.epochs, "seed": plan.seed}
    told = {
        name: value
        for name, value in chosen.items()
        if name in space.searched or name == "epochs" or value != FIELDS[name].default
    }
    return TuningResult(told, space.measure, best.value, best, tuple(trials))  # type: ignore[arg-type]


def _as_toml(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as the tables "model" and "train" of a configuration file; None, which TOML has not, is left out."""
    plain = {
        name: importable(value) if isinstance(value, Loss) else value
        for name, value in settings.items()
        if value is not None
    }
    return dict(zip(("model", "train"), split_settings(plain), strict=True))


def _write(path: Path, space: Space, result: TuningResult) -> None:
    """Write settings as `mfpar train --config` takes them."""
    import tomli_w

    failed = sum(trial.value is None for trial in result.trials)
    told = {"measure": result.measure, "value": result.value, "epochs": result.epochs, "trial": result.best.number}
    told |= {"trials": len(result.trials), "failed": failed, "space": space.as_text()}
    with replacing(path) as temporary:
        temporary.write_text(tomli_w.dumps(_as_toml(result.settings) | {"result": told}), encoding="utf-8")
