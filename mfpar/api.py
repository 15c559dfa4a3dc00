"""The functions of `import mfpar`: convert, factorize, load; and `train_file`, which every way of training ends in."""

import contextlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import h5py

from mfpar import errors
from mfpar.atomic import refuse_existing, storage_errors
from mfpar.blockfile import BlockedFile, Header
from mfpar.config import ModelConfig, TrainConfig
from mfpar.engine.report import EpochReport, describe_run
from mfpar.engine.training import Training, require_places
from mfpar.model.model import Model
from mfpar.model.opening import open_model
from mfpar.model.saving import save_model
from mfpar.parallel import launch
from mfpar.parallel.comm import Communicator

Event = dict[str, Any]  # {"kind": "run" | "epoch" | "warning" | "error", …}: a line of the log, as JSON


def convert(ratings: Any, output: str | Path, **options: Any) -> Header:
    """Convert ratings into a blocked HDF5 file. Local.

    Parameters
    ----------
    ratings : path, glob pattern, list of paths, scipy sparse matrix, pandas or Arrow table, or three arrays
        Users, items and ratings; ids are integers or strings.
    output : path of the file to write
    options : see `mfpar.ratings.convert.convert`
        columns, test, test_fraction, grid, seed, duplicates, memory, force.

    Returns
    -------
    Header
        Shape and statistics of what was written.

    Raises
    ------
    RatingsError
        The source can't be read as ratings.
    ConfigError, OutputExistsError, StorageError
        An option is out of range; the output exists; it can't be written.
    """
    # Here, not above: training does without DuckDB.
    from mfpar.ratings.convert import convert as convert_ratings

    return convert_ratings(ratings, Path(output), **options)


def load(path: str | Path) -> Model:
    """Map a model without reading it whole. Local; see `mfpar.model.opening.open_model`."""
    return open_model(path)


