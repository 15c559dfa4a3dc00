"""What training tells of itself: a description at the start, a report after every epoch; both plain JSON."""

import importlib.metadata
import math
import platform
from dataclasses import dataclass
from typing import Any

from mfpar.blockfile import BlockedFile
from mfpar.budget import Needs
from mfpar.config import ModelConfig, TrainConfig
from mfpar.parallel.comm import Communicator

Measures = dict[str, float]


@dataclass(frozen=True)
class Pass:
    """What one pass over the ratings did, over all ranks; the same on every rank."""

    loss: float  # mean value, of scores met on the way; not finite where training diverged
    finite: bool  # the state after it, as far as it was inspected
    seconds: float  # on the slowest team
    seconds_waiting: float  # for turns, mean over threads
    seconds_working: float  # inside blocks, mean over threads
    seconds_exchange: float  # until column-blocks lay in order, on the slowest team
    bytes_sent: int
    peak_memory: list[int]  # bytes of each rank, when it was looked at last
    step_balance: list[float]  # see `mfpar.engine.balance`; on the first rank
    refused: tuple[float, float] | None = None  # r and z of the first step that a checked pass has refused


@dataclass(frozen=True)
class EpochReport:
    """What an epoch did, over all ranks; the same on every rank where nothing else is said."""

    epoch: int  # from 1
    seconds: float  # of training, on the slowest node
    seconds_evaluate: float  # of scoring the held-out parts, on this rank
    train_loss: float  # mean value of the loss, of scores met on the way, each before its update (docs/method.md)
    train_rmse: float | None  # of the same scores; None for all but squared loss
    test: Measures | None  # by name, the loss's deciding measure first; None without a held-out part
    test_rmse: float | None  # also in `test`; None where the loss is not measured by it
    test_mae: float | None
    validation: Measures | None  # as `test`, of the part of the training ratings that is held out for it
    updates_per_second: float
    lr: float
    seconds_waiting: float  # for column-blocks while training, mean over threads
    seconds_working: float  # on blocks while training, mean over threads
    seconds_exchange: float  # of them until column-blocks of several nodes lay in the epoch's order, on the slowest
    bytes_sent: int  # from node to node while training, all ranks together
    peak_memory: list[int]  # bytes of each rank so far, when that was looked at last
    step_balance: list[float]  # by step: a rank's ratings on average, over those of the busiest; on the first rank

    @classmethod
    def of(
        cls,
        epoch: int,
        done: Pass,
        lr: float,
        ratings: int,
        squared: bool,
        measures: dict[str, Measures | None],
        seconds_evaluate: float,
    ) -> "EpochReport":
        """What is reported of a pass over so many ratings, and of the measures of held-out parts after it."""
        test = measures["test"]
        return cls(
            epoch=epoch,
            seconds=done.seconds,
            seconds_evaluate=seconds_evaluate,
            train_loss=done.loss,
            train_rmse=math.sqrt(max(2 * done.loss, 0.0)) if squared else None,
            test=test,
            test_rmse=test.get("rmse") if test else None,
            test_mae=test.get("mae") if test else None,
            validation=measures["validation"],
            updates_per_second=ratings / done.seconds,
            lr=lr,
            seconds_waiting=done.seconds_waiting,
            seconds_working=done.seconds_working,
            seconds_exchange=done.seconds_exchange,
            bytes_sent=done.bytes_sent,
            peak_memory=done.peak_memory,
            step_balance=done.step_balance,
        )

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dict(vars(self))


def describe_run(file: BlockedFile, model: ModelConfig, train: TrainConfig, comm: Communicator) -> dict[str, Any]:
    """Configuration (nothing left open), data and versions of a run, as plain JSON values."""
    header = file.header
    return {
        "model": model.as_dict(),
        "train": train.as_dict(),
        "ranks": comm.size,
        "data": str(file.path),
        "data_checksum": file.checksum,
        "rows": header.rows,
        "cols": header.cols,
        "ratings": header.ratings,
        "test_ratings": header.test_ratings,
        "grid": file.grid.size,
        "versions": versions(comm),
    }


def described_memory(needs: Needs, comm: Communicator) -> dict[str, Any]:
    """Lists by rank: bytes planned (see `Needs`), and what of it is streamed or spilled. Collective."""
    ranks = comm.gather([needs.total, needs.streamed, needs.spilled])
    return dict(zip(("planned", "streamed", "spilled"), map(list, zip(*ranks, strict=True)), strict=True))


def versions(comm: Communicator) -> dict[str, str]:
    """Versions of what can matter to a run."""
    packages = ("mfpar", "numpy", "numba", "llvmlite", "h5py")
    known = {name: importlib.metadata.version(name) for name in packages}
    return known | {"python": platform.python_version(), "machine": platform.machine(), "mpi": comm.library}
