"""The parts of a rank's ratings: what is trained on, validated on, tested on."""

import socket
from collections.abc import Callable

import numpy as np

from mfpar.blockfile import BlockedFile, Strip
from mfpar.budget import Needs, needs_of, refusal
from mfpar.config import TrainConfig
from mfpar.engine.holdout import held_out, some
from mfpar.engine.source import Resident, Source, Streamed
from mfpar.errors import ConfigError
from mfpar.grid import span
from mfpar.parallel.comm import Communicator
from mfpar.parallel.limits import allowed_memory
from mfpar.shards import Layout

Check = Callable[[np.ndarray], None]


def needs(
    file: BlockedFile,
    layout: Layout,
    train: TrainConfig,
    comm: Communicator,
    replicas: int = 0,
    checkpoint: bool = False,
) -> Needs:
    """What of this rank's share of a run lies where, so that it stays within the memory it may take. Collective.

    Parameters
    ----------
    replicas : copies of each rank's state on other ranks, 0 or 1
    checkpoint : there is one from time to time

    Raises
    ------
    ConfigError
        It can't; says what could.
    """
    leaders, hosts = comm.leaders, comm.gather(socket.gethostname())
    team = leaders.index(leaders[comm.rank]), comm.size - leaders[::-1].index(leaders[comm.rank])
    first, last = span(file.grid.size, comm.size, comm.rank)
    names = ("train", "test") if file.header.test_ratings else ("train",)
    memory = train.memory or allowed_memory(hosts.count(hosts[comm.rank]))
    sizes = file.grid.row_sizes, file.grid.col_sizes
    options = {
        "rating_bytes": sum(dtype.itemsize for dtype in file.dtypes("train").values()),
        "memory": memory,
        "threads": train.threads,
        "spill": train.spill is not None,
        "copies": min(2 + (train.patience is not None), train.epochs - 1),
        "replicas": replicas,
        "checkpoint": checkpoint,
        "ways_back": train.ways_back,
    }
    own = {name: file.counts(name, first, last) for name in names}
    if train.validates:  # while that is cut out, all ratings are there twice, and an integer for each
        own["validation"] = own["cutting"] = own["train"]
    found = needs_of(*sizes, own, layout, comm.size, comm.rank, team, **options)  # type: ignore[arg-type]
    if memory is not None and found.total > memory:
        counts = {name: file.counts(name) for name in names}
        raise ConfigError(refusal(found, *sizes, counts, layout, comm.size, team[1] - team[0], **options))  # type: ignore[arg-type]
    return found


def read_parts(
    file: BlockedFile, first: int, last: int, train: TrainConfig, needs: Needs, check: Check, comm: Communicator
) -> dict[str, Source]:
    """The parts "train" and, where there are any, "validation" and "test", of row-blocks first … last − 1. Collective.

    Parameters
    ----------
    check : called with the values of all ratings; raises what is wrong with them
    """
    parts: dict[str, Source] = {}
    if needs.streamed:

        def streamed(part: str, choose: Callable[[Strip, int], np.ndarray] | None = None) -> Streamed:
            return Streamed(file, part, first, last, needs.room, check, choose)

        if train.validates:
            parts["train"] = streamed("train", lambda strip, i: ~held_out(strip, i, file.grid, train))
            parts["validation"] = streamed("train", lambda strip, i: held_out(strip, i, file.grid, train))
        else:
            parts["train"] = streamed("train")
        if file.header.test_ratings:
            parts["test"] = streamed("test")
    else:
        strips = {"train": file.strip("train", first, last)}
        if file.header.test_ratings:
            strips["test"] = file.strip("test", first, last)
        for strip in strips.values():
            check(strip.values)
        if train.validates:
            held = held_out(strips["train"], first, file.grid, train)
            strips["train"], strips["validation"] = some(strips["train"], ~held), some(strips["train"], held)
        parts = {name: Resident(strip) for name, strip in strips.items()}
    if train.validates:
        held_ratings = sum(comm.gather(int(parts["validation"].counts.sum())))
        if not 0 < held_ratings < file.header.ratings:
            raise ConfigError(
                f"{file.path}: {held_ratings} of {file.header.ratings} ratings would be held out for validation; "
                "hold out some, not all"
            )
    return parts
