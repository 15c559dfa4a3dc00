"""An epoch as a discrete-event model: when each worker begins and ends each step, and when each block crosses.

The rules are those of `mfpar.kernels.turns` and `mfpar.engine.ferry`. A worker visits its row-blocks in order, step by
step; the last of them waits for the block that the next worker's first row-block has met in the step before. Where the
next worker is on another node, that block is sent: once the ferry has noticed that it may leave, the one before it is
through the link, and there is room for it at the other end, which has two blocks' room and gains one with each block
that has left. Events of a step depend on those of the steps before only, so a step is a few operations on arrays, and
4,096 ranks take seconds.
"""

import math
from dataclasses import dataclass

import numpy as np

from mfpar.kernels.kind import SUMS
from mfpar.planning.cluster import BETWEEN, READING, Cluster, Crews
from mfpar.planning.job import Job
from mfpar.planning.traffic import Moves, order_before
from mfpar.schedule import ring

STEPS = 2048  # of a larger grid the first so many are simulated; the rest goes on at the pace of their second half
GATHERS = 3  # times that all ranks hear from each other in an epoch
DIGITS = 21  # bytes of a number as text, as ranks tell it each other
LEAST_ROOM = 512  # bytes in which a rank says how its pass went, at least


@dataclass(frozen=True)
class Epoch:
    """What the model says of an epoch.

    Attributes
    ----------
    seconds : float
        From its begin to the next one's.
    exchange : float
        Seconds, of these, before the first visit on the node that waits longest for its column-blocks.
    agreeing : float
        Seconds, of these, in which all ranks hear how the pass went.
    work : float64[W]
        Seconds that each worker is inside blocks.
    lockstep : float
        Seconds of an epoch in which all wait for each other, and for what is sent, after every step.
    balance : float
        Mean over steps of the ratings of a rank on average, over those of the busiest.
    """

    seconds: float
    exchange: float
    agreeing: float
    work: np.ndarray
    lockstep: float
    balance: float

    @property
    def efficiency(self) -> float:
        """Share of the epoch that a worker is inside blocks, mean over workers."""
        return float(self.work.mean()) / self.seconds if self.seconds else 1.0


