"""factorize and load: what most of those who `import mfpar` need."""

import contextlib
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mfpar import errors
from mfpar.api.launched import train_on_ranks
from mfpar.api.runs import Event, train_file
from mfpar.api.sources import blocked, place_of
from mfpar.atomic import refuse_existing
from mfpar.config import ModelConfig, SafetyConfig, TrainConfig
from mfpar.engine.report import EpochReport
from mfpar.losses import Loss, find
from mfpar.model.model import Model
from mfpar.model.opening import open_model
from mfpar.parallel import launch
from mfpar.ratings.sources import files_of
from mfpar.recovery.keeper import Precautions


def load(path: str | Path, loss: str | Loss | None = None) -> Model:
    """Map a model without reading it whole. Local; see `mfpar.model.opening.open_model`."""
    return open_model(path, loss)


def factorize(
    ratings: Any,
    factors: int = ModelConfig.factors,
    *,
    output: str | Path | None = None,
    comm: Any = None,
    ranks: int | None = None,
    callback: Callable[[EpochReport], None] | None = None,
    log: str | Path | None = None,
    trace: str | Path | None = None,
    force: bool = False,
    implicit: bool = False,
    weights: str | None = None,
    **settings: Any,
) -> Model:
    """Factorize ratings: serially, on the ranks of `comm`, or on `ranks` ranks started for it; the result is the same.

    Parameters
    ----------
    ratings : path of a blocked file, or anything that `convert` takes
    factors : int
    output : path, optional
        Where to save the model; without it, the model's files live as long as the returned object. With ranks on
        several nodes it must be on a file system that they share.
    comm : mpi4py communicator, optional
        Then the call is collective, and every rank gets the model.
    ranks : int, optional
        Start mpirun on this machine (from a notebook, say).
    callback : function of an EpochReport, optional
        Called after every epoch; on the first rank only.
    log : path, optional
        Write the run's JSON lines there.
    trace : path, optional
        Write there what each rank and thread did when, for Perfetto or Chrome.
    force : bool
        Overwrite `output`.
    implicit, weights : see `convert`; not for a blocked file, which knows
    settings
        Any other field of `ModelConfig`, `TrainConfig` and `SafetyConfig`: loss, epochs, seed, lr, reg, biases,
        optimizer, threads, checkpoint, resume, …. A rank that dies ends the call on the ranks of `comm`; those that
        mpirun starts go on without it where they can.

    Returns
    -------
    Model

    Raises
    ------
    ConfigError
        A setting is unknown or out of range; or both `comm` and `ranks` are given.
    RatingsError, FormatError, StorageError, OutputExistsError, LaunchError, DivergedError
        See `mfpar.errors`.

    >>> import numpy as np
    >>> users, items = np.divmod(np.arange(600), 30)
    >>> model = factorize((users, items, users % 3 + items % 2.0), factors=4, epochs=20)
    >>> model.shape, bool(model.rmse(users, items, users % 3 + items % 2.0) < 0.3)
    ((20, 30), True)
    """
    model, train, safety = _configs(factors=factors, **settings)
    if comm is not None and ranks is not None:
        raise errors.ConfigError(
            "comm and ranks exclude each other: ranks are started for those who have no communicator"
        )
    team = launch.adopt(comm)

    def listen(event: Event) -> None:
        if event["kind"] == "epoch" and callback:
            callback(EpochReport(**{name: value for name, value in event.items() if name != "kind"}))

    with (
        team.watch(safety.hang_timeout),
        team.guard(),
        contextlib.ExitStack() as converted,
        contextlib.ExitStack() as cleaning,
    ):
        target, folder = place_of(output, team, cleaning)
        if team.rank == 0:
            refuse_existing(target, force, files_of(ratings))  # before a conversion that may take long
        source = blocked(ratings, team, target, converted, implicit=implicit, weights=weights)
        if ranks is None:
            careful = Precautions(safety)
            train_file(
                source, target, model, train, team, listen, log=log, trace=trace, force=force, precautions=careful
            )
        else:
            train_on_ranks(
                source, target, model, train, ranks, listen, safety=safety, log=log, trace=trace, force=force
            )
        opened = open_model(target, find(model.loss))
        team.gather(None)  # all have it open: on one file system its folder may go once nobody holds the model
        if folder:
            cleaning.pop_all()
            weakref.finalize(opened, shutil.rmtree, folder, ignore_errors=True)
    team.close()
    return opened


def _configs(**settings: Any) -> tuple[ModelConfig, TrainConfig, SafetyConfig]:
    settings = {name: os.fspath(value) if isinstance(value, Path) else value for name, value in settings.items()}
    kinds = ModelConfig, TrainConfig, SafetyConfig
    names = [list(kind.__dataclass_fields__) for kind in kinds]
    given = [{name: settings.pop(name) for name in own if name in settings} for own in names]
    if settings:
        known = ", ".join(name for own in names for name in own)
        raise errors.ConfigError(f"unknown setting {next(iter(settings))!r}; the settings are {known}")
    return ModelConfig(**given[0]), TrainConfig(**given[1]), SafetyConfig(**given[2])
