"""What a run is to run on: how fast a worker is, and what lies between nodes; and which row-block is whose there."""

from dataclasses import dataclass, field

import numpy as np

from mfpar.budget import COMING_IN
from mfpar.grid import span
from mfpar.parallel.mpi import PATIENCE

VISIT = 0.12e-6  # seconds of a visit beside its ratings (docs/performance.md)
LOOK = PATIENCE  # seconds until a node notices that a block may leave, has left or has come: it looks so often
BETWEEN = 0.45e-3  # seconds of Python between two epochs, on each rank (docs/performance.md)
READING = 80e6  # bytes a second at which a rank reads the sums that others have sent it as text (measured once)


@dataclass(frozen=True)
class Network:
    """What connects nodes; all can send and receive at full speed at a time.

    Attributes
    ----------
    bandwidth : float
        Bytes a second of a node, each way.
    latency : float
        Seconds.
    """

    bandwidth: float
    latency: float


ETHERNET = Network(10e9 / 8, 50e-6)  # where nobody says anything: 10 Gb/s, with TCP's latency
DISK = 500e6  # bytes a second that a node reads, where nobody says anything


@dataclass(frozen=True)
class Trouble:
    """What makes workers uneven.

    Attributes
    ----------
    spread : float
        Deviation of the logarithm of a worker's time, drawn anew in each step.
    slow : tuple[int, float] or None
        A node, and how many times as long its workers take for everything.
    pause : tuple[int, int, float] or None
        A node, a step in whose beginning all its workers pause, and seconds.
    seed : int
    """

    spread: float = 0.0
    slow: tuple[int, float] | None = None
    pause: tuple[int, int, float] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Cluster:
    """What a run is to run on.

    Attributes
    ----------
    rate : float
        Updates a second of a worker, a thread of a rank.
    network : Network
    disk : float
        Bytes a second that a node reads.
    threads : int
        Of each rank.
    ranks_per_node : int
    visit : float
        Seconds that a visit takes beside its ratings.
    look : float
        Seconds until a node notices that a block may leave, has left or has come.
    room : int
        Blocks that may be on their way to a node before one has left it.
    trouble : Trouble
    """

    rate: float
    network: Network = ETHERNET
    disk: float = DISK
    threads: int = 1
    ranks_per_node: int = 1
    visit: float = VISIT
    look: float = LOOK
    room: int = COMING_IN
    trouble: Trouble = field(default_factory=Trouble)


@dataclass(frozen=True)
class Crews:
    """Who has which row-blocks.

    Attributes
    ----------
    begins, ends : int64[W]
        Row-blocks begins[w] … ends[w] − 1 are worker w's.
    ranks : int64[W]
        The rank of each worker.
    nodes : int64[W]
        The node of each worker.
    """

    begins: np.ndarray
    ends: np.ndarray
    ranks: np.ndarray
    nodes: np.ndarray

    @classmethod
    def of(cls, size: int, ranks: int, cluster: Cluster) -> "Crews":
        """Of a grid of `size` blocks a side."""
        found = []
        for rank in range(ranks):
            first, last = span(size, ranks, rank)
            count = min(cluster.threads, last - first)
            for part in range(count):
                begin, end = span(last - first, count, part)
                found.append((first + begin, first + end, rank, rank // cluster.ranks_per_node))
        return cls(*np.array(found).T)

    @property
    def node_begins(self) -> np.ndarray:
        """int64[T]: the first worker of each node."""
        return np.flatnonzero(np.diff(self.nodes, prepend=-1))

    @property
    def rank_begins(self) -> np.ndarray:
        """int64[R]: the first row-block of each rank."""
        begins: np.ndarray = self.begins[np.flatnonzero(np.diff(self.ranks, prepend=-1))]
        return begins

    @property
    def node_of_place(self) -> np.ndarray:
        """int64[G]: the node of each row-block."""
        return np.repeat(self.nodes, self.ends - self.begins)