def simulate(job: Job, ranks: int, cluster: Cluster, epoch: int = 2, *, streamed: bool = False) -> Epoch:
    """Go through an epoch (from 1); a function of its arguments alone.

    Parameters
    ----------
    streamed : bool
        Ratings come from the disk, a step of each worker ahead; workers of a node share its disk evenly.
    """
    crews = Crews.of(job.size, ranks, cluster)
    order = ring(job.size, job.seed, epoch)
    moves = Moves.of(job.block_bytes, crews.node_of_place, order_before(job, epoch), order)
    exchange = _exchange(moves, cluster)
    steps = min(job.size, STEPS)
    course = _Course(job, cluster, crews, order, exchange[crews.nodes], streamed)
    for step in range(steps):
        if step == steps // 2:
            half = course.last
        course.advance(step)
    rest = (job.size - steps) / (steps - steps // 2)
    agreeing = _agreeing(job.size, ranks, int(crews.nodes[-1]) + 1, cluster)
    return Epoch(
        seconds=course.last + rest * (course.last - half) + agreeing,
        exchange=float(exchange.max()),
        agreeing=agreeing,
        work=course.work * (job.size / steps),
        lockstep=float(exchange.max()) + course.lockstep * (job.size / steps) + agreeing,
        balance=course.balance / steps,
    )


def _exchange(moves: Moves, cluster: Cluster) -> np.ndarray:
    """float64[T]: seconds until each node has the blocks that it begins a pass with."""
    rounds = np.ceil(moves.blocks / cluster.room)
    through: np.ndarray = np.maximum(moves.leaving, moves.coming) / cluster.network.bandwidth
    return through + rounds * cluster.network.latency


def _agreeing(size: int, ranks: int, nodes: int, cluster: Cluster) -> float:
    """Seconds after a pass until all ranks know what it amounts to, and are ready for the next."""
    if nodes == 1:
        return BETWEEN
    said = DIGITS * SUMS * -(-size // nodes)  # by the first rank of each node, as text; all ranks have room for it
    room = max(LEAST_ROOM, 1 << said.bit_length())
    sent, read = ranks * room / cluster.network.bandwidth, DIGITS * SUMS * size / READING
    return BETWEEN + sent + read + GATHERS * (math.ceil(math.log2(ranks)) * cluster.network.latency + cluster.look)


class _Course:
    """The state of all workers and links after some steps."""

    def __init__(self, job: Job, cluster: Cluster, crews: Crews, order: np.ndarray, start: np.ndarray, streamed: bool):
        self._job, self._cluster, self._crews, self._order = job, cluster, crews, order
        self._bytes = job.block_bytes
        self._single = crews.ends - crews.begins == 1
        self._next = np.roll(np.arange(len(crews.begins)), -1)
        # Worker w waits, at the end of its step, for what worker w + 1 has left; these for what another node has.
        begins = crews.node_begins
        self._last_of_node = np.roll(begins, -1) - 1
        self._nodes = len(begins)
        self._first_below = begins[np.roll(np.arange(self._nodes), -1)]  # of the node that each one receives from
        self._free = start  # when each worker has ended its step
        self._came = start  # when the block is there that each worker ends its next step with
        self._link = np.zeros(self._nodes)  # when the link into each node is free
        self._gone = [
            np.zeros(self._nodes)
        ] * cluster.room  # when each node has sent the blocks before, the latest last
        self._read_ahead = cluster.disk / _workers_of_a_node(crews) if streamed else np.inf
        self._read, self._before = np.zeros(len(start)), np.zeros(len(start))
        self._random = np.random.default_rng(cluster.trouble.seed)
        self.work, self.lockstep, self.balance = np.zeros(len(start)), 0.0, 0.0

    @property
    def last(self) -> float:
        """When the last worker has ended its step, and what has left last has come."""
        return float(max(self._free.max(), self._came.max()))

    def advance(self, step: int) -> None:
        """Go on by a step."""
        crews, cluster = self._crews, self._cluster
        ratings = self._job.met(self._order, step)
        loads = np.add.reduceat(ratings, crews.rank_begins)
        self.balance += float(loads.mean() / loads.max()) if loads.any() else 1.0
        seconds = cluster.visit + ratings / cluster.rate
        slowness = self._slowness()
        first, last = seconds[crews.begins] * slowness, seconds[crews.ends - 1] * slowness
        whole = np.add.reduceat(seconds, crews.begins) * slowness
        self.work += whole

        wanted = np.add.reduceat(ratings, crews.begins) * self._job.rating_bytes
        self._read = np.maximum(self._read, self._before) + wanted / self._read_ahead
        begin = np.maximum(self._free, self._read) + self._pause(step)
        self._before = self._free
        self._free = np.maximum(begin + (whole - last), self._came) + last
        left = np.where(self._single, self._free, begin + first)
        self._came = left[self._next]
        crossing = self._cross(step, left) if self._nodes > 1 else 0.0
        self.lockstep += max(float(whole.max()), float((wanted / self._read_ahead).max())) + crossing

    def _cross(self, step: int, left: np.ndarray) -> float:
        """Send what has left each node; returns the seconds that takes where nothing is in its way."""
        cluster, size = self._cluster, self._job.size
        first_places = self._crews.begins[self._first_below]
        blocks = self._order[(first_places + step) % size]
        through = self._bytes[blocks] / cluster.network.bandwidth
        begin = np.maximum(np.maximum(left[self._first_below] + cluster.look, self._link), self._gone[0])
        self._link = begin + through
        self._came[self._last_of_node] = self._link + cluster.network.latency + cluster.look
        self._gone = [*self._gone[1:], np.roll(self._link, 1) + cluster.look]
        return float(through.max()) + cluster.network.latency + 2 * cluster.look

    def _slowness(self) -> np.ndarray:
        """float64[W]: how many times as long as they should workers take for a step."""
        trouble, nodes = self._cluster.trouble, self._crews.nodes
        slowness = np.exp(trouble.spread * self._random.standard_normal(len(nodes)))
        if trouble.slow:
            slowness[nodes == trouble.slow[0]] *= trouble.slow[1]
        return slowness

    def _pause(self, step: int) -> np.ndarray:
        """float64[W]: seconds that workers pause before a step."""
        pause, nodes = self._cluster.trouble.pause, self._crews.nodes
        return np.where(nodes == pause[0], pause[2], 0.0) if pause and pause[1] == step else np.zeros(len(nodes))


def _workers_of_a_node(crews: Crews) -> np.ndarray:
    """int64[W]: how many workers share the node of each."""
    counts: np.ndarray = np.bincount(crews.nodes)[crews.nodes]
    return counts