def factorize(
    ratings: Any,
    factors: int = ModelConfig.factors,
    *,
    output: str | Path | None = None,
    comm: Any = None,
    ranks: int | None = None,
    callback: Callable[[EpochReport], None] | None = None,
    log: str | Path | None = None,
    force: bool = False,
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
    force : bool
        Overwrite `output`.
    settings
        Any other field of `ModelConfig` and `TrainConfig`: epochs, seed, lr, lr_decay, reg, biases, optimizer, threads.

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
    model, train = _configs(factors=factors, **settings)
    if comm is not None and ranks is not None:
        raise errors.ConfigError(
            "comm and ranks exclude each other: ranks are started for those who have no communicator"
        )
    team = launch.adopt(comm)

    def listen(event: Event) -> None:
        if event["kind"] == "epoch" and callback:
            callback(EpochReport(**{name: value for name, value in event.items() if name != "kind"}))

    with team.guard(), contextlib.ExitStack() as cleaning:
        target, folder = _place(output, team, cleaning)
        if team.rank == 0:
            refuse_existing(target, force, _paths(ratings))  # before a conversion that may take long
        source = _blocked(ratings, team, target, cleaning)
        if ranks is None:
            train_file(source, target, model, train, team, listen, log=log, force=force)
        else:
            train_on_ranks(source, target, model, train, ranks, listen, log=log, force=force)
        opened = open_model(target)
        team.gather(None)  # all have it open: on one file system its folder may go once nobody holds the model
        if folder:
            cleaning.pop_all()
            weakref.finalize(opened, shutil.rmtree, folder, ignore_errors=True)
    team.close()
    return opened


def train_file(
    path: str | Path,
    output: str | Path,
    model: ModelConfig,
    train: TrainConfig,
    comm: Communicator,
    listen: Callable[[Event], None],
    *,
    log: str | Path | None = None,
    force: bool = False,
) -> str:
    """Train on a blocked file and save the model; within `comm.guard`. Collective.

    Parameters
    ----------
    listen : called on the first rank with each event of the run, the same that `log` gets as lines

    Returns
    -------
    str
        The model's fingerprint.

    Raises
    ------
    OutputExistsError, StorageError, FormatError, ConfigError, DivergedError
    """
    output = Path(output)
    if comm.rank == 0:
        _refuse_outputs(Path(path), output, log, force)
    curve: list[Event] = []
    with BlockedFile(path) as file, contextlib.ExitStack() as closing:
        lines = closing.enter_context(_log_file(log)) if log and comm.rank == 0 else None

        def tell(kind: str, content: dict[str, Any]) -> None:
            if comm.rank == 0:
                event = {"kind": kind, **content}
                if lines:
                    with storage_errors(Path(log)):  # type: ignore[arg-type]
                        print(json.dumps(event), file=lines, flush=True)
                listen(event)

        def on_epoch(report: EpochReport) -> None:
            curve.append(report.as_dict())
            tell("epoch", report.as_dict())

        description = describe_run(file, model, train, comm)
        training = Training(file, model, train, comm)
        tell("run", description)
        if comm.size > 1 and file.grid.size < 2 * comm.size:
            tell("warning", {"message": _crowded(file.grid.size, comm.size)})
        training.run(on_epoch)
        record = {
            "config": {name: description[name] for name in ("model", "train")},
            "curve": curve,
            "versions": description["versions"],
        }
        return save_model(output, training, file, record, comm)


def train_on_ranks(
    path: str | Path,
    output: str | Path,
    model: ModelConfig,
    train: TrainConfig,
    ranks: int,
    listen: Callable[[Event], None],
    *,
    log: str | Path | None = None,
    force: bool = False,
) -> None:
    """`train_file` on `ranks` ranks that mpirun starts on this machine; raises what they raise. Local."""
    if ranks < 1:
        raise errors.ConfigError(f"ranks={ranks}: expected an integer ≥ 1")
    _refuse_outputs(Path(path), Path(output), log, force)
    with BlockedFile(path) as file:
        require_places(file.grid.size, ranks)
    failure: list[Exception] = []

    def on_line(line: str) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            return  # a line of mpirun's own
        if event["kind"] == "error":
            failure.append(getattr(errors, event["error"])(event["message"]))
        else:
            listen(event)

    arguments = ["train", str(path), "--output", str(output), "--progress", "json"]
    arguments += [*model.as_options(), *train.as_options()]
    arguments += ["--log", str(log)] * (log is not None) + ["--force"] * force
    code, complaints = launch.run_ranks(arguments, ranks, on_line)
    if failure:
        raise failure[0]
    if code:
        last = complaints.strip().splitlines()[-1:] or ["no message"]
        raise errors.RankError(f"the ranks ended with exit code {code}: {last[0]}")


def _configs(**settings: Any) -> tuple[ModelConfig, TrainConfig]:
    of_model = {name: settings.pop(name) for name in ModelConfig.__dataclass_fields__ if name in settings}
    of_run = {name: settings.pop(name) for name in TrainConfig.__dataclass_fields__ if name in settings}
    if settings:
        known = ", ".join([*ModelConfig.__dataclass_fields__, *TrainConfig.__dataclass_fields__])
        raise errors.ConfigError(f"unknown setting {next(iter(settings))!r}; the settings are {known}")
    return ModelConfig(**of_model), TrainConfig(**of_run)


def _place(output: str | Path | None, comm: Communicator, cleaning: contextlib.ExitStack) -> tuple[Path, Path | None]:
    """Where the model goes, and the temporary folder made for it if any, which `cleaning` removes on an error."""
    if output is not None:
        return Path(output), None
    made = tempfile.mkdtemp(prefix="mfpar-") if comm.rank == 0 else None
    if made:
        cleaning.callback(shutil.rmtree, made, ignore_errors=True)
    folder = Path(comm.gather(made)[0])
    return folder / "model.h5", folder if comm.rank == 0 else None


def _blocked(ratings: Any, comm: Communicator, target: Path, cleaning: contextlib.ExitStack) -> Path:
    """The path of a blocked file: that given, or a temporary one made beside the model by the first rank."""
    if isinstance(ratings, str | Path) and Path(ratings).is_file() and h5py.is_hdf5(ratings):
        return Path(ratings)
    path = target.with_name(f".{target.name}.ratings.h5")
    if comm.rank == 0:
        cleaning.callback(path.unlink, missing_ok=True)
        convert(ratings, path, force=True)
    comm.gather(None)
    return path


def _paths(ratings: Any) -> list[Path]:
    """The files that a source names by path."""
    return [
        Path(one)
        for one in (ratings if isinstance(ratings, list | tuple) else [ratings])
        if isinstance(one, str | Path)
    ]


def _refuse_outputs(path: Path, output: Path, log: str | Path | None, force: bool) -> None:
    """A model or a log must not replace the ratings, nor one the other."""
    refuse_existing(output, force, [path])
    if log is not None:
        if Path(log).absolute() == output.absolute():
            raise errors.OutputExistsError(f"{log}: is wanted for the model and for the log; choose two names")
        if not Path(log).exists() or Path(log).is_file():  # a log may go to a pipe or a device, and begins anew
            refuse_existing(Path(log), True, [path])


@contextlib.contextmanager
def _log_file(path: str | Path) -> Iterator[TextIO]:
    """Open a log; only errors of the log itself become StorageError."""
    with storage_errors(Path(path)):
        file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115 - closed below
    try:
        yield file
    finally:
        with storage_errors(Path(path)):
            file.close()


def _crowded(grid: int, ranks: int) -> str:
    return (
        f"{ranks} ranks for a grid of {grid}: ranks with a single row-block can't compute while they exchange; "
        f"convert with --grid {4 * ranks} or use fewer ranks"
    )
