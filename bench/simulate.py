"""What more ranks would do, to 4,096 of them: tables and pictures of the model of an epoch (`mfpar.planning`).

Rates of kernels are measured here, on blocks of the shapes and sizes that each matrix and grid has; network, disk and
uneven nodes are assumed (`--network`, `--per-node`, …), and the tables say so. With `--check` the model is first held
against real runs on this machine. docs/scaling.md shows the results.
`python bench/simulate.py [--ranks 1,4,…,4096] [--per-node 64] [--network 100Gb,2us] [--check 8_000_000]`
"""

import argparse
import dataclasses
import functools
import statistics
import tempfile
from pathlib import Path
from typing import Any

from data_parallel import converted, launch
from matrix import SHAPES, Shape
from picture import Lines, Panel
from report import cores, median_and_spread, numbers, report
from runs import alternating, train

from mfpar.blockfile import BlockedFile
from mfpar.cli.quantities import network, rate
from mfpar.config import ModelConfig, TrainConfig
from mfpar.grid import default_grid
from mfpar.planning import calibration
from mfpar.planning.cluster import LOOK, Cluster, Network, Trouble
from mfpar.planning.job import Job
from mfpar.planning.plan import needs_most
from mfpar.planning.simulator import Epoch, simulate
from mfpar.planning.traffic import sent_in_epoch

Rows = list[dict[str, Any]]

MATRICES = {
    "Netflix": SHAPES["netflix"],
    "Hugewiki": SHAPES["hugewiki"],
    "1 B × 100 M": Shape(10**9, 10**8, 10**11),
}
SPREADS = (0.1, 0.3, 1.0)  # of the time of a step
CHECKED = (16, 64, 256)  # blocks a side
EPOCHS = 30  # of a training, for node-hours
WORTH = 0.5  # efficiency down to which more ranks are called worth it
PRETENDED = Network(1e10, 5e-6)  # between pretended nodes: memory of one machine


