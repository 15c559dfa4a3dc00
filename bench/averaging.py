"""Data parallelism as the baseline: every rank holds all of Q, trains on its own rows, and copies are averaged.

The way of DistBelief (Dean et al., NIPS 2012) in its synchronous form: between averagings the copies of Q and of the
column biases drift apart; then Allreduce makes them one again, each column the mean of its copies, weighted by how many
of its ratings each rank has, so that nobody's untouched copy dilutes what another has learned. Ratings, rows of P,
starting values, order of blocks and kernels are mfpar's own: what differs is what happens to Q.

A program for mpirun, which also runs mfpar itself under the same conditions (see `data_parallel`):
`mpirun -n 2 python averaging.py '{"system": "averaging", "file": …, "factors": 32, "averagings": 1, "settings": {}}'`
"""

import json
import resource
import socket
import sys
import time
from typing import Any

import numpy as np
from mpi4py import MPI
from runs import one_step, tables_of

import mfpar
from mfpar.blockfile import BlockedFile
from mfpar.config import ModelConfig, TrainConfig
from mfpar.engine.objective import Objective
from mfpar.engine.rates import Rates
from mfpar.engine.starting import Starter
from mfpar.engine.steps import arrays_of, kind_of
from mfpar.grid import span
from mfpar.kernels import DESCENT, SUMS, Knobs, update_kernel
from mfpar.schedule import meetings, ring, sample_key
from mfpar.shards import Layout, Slots

OF_MODEL = set(ModelConfig.__dataclass_fields__)


class Replica:
    """What a rank holds: its ratings and rows of P, and a copy of all of Q. Collective. For SGD without state.

    Parameters
    ----------
    job : see the module
    comm : MPI communicator
    """

    def __init__(self, job: dict[str, Any], comm: MPI.Comm):
        settings = {"factors": job["factors"], **job["settings"]}
        model, loss = ModelConfig(**{key: value for key, value in settings.items() if key in OF_MODEL}).resolved()
        self.train = TrainConfig(**{key: settings[key] for key in settings if key not in OF_MODEL}).resolved(loss)
        self.comm, self.layout = comm, Layout.of(model, self.train)
        with BlockedFile(job["file"]) as file:
            self.grid, self.ratings = file.grid, file.header.ratings
            self.first, self.last = span(self.grid.size, comm.size, comm.rank)
            self.objective = Objective.of(model, loss, file.header, file.path)
            kind = kind_of(self.objective, self.layout, self.train, file.dtypes("train"))
            self.strips = {part: file.strip(part, self.first, self.last) for part in ("train", "test")}
            starter = Starter(file, model, self.layout, self.train.seed, self.objective.unit)
            self.row_sizes = self.grid.row_sizes[self.first : self.last]
            self.P = Slots([self.layout.floats(int(size)) for size in self.row_sizes])
            self.Q = Slots([self.layout.floats(int(size)) for size in self.grid.col_sizes])
            for place in range(self.last - self.first):
                starter.fill(self.P[place], "rows", self.first + place)
            for j in range(self.grid.size):
                starter.fill(self.Q[j], "cols", j)
        self.weights = self._weights()
        for turn in range(2):  # the first rank compiles, the others find it in the cache
            if turn == (comm.rank > 0):
                self.kernel = update_kernel(kind)
            comm.Barrier()
        self.offset = 0.0

    def _weights(self) -> list[np.ndarray]:
        """By column-block, float32[cols]: the share of each column's ratings that this rank has."""
        strip, shares = self.strips["train"], []
        for j, size in enumerate(self.grid.col_sizes):
            bounds = [slice(ends[j], ends[j + 1]) for ends in strip.offsets]
            mine = sum(np.bincount(strip.cols[inside], minlength=int(size)) for inside in bounds).astype(np.float64)
            total = np.empty_like(mine)
            self.comm.Allreduce(mine, total)
            shares.append((mine / np.maximum(total, 1)).astype(np.float32))
        return shares

    def visit(self, met: np.ndarray, knobs: Knobs, epoch: int, sums: np.ndarray) -> None:
        """Let each of this rank's row-blocks i meet column-block met[i]: the one place that calls the kernel."""
        p_side = self.P.buffer, self.P.starts, self.row_sizes + 1
        q_side = self.Q.buffer, self.grid.col_sizes + 1
        key = sample_key(self.train.seed, epoch)
        turns = one_step(met, self.Q.starts, self.last - self.first, self.first)
        self.kernel(turns, *arrays_of(self.strips["train"]), *p_side, *q_side, knobs, key, sums)

    def average(self) -> None:
        """Make all copies of Q the weighted mean of all. Collective."""
        for j, weights in enumerate(self.weights):
            rows = self.layout.rows(self.Q[j], len(weights))
            rows *= weights[:, None]
            if self.layout.biases:
                bias = self.layout.bias(self.Q[j], len(weights))
                bias *= weights
        self.comm.Allreduce(MPI.IN_PLACE, self.Q.buffer)

    def epoch(self, epoch: int, rate: float, averagings: int) -> float:
        """Visit all ratings once, and average so many times, evenly spread; seconds of the slowest rank. Collective."""
        size = self.grid.size
        order, sums = ring(size, self.train.seed, epoch), np.zeros((self.last - self.first, SUMS))
        knobs = self.objective.knobs(rate, rate, rate)
        self.comm.Barrier()
        started = time.perf_counter()
        for step in range(size):
            self.visit(meetings(order, step), knobs, epoch, sums)
            if (step + 1) * averagings // size > step * averagings // size:
                self.average()
        seconds = self.comm.allreduce(time.perf_counter() - started, MPI.MAX)
        descent = self.comm.allreduce(float(sums[:, DESCENT].sum()))
        self.offset = descent / (self.objective.loss.curvature * self.ratings) if self.objective.lifted else 0.0
        return seconds

    def rmse(self) -> float:
        """Test RMSE; of ratings whose row and column both have training ratings, as others are not told apart here."""
        strip, base = self.strips["test"], float(self.objective.base) + self.offset
        total = 0.0
        for place, ends in enumerate(strip.offsets):
            size = int(self.row_sizes[place])
            rows, row_bias = self.layout.rows(self.P[place], size), self.layout.bias(self.P[place], size)
            for j, cols in enumerate(self.grid.col_sizes):
                inside = slice(ends[j], ends[j + 1])
                at, to = strip.rows[inside], strip.cols[inside]
                block = self.Q[j]
                scores = np.einsum("ij,ij->i", rows[at], self.layout.rows(block, int(cols))[to])
                scores += base + row_bias[at] + self.layout.bias(block, int(cols))[to]
                total += float(np.square(strip.values[inside] - scores, dtype=np.float64).sum())
        count = self.comm.allreduce(len(strip.values))
        return float(np.sqrt(self.comm.allreduce(total) / count))


