"""What this machine can do, measured in a moment: updates a second, bytes a second from disk and to another node."""

import dataclasses
import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mfpar.atomic import storage_errors
from mfpar.blockfile import BlockedFile, Header, Strip
from mfpar.config import ModelConfig, TrainConfig
from mfpar.engine.objective import Objective
from mfpar.engine.steps import arrays_of, kind_of, updating
from mfpar.kernels import CLOCKS, DONE, SLOT, SUMS, WIDTH, Turns
from mfpar.losses import Loss
from mfpar.parallel.comm import Communicator, Message
from mfpar.planning.cluster import VISIT, Cluster, Network
from mfpar.planning.job import Job
from mfpar.schedule import ring
from mfpar.shards import Layout, Slots, start_block

SECONDS = 2.0  # of all measurements of a plan
RATINGS = 1 << 22  # that kernels are tried on, about, where they are made up; of a file four times as many
ROOM = 1 << 27  # bytes of P, and of Q, at most
READ = 1 << 26  # bytes that are read to measure a disk
MESSAGE = 1 << 23  # bytes of a large message
TIMES = 10  # that one is sent
IMPATIENCE = 0.5  # seconds, after which a message is no longer watched without a pause


@dataclass(frozen=True)
class Sample:
    """Ratings to try kernels on: what a worker visits in some steps, and what is known of all.

    Attributes
    ----------
    strip : Strip
        Of as many row-blocks as `rows` and column-blocks as `cols` has.
    rows : int64[n]
        Rows of each row-block.
    cols : int64[C]
        Columns of each column-block, n ≤ C.
    header : Header
    """

    strip: Strip
    rows: np.ndarray
    cols: np.ndarray
    header: Header

    @classmethod
    def of_file(cls, file: BlockedFile, held: int, layout: Layout) -> "Sample":
        """The first blocks of a file: of `held` row-blocks, fewer if they are large, as many as memory has room for."""
        floats = [[layout.floats(int(size)) for size in sizes] for sizes in (file.grid.row_sizes, file.grid.col_sizes)]
        fit, met = (max(1, int(np.searchsorted(np.cumsum(side), ROOM // 4, side="right"))) for side in floats)
        few = int(np.searchsorted(file.counts().sum(axis=1).cumsum(), 4 * RATINGS, side="right"))
        held = max(1, min(held, fit, met, few))
        strip = file.strip("train", 0, held)
        inside = dataclasses.replace(strip, offsets=np.ascontiguousarray(strip.offsets[:, : met + 1]))
        return cls(inside, file.grid.row_sizes[:held], file.grid.col_sizes[:met], file.header)

    @classmethod
    def of_job(cls, job: Job, loss: Loss, held: int) -> "Sample":
        """Random cells and ratings like those of a description; fewer row-blocks, or smaller blocks, if they are large.

        As many column-blocks as make enough ratings: a worker meets ever new ones, which are in no cache.
        """
        row_bytes = 4 * job.layout.floats(1023) // 1024
        row_count, col_count = (int(min(sizes.max(), ROOM // row_bytes)) for sizes in (job.rows, job.cols))
        each = int(min(job.counts["train"].max(), row_count * col_count))
        held = max(1, min(held, ROOM // (row_bytes * row_count), math.isqrt(RATINGS // each)))
        met = min(ROOM // (row_bytes * col_count), RATINGS // (held * each))
        met = min(job.size, max(held, met))
        each = min(each, max(1, RATINGS // (held * met)))
        rng = np.random.default_rng(job.seed)
        blocks = [_cells(rng, row_count, col_count, each) for _ in range(held * met)]
        rows, cols = (np.concatenate([block[axis] for block in blocks]) for axis in (0, 1))
        total = len(rows)
        if loss.pairs:
            values = np.ones(total)
        elif loss.ratings == "any":
            values = rng.normal(size=total)
        else:
            values = rng.integers(0, 2, total).astype(np.float64)
        offsets = (np.arange(held)[:, None] * met + np.arange(met + 1)) * each
        strip = Strip(offsets, rows, cols, values.astype(np.float32))
        header = Header(
            rows=int(job.rows.sum()), cols=int(job.cols.sum()), ratings=max(total, job.ratings),
            test_ratings=0, test_unknown=0, duplicates=0, seed=job.seed, streams=1, mean=float(values.mean()),
            deviation=float(values.std()), minimum=float(values.min()), maximum=float(values.max()),
        )  # fmt: skip
        return cls(strip, np.full(held, row_count), np.full(met, col_count), header)

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """Types of the ratings' arrays, by name."""
        names = ("rows", "cols", "values", *(["weights"] if self.strip.weights is not None else []))
        return {name: getattr(self.strip, name).dtype for name in names}

    def of_fewer(self, held: int) -> "Sample":
        """The first row-blocks alone, at most so many."""
        inside = dataclasses.replace(self.strip, offsets=self.strip.offsets[:held])
        return Sample(inside, self.rows[:held], self.cols, self.header)


def _cells(rng: np.random.Generator, row_count: int, col_count: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of random cells, uint16 or uint32[count], in the order of a blocked file."""
    from mfpar.ratings.ordering import spread  # here: nobody else needs DuckDB

    cells = np.sort(rng.integers(0, row_count * col_count, count))
    rows, cols = np.divmod(cells, col_count)
    order = spread(rows, cols)
    kinds = [np.uint16 if side < 2**16 else np.uint32 for side in (row_count, col_count)]
    return rows[order].astype(kinds[0]), cols[order].astype(kinds[1])


def update_rate(
    sample: Sample, model: ModelConfig, loss: Loss, train: TrainConfig, workers: int = 1, seconds: float = SECONDS
) -> float:
    """Updates a second of each of so many workers that run at a time, with the kernel of these settings. Local.

    Parameters
    ----------
    model, train : resolved
    workers : threads; more than there are cores measure nothing
    """
    layout = Layout.of(model, train)
    objective = Objective.of(model, loss, sample.header, "the ratings that kernels are tried on")
    kernel = updating(kind_of(objective, layout, train, sample.dtypes))
    rate = train.lr if isinstance(train.lr, float | int) else loss.rates[train.optimizer]
    knobs = objective.knobs(rate, rate, rate)
    passes = [_pass_of(kernel, sample, layout, train.seed, knobs) for _ in range(workers)]
    times: list[list[float]] = [[] for _ in passes]
    until = time.perf_counter() + seconds

    def work(one: Callable[[], None], taken: list[float]) -> None:
        one()
        while time.perf_counter() < until or not taken:
            started = time.perf_counter()
            one()
            taken.append(time.perf_counter() - started)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(passes, times, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = statistics.mean(statistics.median(of_one) for of_one in times)
    order, steps = _course(sample, train.seed)
    met = order[(np.arange(len(sample.rows)) + np.arange(steps)[:, None]) % len(order)]
    ratings = int(np.diff(sample.strip.offsets)[np.arange(len(sample.rows)), met].sum())
    return float(max(ratings, 1) / max(taken - met.size * VISIT, taken / 2))


def rates_by_ranks(
    job: Job,
    file: BlockedFile | None,
    model: ModelConfig,
    loss: Loss,
    train: TrainConfig,
    cluster: Cluster,
    ranks: Collection[int],
    comm: Communicator,
) -> dict[int, float]:
    """Updates a second of a worker on each number of ranks, whose share of the matrix and of the caches differs.

    Collective: several ranks try at the same time, each with its threads, as many as a number of ranks has. One alone
    takes nodes to be like this machine: where a node has more workers than this has cores, they share them.

    Parameters
    ----------
    file : of the job, if there is one
    model, train : resolved
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    held = {count: -(-job.size // (count * cluster.threads)) for count in ranks}
    most = max(held.values())
    sample = Sample.of_file(file, most, job.layout) if file else Sample.of_job(job, loss, most)
    rates = {}
    for count in ranks:
        workers = cluster.threads * (min(cluster.ranks_per_node, count) if comm.size == 1 else 1)
        together, rate = min(cores, workers), 0.0
        comm.gather(None)
        if comm.rank < count:
            rate = update_rate(sample.of_fewer(held[count]), model, loss, train, together, SECONDS / len(held))
        tried = comm.gather(rate * together / workers)[:count]
        rates[count] = statistics.mean(tried)
    return rates


def _course(sample: Sample, seed: int) -> tuple[np.ndarray, int]:
    """The order of a sample's column-blocks, and how many steps can be made before others would have to make some."""
    held, met = len(sample.rows), len(sample.cols)
    return ring(met, seed, 1), met if held == met else met - held + 1


def _pass_of(kernel: Callable[..., None], sample: Sample, layout: Layout, seed: int, knobs: Any) -> Callable[[], None]:
    """A call that goes through the steps of a sample once, on tables of its own."""
    held, met = len(sample.rows), len(sample.cols)
    order, steps = _course(sample, seed)
    tables = []
    for name, sizes in (("rows", sample.rows), ("cols", sample.cols)):
        slots = Slots([layout.floats(int(size)) for size in sizes])
        for block, size in enumerate(sizes):
            start_block(slots[block], layout, np.arange(size) + block, seed, name)
        tables.append(slots)
    p_slots, q_slots = tables
    board = np.zeros((met + 2, WIDTH), np.int32)
    board[:met, SLOT] = np.arange(met)
    # What other workers would have done: a block comes to the last row-block after a visit in each step before.
    before = np.maximum(0, np.arange(met) - (held - 1)) if held < met else np.zeros(met, np.int64)
    clocks, marks, sums = np.zeros((held, CLOCKS), np.int64), np.zeros((held, 0, 3), np.int64), np.zeros((held, SUMS))
    turns = Turns(0, held, 0, 0, steps, 0, order, board, q_slots.starts, clocks, marks)
    p_side, q_side = (p_slots.buffer, p_slots.starts, sample.rows + 1), (q_slots.buffer, sample.cols + 1)

    def visit() -> None:
        board[order, DONE] = before
        kernel(turns, *arrays_of(sample.strip), *p_side, *q_side, knobs, np.uint64(1), sums)

    return visit


def disk_rate(path: Path) -> float:
    """Bytes a second at which a part of a file is read that no memory has kept. Local.

    Raises
    ------
    StorageError
        It can't be read.
    """
    with storage_errors(path), path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, READ, os.POSIX_FADV_DONTNEED)
        buffer = bytearray(READ)
        started = time.perf_counter()
        count = file.readinto(buffer) or 0
    return count / max(time.perf_counter() - started, 1e-9)


def network_of(comm: Communicator) -> Network | None:
    """What lies between the first two nodes of a communicator; None where there is only one. Collective."""
    leaders = sorted(set(comm.leaders))
    if len(leaders) == 1:
        return None
    pair = leaders[:2]
    taken = [0.0, 0.0]
    comm.gather(None)
    if comm.rank in pair:
        peer = pair[1 - pair.index(comm.rank)]
        for at, size in enumerate((4, MESSAGE)):
            taken[at] = min(_there_and_back(comm, peer, comm.rank == pair[0], size) for _ in range(TIMES)) / 2
    small, large = comm.gather(taken)[pair[0]]
    return Network((MESSAGE - 4) / max(large - small, 1e-9), small)


def _there_and_back(comm: Communicator, peer: int, begins: bool, size: int) -> float:
    """Seconds of a message to another rank and its answer."""
    sent, received = (np.zeros(-(-size // 4), np.float32) for _ in range(2))
    started = time.perf_counter()
    for sends in (begins, not begins):
        message = Message(sent if sends else received, peer, 0)
        pending = comm.start([message] if sends else [], [] if sends else [message])
        while not pending.arrived() and time.perf_counter() < started + IMPATIENCE:
            pass  # without the naps of `wait`, which are longer than what is measured
        pending.wait()
    return time.perf_counter() - started