class Bench:
    """Jobs and rates of kernels for one number of factors, each measured once."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.model, self.loss = ModelConfig(factors=args.factors).resolved()
        self.train = TrainConfig().resolved(self.loss)

    @functools.cache  # noqa: B019 - lives as long as the process
    def job(self, shape: Shape, grid: int) -> Job:
        """The matrix in so many blocks a side."""
        sides = shape.rows, shape.cols
        return Job.of_shape(sides, shape.ratings, self.model, self.train, grid, self.args.skew)

    @functools.cache  # noqa: B019
    def rate(self, shape: Shape, grid: int, held: int) -> float:
        """Updates a second of a thread with so many row-blocks, measured while all cores here do the same."""
        sample = calibration.Sample.of_job(self.job(shape, grid), self.loss, held)
        return calibration.update_rate(sample, self.model, self.loss, self.train, cores(), self.args.seconds)

    def cluster(self, shape: Shape, grid: int, ranks: int) -> Cluster:
        """What is assumed, with a rate that is measured."""
        updates = self.rate(shape, grid, -(-grid // ranks))
        return Cluster(updates, self.args.network, ranks_per_node=self.args.per_node)

    def grids(self, shape: Shape, ranks: int) -> list[int]:
        """Blocks a side to choose from on so many ranks: what `mfpar convert` takes, and a few for each rank."""
        least = default_grid(shape.rows, shape.cols, shape.ratings)
        return sorted(
            {max(least, ranks * times) for times in (1, 2, 4) if ranks * times <= min(shape.rows, shape.cols)}
        )

    def best(self, shape: Shape, ranks: int) -> tuple[int, Epoch]:
        """The number of blocks a side with the shortest epoch, and that."""
        tried = {grid: self.epoch(shape, ranks, grid) for grid in self.grids(shape, ranks)}
        return min(tried.items(), key=lambda pair: pair[1].seconds)

    @functools.cache  # noqa: B019
    def epoch(self, shape: Shape, ranks: int, grid: int) -> Epoch:
        """What the model says."""
        return simulate(self.job(shape, grid), ranks, self.cluster(shape, grid, ranks))


def growth(bench: Bench) -> Rows:
    """A row for each matrix and number of ranks, with the best number of blocks a side."""
    rows = []
    for name, shape in MATRICES.items():
        for ranks in bench.args.ranks:
            grid, epoch = bench.best(shape, ranks)
            job, cluster = bench.job(shape, grid), bench.cluster(shape, grid, ranks)
            nodes = -(-ranks // cluster.ranks_per_node)
            rows.append(
                {
                    "matrix": name,
                    "ranks": ranks,
                    "nodes": nodes,
                    "G": grid,
                    "M updates/s": cluster.rate / 1e6,
                    "GB a rank": needs_most(job, cluster, ranks, None, False).total / 1e9,
                    "GB sent an epoch": sent_in_epoch(job, ranks, cluster, 2) / 1e9,
                    "s an epoch": epoch.seconds,
                    "efficiency": epoch.efficiency,
                    "times one rank": rows[-1]["times one rank"] * rows[-1]["s an epoch"] / epoch.seconds
                    if rows and rows[-1]["matrix"] == name
                    else 1.0,
                    f"hours, {EPOCHS} epochs": EPOCHS * epoch.seconds / 3600,
                    "node-hours": nodes * EPOCHS * epoch.seconds / 3600,
                }
            )
    return rows


def worth(rows: Rows) -> Rows:
    """For each matrix the most ranks that are worth it, and the fastest number."""
    found = []
    for name in MATRICES:
        own = [row for row in rows if row["matrix"] == name]
        good = [row for row in own if row["efficiency"] >= WORTH]
        fastest = min(own, key=lambda row: row["s an epoch"])
        best = {"matrix": name, f"most ranks, efficiency ≥ {WORTH}": max((row["ranks"] for row in good), default="")}
        found.append(best | {"fastest": fastest["ranks"], "its s an epoch": fastest["s an epoch"]})
    return found


def cuts(bench: Bench, ranks: int) -> Rows:
    """A row for each number of blocks a side, on so many ranks."""
    rows = []
    for name, shape in MATRICES.items():
        for times in (1, 2, 4, 8, 16):
            grid = ranks * times
            job, cluster = bench.job(shape, grid), bench.cluster(shape, grid, ranks)
            columns = needs_most(job, cluster, ranks, None, False).columns / 1e6
            row = {"matrix": name, "ranks": ranks, "G": grid, "row-blocks a rank": times}
            row |= {"M updates/s": cluster.rate / 1e6, "MB of Q a rank": columns}
            rows.append(row | {"s an epoch": bench.epoch(shape, ranks, grid).seconds})
    return rows


def troubles(bench: Bench, name: str, ranks: int) -> Rows:
    """What uneven nodes cost, at one number of ranks."""
    shape = MATRICES[name]
    grid, calm = bench.best(shape, ranks)
    job, cluster = bench.job(shape, grid), bench.cluster(shape, grid, ranks)
    step = calm.seconds / grid
    cases = {"none": Trouble()}
    cases |= {f"a node {times:g} times as slow": Trouble(slow=(1, times)) for times in (1.1, 1.5, 2.0)}
    cases |= {f"a pause of {steps} steps on a node": Trouble(pause=(1, grid // 4, steps * step)) for steps in (2, 20)}
    cases |= {f"each step of each rank ± {100 * spread:g} %": Trouble(spread=spread) for spread in SPREADS}
    rows = []
    for trouble, what in cases.items():
        epoch = simulate(job, ranks, dataclasses.replace(cluster, trouble=what))
        row = {"matrix": name, "ranks": ranks, "G": grid, "trouble": trouble, "s an epoch": epoch.seconds}
        row |= {"of an even one": epoch.seconds / calm.seconds, "busiest rank, s": float(epoch.work.max())}
        rows.append(row | {"in lockstep, s": epoch.lockstep})
    return rows


def ferries(bench: Bench, name: str, ranks: int) -> Rows:
    """What more frequent looks and more room of the ferry would be worth."""
    shape = MATRICES[name]
    rows = []
    for look in (LOOK, LOOK / 10, LOOK / 100):
        for room in (2, 4, 16):
            tried = {}
            for grid in bench.grids(shape, ranks):
                cluster = dataclasses.replace(bench.cluster(shape, grid, ranks), look=look, room=room)
                tried[grid] = simulate(bench.job(shape, grid), ranks, cluster)
            grid, epoch = min(tried.items(), key=lambda pair: pair[1].seconds)
            row = {"matrix": name, "ranks": ranks, "µs until noticed": 1e6 * look, "room": room, "best G": grid}
            rows.append(row | {"s an epoch": epoch.seconds, "efficiency": epoch.efficiency})
    return rows


def checkpoints(bench: Bench, grown: Rows) -> Rows:
    """What it costs that all nodes write their part of the model, at a stated speed, every so many seconds."""
    rows = []
    for name, shape in MATRICES.items():
        row = [one for one in grown if one["matrix"] == name][-1]
        floats = (shape.rows + shape.cols) * (bench.job(shape, row["G"]).layout.floats(1023) / 1024)
        seconds = 4 * floats / row["nodes"] / bench.args.write
        share = seconds / (seconds + bench.args.every)
        rows.append(
            {
                "matrix": name,
                "nodes": row["nodes"],
                "model, GB": 4 * floats / 1e9,
                "s a checkpoint": seconds,
                f"of the time, every {bench.args.every:g} s": share,
            }
        )
    return rows


def check(bench: Bench, folder: Path) -> Rows:
    """The model against real runs here, in turn: one rank, two ranks of a node, two pretended nodes; several grids."""
    args = bench.args
    contestants = {}
    for grid in CHECKED:
        file = converted(folder / f"{grid}.h5", SHAPES["ml-10m"].with_ratings(args.check), grid)
        for name, ranks, per_node in (("1 rank", 1, 1), ("2 ranks", 2, 2), ("2 nodes", 2, 1)):
            contestants[name, grid] = functools.partial(both, bench, file, ranks, per_node)
            contestants[name, grid]()  # compiles
    rows = []
    for (name, grid), pairs in alternating(contestants, args.rounds).items():
        off, spread = median_and_spread([100 * (predicted / real - 1) for predicted, real in pairs])
        predicted, real = (median_and_spread([pair[at] for pair in pairs])[0] for at in (0, 1))
        row = {"run": name, "ratings": args.check, "G": grid, "predicted s": predicted, "real s": real}
        rows.append(row | {"off by %": off, "range": spread})
    return rows


def both(bench: Bench, file: Path, ranks: int, per_node: int) -> tuple[float, float]:
    """Predicted and real seconds of an epoch, one after the other."""
    factors, settings = bench.args.factors, {"epochs": 8}
    with BlockedFile(file) as opened:
        job = Job.of_file(opened, bench.model, bench.train)
        sample = calibration.Sample.of_file(opened, -(-job.size // ranks), job.layout)
    workers = min(ranks, cores())
    updates = calibration.update_rate(sample, bench.model, bench.loss, bench.train, workers, bench.args.seconds)
    epoch = simulate(job, ranks, Cluster(updates, PRETENDED, ranks_per_node=per_node))
    if per_node == ranks:
        real = train(file, factors, ranks, **settings).seconds
    else:
        run = launch(ranks, file=str(file), factors=factors, settings=settings, system="mfpar")
        real = statistics.median(seconds for seconds, _ in run["curve"][1:])
    return epoch.seconds - epoch.agreeing, real  # a run's report ends with the last visit


def panels_of(grown: Rows, cut: Rows, uneven: Rows) -> list[Panel]:
    """Time and efficiency over ranks, time over blocks a side, what unevenness costs."""
    time: dict[str, Any] = {}
    share: dict[str, Any] = {}
    for name in MATRICES:
        own = [row for row in grown if row["matrix"] == name]
        x, seconds = [row["ranks"] for row in own], [row["s an epoch"] for row in own]
        time[name], share[name] = (x, seconds), (x, [row["efficiency"] for row in own])
        time[f"({name}, ideal)"] = x, [seconds[0] * x[0] / one for one in x]
    by_grid = {
        name: tuple([row[column] for row in cut if row["matrix"] == name] for column in ("G", "s an epoch"))
        for name in MATRICES
    }
    noisy = [row for row in uneven if "±" in row["trouble"]]
    spreads = list(SPREADS)
    costs = {
        "ring": (spreads, [row["s an epoch"] for row in noisy]),
        "lockstep": (spreads, [row["in lockstep, s"] for row in noisy]),
        "(busiest rank alone)": (spreads, [row["busiest rank, s"] for row in noisy]),
    }
    return [
        Lines("model of an epoch", "ranks", "s an epoch", time, "xy"),
        Lines("model of an epoch", "ranks", "efficiency", share, "x"),
        Lines(f"{cut[0]['ranks']} ranks", "G, blocks a side", "s an epoch", by_grid, "xy"),
        Lines(f"{uneven[0]['matrix']}, {uneven[0]['ranks']} ranks", "deviation of a step", "s an epoch", costs, "x"),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=numbers, default=[4**power for power in range(7)])
    parser.add_argument("--per-node", type=int, default=64, help="ranks, and cores, of a node")
    parser.add_argument("--factors", type=int, default=32)
    parser.add_argument("--skew", type=float, default=0.3, help="deviation of the ratings of a block, over their mean")
    parser.add_argument("--network", type=network, default="100Gb,2us")
    parser.add_argument("--write", type=rate, default="1G", help="bytes a second that a node writes of a checkpoint")
    parser.add_argument("--every", type=float, default=600.0, help="seconds from checkpoint to checkpoint")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement of a kernel")
    parser.add_argument("--middle", type=int, default=1024, help="ranks for the tables of one number of them")
    parser.add_argument("--check", type=int, default=0, metavar="N", help="hold the model against runs on N ratings")
    parser.add_argument("--rounds", type=int, default=5, help="of that")
    parsed = parser.parse_args()
    measured_here = Bench(parsed)
    tables: dict[str, Rows] = {}
    if parsed.check:
        with tempfile.TemporaryDirectory(prefix="mfpar-bench-") as scratch:
            tables["against real runs"] = check(measured_here, Path(scratch))
    tables["ranks"] = growth(measured_here)
    tables["how many are worth it"] = worth(tables["ranks"])
    tables["blocks a side"] = cuts(measured_here, parsed.middle)
    tables["uneven nodes"] = troubles(measured_here, "1 B × 100 M", parsed.middle)
    tables["the ferry"] = ferries(measured_here, "1 B × 100 M", parsed.ranks[-1])
    tables["checkpoints"] = checkpoints(measured_here, tables["ranks"])
    link = parsed.network
    title = (
        f"model of an epoch: k = {parsed.factors}, SGD with biases; assumed: {parsed.per_node} ranks a node, "
        f"{link.bandwidth * 8e-9:g} Gb/s, {link.latency * 1e6:g} µs; measured: kernels"
    )
    panels = panels_of(tables["ranks"], tables["blocks a side"], tables["uneven nodes"])
    report("simulate", title, tables, panels)