def averaged(job: dict[str, Any], comm: MPI.Comm) -> dict[str, Any]:
    """Train by averaging. Bytes are those of a ring Allreduce, computed: all ranks together 2 (ranks − 1) |Q|."""
    replica = Replica(job, comm)
    rates = Rates(replica.train, float(replica.train.lr))
    curve = []
    for epoch in range(1, replica.train.epochs + 1):
        seconds = replica.epoch(epoch, rates.now, job["averagings"])
        curve.append((seconds, replica.rmse()))
        rates.advance(epoch)
    moved = 2 * (comm.size - 1) * replica.Q.buffer.nbytes * job["averagings"]
    return {"curve": curve, "bytes": moved, "tables": replica.P.buffer.nbytes + replica.Q.buffer.nbytes}


def rotated(job: dict[str, Any], comm: MPI.Comm) -> dict[str, Any]:
    """Train with mfpar, each rank a node of its own: column-blocks are sent, where on one node they would be shared."""
    socket.gethostname = lambda: f"node {comm.rank}"
    epochs: list[mfpar.EpochReport] = []
    mfpar.factorize(job["file"], job["factors"], comm=comm, callback=epochs.append, **job["settings"])
    with BlockedFile(job["file"]) as file:
        tables = tables_of(file.grid, Layout(job["factors"], job["settings"].get("biases", True)), comm.size, comm.rank)
    curve = [(epoch.seconds, epoch.test_rmse) for epoch in epochs]
    return {"curve": curve, "bytes": epochs[-1].bytes_sent if epochs else 0, "tables": tables}


if __name__ == "__main__":
    world, given = MPI.COMM_WORLD, json.loads(sys.argv[1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = (averaged if given["system"] == "averaging" else rotated)(given, world)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, value in (("tables", found["tables"]), ("peak", after << 10), ("grown", (after - before) << 10)):
        found[name] = world.allreduce(value, MPI.MAX)
    if world.rank == 0:
        print(json.dumps(found))
