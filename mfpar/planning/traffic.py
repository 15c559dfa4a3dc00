"""Bytes from node to node, to the last one: what `bytes_sent` in a run's log will say.

In a pass every node sends each column-block once, to the node above. Before it, blocks that lie elsewhere than the
pass's order wants them are sent there directly.
"""

from dataclasses import dataclass

import numpy as np

from mfpar.planning.cluster import Cluster, Crews
from mfpar.planning.job import Job
from mfpar.schedule import ring

MANY = 50  # epochs


def order_before(job: Job, epoch: int) -> np.ndarray:
    """int64[G]: the order in which column-blocks lie before an epoch (from 1)."""
    return np.arange(job.size) if epoch == 1 or job.evaluated else ring(job.size, job.seed, epoch - 1)


def sent_in_epoch(job: Job, ranks: int, cluster: Cluster, epoch: int) -> int:
    """Bytes that all nodes send in an epoch (from 1), evaluation apart."""
    node = Crews.of(job.size, ranks, cluster).node_of_place
    before, after = order_before(job, epoch), ring(job.size, job.seed, epoch)
    return sent_in_pass(job.block_bytes, node) + int(Moves.of(job.block_bytes, node, before, after).leaving.sum())


def sent_on_average(job: Job, ranks: int, cluster: Cluster) -> int:
    """Bytes that all nodes send in an epoch, on average over those of the run, or many: they differ in the exchange."""
    epochs = range(1, min(job.epochs, MANY) + 1)
    return round(sum(sent_in_epoch(job, ranks, cluster, epoch) for epoch in epochs) / len(epochs))


def sent_in_pass(block_bytes: np.ndarray, node: np.ndarray) -> int:
    """Bytes that all nodes send in a pass; `node` int64[G] is that of each row-block."""
    nodes = int(node[-1]) + 1
    return nodes * int(block_bytes.sum()) if nodes > 1 else 0


@dataclass(frozen=True)
class Moves:
    """What each node sends and receives when column-blocks are laid in another order.

    Attributes
    ----------
    leaving, coming : int64[T]
        Bytes.
    blocks : int64[T]
        How many blocks come.
    """

    leaving: np.ndarray
    coming: np.ndarray
    blocks: np.ndarray

    @classmethod
    def of(cls, block_bytes: np.ndarray, node: np.ndarray, before: np.ndarray, after: np.ndarray) -> "Moves":
        """From the order `before` to the order `after`, int64[G] each: the block at each place."""
        nodes = int(node[-1]) + 1
        source, target = node[np.argsort(before)], node[np.argsort(after)]
        moved = np.flatnonzero(source != target)
        sums = [np.zeros(nodes, np.int64) for _ in range(3)]
        np.add.at(sums[0], source[moved], block_bytes[moved])
        np.add.at(sums[1], target[moved], block_bytes[moved])
        np.add.at(sums[2], target[moved], 1)
        return cls(*sums)
