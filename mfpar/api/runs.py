"""One training run from file to file, on the ranks of a communicator or on ranks started for it."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mfpar import errors
from mfpar.atomic import drop_half_line, refuse_existing, storage_errors
from mfpar.blockfile import BlockedFile
from mfpar.config import ModelConfig, SafetyConfig, TrainConfig
from mfpar.engine.course import Course
from mfpar.engine.report import EpochReport, describe_run, described_memory
from mfpar.engine.trace import Trace
from mfpar.engine.training import Training
from mfpar.kernels import register
from mfpar.losses import is_builtin
from mfpar.model.saving import save_model
from mfpar.parallel.comm import Communicator
from mfpar.recovery.keeper import Keeper, Precautions

Event = dict[str, Any]  # {"kind": "run" | "epoch" | "retry" | "warning" | "error", …}: a line of the log, as JSON


def train_file(
    path: str | Path,
    output: str | Path,
    model: ModelConfig,
    train: TrainConfig,
    comm: Communicator,
    listen: Callable[[Event], None],
    *,
    log: str | Path | None = None,
    trace: str | Path | None = None,
    force: bool = False,
    precautions: Precautions | None = None,
) -> str:
    """Train on a blocked file and save the model; within `comm.guard`. Collective.

    Parameters
    ----------
    listen : called on the first rank with each event of the run, the same that `log` gets as lines
    trace : file that gets a trace of the run, see `mfpar.engine.trace`
    precautions : Precautions, optional
        Against losing what is done.

    Returns
    -------
    str
        The model's fingerprint.

    Raises
    ------
    OutputExistsError, StorageError, FormatError, ConfigError, DivergedError
    PreemptedError
        The run was asked to stop, and has left a checkpoint.
    """
    output, precautions = Path(output), precautions or Precautions()
    lost, again = precautions.take_stock(comm)
    goes_on = lost or precautions.safety.resume is not None
    if comm.rank == 0 and not again:  # who was the first before may have died before it had looked
        refuse_outputs(Path(path), output, log, trace, force, precautions.safety, goes_on)
    curve: list[Event] = []
    with BlockedFile(path) as file, contextlib.ExitStack() as closing:
        tracing = closing.enter_context(Trace(comm, Path(trace) if trace else None))
        write = closing.enter_context(log_file(log if comm.rank == 0 else None, goes_on))

        def tell(kind: str, content: dict[str, Any]) -> None:
            if comm.rank == 0:
                event = {"kind": kind, **content}
                write(event)
                listen(event)

        def on_epoch(report: EpochReport) -> None:
            event = report.as_dict()
            del curve[report.epoch - 1 :]  # of epochs that were undone since
            curve.append(event)
            tell("epoch", event)
            tracing.flush()

        if lost:
            tell("lost", {"message": precautions.lost})
        precautions.require_data(comm, file.path, file.checksum)
        model, loss = model.resolved()
        train = train.resolved(loss)
        description = describe_run(file, model, train, comm)
        training = Training(file, model, loss, train, comm, tracing, precautions.safety)
        if not again:
            tell("run", description | {"memory": described_memory(training.needs, comm)})
            if comm.size > 1 and file.grid.size < 2 * comm.size:
                tell("warning", {"message": _crowded(file.grid.size, comm.size)})
        identity = {name: description[name] for name in ("data_checksum", "model", "train")}
        if not is_builtin(loss):
            identity["loss"] = loss.settings | {"functions": register(loss)}
        keeper = Keeper(precautions, comm, identity, file.grid.size, curve, tell, not training.needs.waiting, again)
        with keeper, Course(training, output, on_epoch, tell, keeper if keeper.wanted else None) as course:
            precautions.begun = True
            if goes_on:
                keeper.go_on(course, train.epochs)
            if not course.run():
                raise errors.PreemptedError(keeper.farewell)
            keeper.settle()
        record = {
            "config": {name: description[name] for name in ("model", "train")},
            "curve": curve,
            "versions": description["versions"],
        }
        with tracing.span("save"):
            fingerprint = save_model(output, training, file, record, comm)
        tracing.flush()
        tell("saved", {"path": str(output), "fingerprint": fingerprint})
        return fingerprint


def refuse_outputs(
    path: Path,
    output: Path,
    log: str | Path | None,
    trace: str | Path | None,
    force: bool,
    safety: SafetyConfig,
    goes_on: bool,
) -> None:
    """No output must replace the ratings, nor one the other; the log of a run that goes on is gone on with."""
    refuse_existing(output, force, [path])
    taken = {output.absolute(): "model"}
    for name, file in (("log", log), ("trace", trace), ("checkpoints", safety.checkpoint)):
        if file is None:
            continue
        file = Path(file)
        if other := taken.get(file.absolute()):
            raise errors.OutputExistsError(f"{file}: is wanted for the {other} and for the {name}; choose two names")
        taken[file.absolute()] = name
        if name == "checkpoints":
            if file.exists() and not file.is_dir():
                raise errors.StorageError(f"{file}: is no folder; name one for checkpoints, which need not exist yet")
        elif name == "trace" or not file.exists() or file.is_file():  # a log may go to a pipe or a device
            refuse_existing(file, force or (name == "log" and goes_on), [path])


@contextlib.contextmanager
def log_file(path: str | Path | None, goes_on: bool) -> Iterator[Callable[[Event], None]]:
    """Yield a function that writes an event to a log, which is begun or gone on with; without one it does nothing.

    Only errors of the log itself become StorageError.
    """
    if path is None:
        yield lambda event: None
        return
    path = Path(path)
    with storage_errors(path):
        if goes_on and path.is_file():
            drop_half_line(path)
        file = path.open("a" if goes_on else "w", encoding="utf-8")

    def write(event: Event) -> None:
        with storage_errors(path):
            print(json.dumps(event), file=file, flush=True)

    try:
        yield write
    finally:
        with storage_errors(path):
            file.close()


def _crowded(grid: int, ranks: int) -> str:
    return (
        f"{ranks} ranks for a grid of {grid}: a rank with a single row-block waits for its neighbour at every step; "
        f"convert with --grid {4 * ranks} or use fewer ranks"
    )
