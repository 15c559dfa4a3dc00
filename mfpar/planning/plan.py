"""A plan: what a run takes on each number of ranks, and the fewest ranks that a bound of memory allows."""

import bisect
import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mfpar.budget import Needs, needs_of
from mfpar.engine.tables import require_places
from mfpar.errors import ConfigError
from mfpar.grid import span
from mfpar.planning.cluster import Cluster
from mfpar.planning.job import Job
from mfpar.planning.simulator import Epoch, simulate
from mfpar.planning.traffic import sent_on_average

EPOCH = 2  # the one that is planned: the first with an exchange before it


@dataclass(frozen=True)
class Line:
    """What a run takes on one number of ranks.

    Attributes
    ----------
    ranks, nodes : int
    needs : Needs
        Bytes of the rank that needs most.
    fits : bool or None
        Whether that is within the bound; None without one.
    sent : int
        Bytes from node to node in an epoch, all nodes together, on average.
    epoch : Epoch
    read : int
        Bytes that a rank reads from the disk in an epoch, at most.
    rate : float
        Updates a second of a worker.
    """

    ranks: int
    nodes: int
    needs: Needs
    fits: bool | None
    sent: int
    epoch: Epoch
    read: int
    rate: float

    @property
    def streams(self) -> str:
        """What comes from the disk while training: "nothing", "ratings", or "ratings, P"."""
        what = ["ratings"] * self.needs.streamed + ["P"] * self.needs.spilled
        return ", ".join(what) or "nothing"

    def as_dict(self) -> dict[str, Any]:
        """The line as plain JSON values."""
        return {
            "ranks": self.ranks,
            "nodes": self.nodes,
            "memory": self.needs.total,
            **{
                name: getattr(self.needs, name)
                for name in ("ratings", "rows", "columns", "buffers", "copies", "safety", "runtime")
            },
            "streamed": self.needs.streamed,
            "spilled": self.needs.spilled,
            "checkpoints_wait": self.needs.waiting,
            "fits": self.fits,
            "bytes_sent": self.sent,
            "bytes_read": self.read,
            "updates_per_second": self.rate,
            "balance": self.epoch.balance,
            "seconds": self.epoch.seconds,
            "seconds_exchange": self.epoch.exchange,
            "seconds_agreeing": self.epoch.agreeing,
            "efficiency": self.epoch.efficiency,
        }


@dataclass(frozen=True)
class Plan:
    """Lines by ascending number of ranks, and what they rest on.

    Attributes
    ----------
    lines : list[Line]
    fewest : int or None
        The fewest ranks whose needs are within the bound; None without one.
    job : Job
    cluster : Cluster
    """

    lines: list[Line]
    fewest: int | None
    job: Job
    cluster: Cluster

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        job = self.job
        return {
            "shape": [int(job.rows.sum()), int(job.cols.sum())],
            "nnz": job.ratings,
            "grid": job.size,
            "rating_bytes": job.rating_bytes,
            "cluster": {name: value for name, value in dataclasses.asdict(self.cluster).items() if name != "rate"},
            "fewest_ranks": self.fewest,
            "plan": [line.as_dict() for line in self.lines],
        }


def usual_ranks(size: int, cluster: Cluster) -> list[int]:
    """Powers of two up to where each worker has two row-blocks left, of a grid of `size` blocks a side."""
    most = max(1, size // (2 * cluster.threads))
    return [1 << power for power in range(most.bit_length())]


def possible_ranks(job: Job, cluster: Cluster, ranks: Collection[int] | None) -> list[int]:
    """Numbers of ranks in ascending order; `usual_ranks` for None.

    Raises
    ------
    ConfigError
        There are none, or more than row-blocks.
    """
    found = sorted(set(ranks or usual_ranks(job.size, cluster)))
    if found[0] < 1:
        raise ConfigError(f"{found[0]} ranks: expected at least 1")
    require_places(job.size, found[-1])
    return found


def make_plan(
    job: Job,
    cluster: Cluster,
    ranks: Collection[int] | None = None,
    *,
    memory: int | None = None,
    spill: bool = False,
    rates: Mapping[int, float] | None = None,
) -> Plan:
    """Plan a job on each number of ranks (`usual_ranks` by default).

    Parameters
    ----------
    memory : bytes that a rank may have
    spill : bool
        P may be kept on the disk.
    rates : by number of ranks
        Updates a second of a worker, where that depends on it; None: the cluster's.

    Raises
    ------
    ConfigError
        There are more ranks than row-blocks, or no number of ranks is enough for `memory`.
    """
    ranks = possible_ranks(job, cluster, ranks)
    fewest = None if memory is None else fewest_ranks(job, cluster, memory, spill)
    rates = rates or dict.fromkeys(ranks, cluster.rate)
    clusters = {count: dataclasses.replace(cluster, rate=rates[count]) for count in ranks}
    return Plan([_line(job, clusters[count], count, memory, spill) for count in ranks], fewest, job, cluster)


def _line(job: Job, cluster: Cluster, ranks: int, memory: int | None, spill: bool) -> Line:
    needs = needs_most(job, cluster, ranks, memory, spill)
    return Line(
        ranks=ranks,
        nodes=-(-ranks // cluster.ranks_per_node),
        needs=needs,
        fits=None if memory is None else needs.total <= memory,
        sent=sent_on_average(job, ranks, cluster),
        epoch=simulate(job, ranks, cluster, EPOCH, streamed=needs.streamed),
        read=_most_ratings(job, ranks) * job.rating_bytes if needs.streamed else 0,
        rate=cluster.rate,
    )


def fewest_ranks(job: Job, cluster: Cluster, memory: int, spill: bool = False) -> int:
    """The fewest ranks each of which needs at most `memory` bytes.

    Raises
    ------
    ConfigError
        There is no such number.
    """
    counts = range(1, job.size + 1)
    found = bisect.bisect_left(
        counts, True, key=lambda ranks: needs_most(job, cluster, ranks, memory, spill).total <= memory
    )
    if found == job.size:
        least = needs_most(job, cluster, job.size, memory, spill).total
        raise ConfigError(
            f"{memory:,} bytes are too few for a rank on any number of ranks: on {job.size}, the most that a grid of "
            f"{job.size} allows, one needs {least:,}; give more memory, fewer factors{'' if spill else ', --spill'}"
            f"{', --replicas 0' if job.replicas else ''} or a larger --grid"
        )
    return counts[found]


def needs_most(job: Job, cluster: Cluster, ranks: int, memory: int | None, spill: bool) -> Needs:
    """What the rank that needs most needs: the one with the most ratings, the most rows, or the first of a node."""
    per_node, ends = cluster.ranks_per_node, _ends(job.size, ranks)
    busiest = {int(np.add.reduceat(amount, ends).argmax()) for amount in (job.strips, job.rows)}
    return max(
        (
            needs_of(
                job.rows, job.cols, job.counts, job.layout, ranks, rank, (leader, min(leader + per_node, ranks)),
                rating_bytes=job.rating_bytes, memory=memory, threads=cluster.threads, spill=spill,
                replicas=job.replicas, checkpoint=job.checkpoint, ways_back=job.ways_back,
            )
            for rank in sorted({0, ranks - 1, *busiest})
            for leader in [rank // per_node * per_node]
        ),
        key=lambda needs: needs.total,
    )  # fmt: skip


def _most_ratings(job: Job, ranks: int) -> int:
    return int(np.add.reduceat(job.strips, _ends(job.size, ranks)).max())


def _ends(size: int, ranks: int) -> list[int]:
    return [span(size, ranks, rank)[0] for rank in range(ranks)]
