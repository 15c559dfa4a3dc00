"""`mfpar plan`: what a run will take, in memory, traffic and time, before it is started."""

import argparse
import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mfpar.cli import quantities
from mfpar.cli.options import add_settings, read_config, settings_of
from mfpar.config import ModelConfig, SafetyConfig, TrainConfig
from mfpar.errors import ConfigError
from mfpar.parallel import launch
from mfpar.parallel.comm import Communicator
from mfpar.settings import size

if TYPE_CHECKING:
    from mfpar.planning.cluster import Network
    from mfpar.planning.plan import Line, Plan

OF_RUN = ("optimizer", "threads", "seed", "epochs")  # settings of a run that a plan depends on

_TEXT = """Says for each number of ranks what one of them needs in memory, what nodes send each other, and how long an
epoch will take, by a model of every step (docs/scaling.md). Plans for a blocked file, or for what --shape and --nnz
describe. Under mpirun, where the job is to run, all ranks try their kernels at the same time, and the network between
the first two nodes is measured."""


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser("plan", help="say what a run will take, before it is started", description=_TEXT)
    parser.add_argument("file", metavar="FILE.h5", nargs="?", help="made by mfpar convert")
    shape = parser.add_argument_group("without a file")
    shape.add_argument("--shape", type=quantities.shape, metavar="ROWSxCOLS", help="rows and columns, as 1e9x1e8")
    shape.add_argument("--nnz", type=quantities.count, metavar="N", help="training ratings, as 1e11")
    shape.add_argument(
        "--grid", type=quantities.count, metavar="G", help="blocks a side (default: as convert, enough for ranks)"
    )
    shape.add_argument(
        "--skew", type=quantities.deviation, default=0.0, metavar="S",
        help="standard deviation of the ratings of a block, over their mean (default: 0)",
    )  # fmt: skip
    place = parser.add_argument_group("place")
    place.add_argument(
        "--ranks", type=quantities.counts, metavar="N,…", help="numbers of ranks (default: powers of two)"
    )
    place.add_argument(
        "--ranks-per-node", type=quantities.count, default=1, metavar="R", help="that share memory (default: 1)"
    )
    place.add_argument("--memory", type=size, metavar="SIZE", help="bound of each rank (512M, 2G)")
    place.add_argument(
        "--spill", dest="spills", action="store_true", help="P may be kept on the disk where memory is too small"
    )
    place.add_argument(
        "--rate", type=quantities.rate_or_auto, metavar="UPDATES_PER_S",
        help="updates a second of a thread; auto, the default, measures it here, in two seconds, for nodes like this",
    )  # fmt: skip
    place.add_argument(
        "--network", type=quantities.network, metavar="BANDWIDTH,LATENCY",
        help="between nodes, as 100Gb,2us (default: measured under mpirun, else 10Gb,50us)",
    )  # fmt: skip
    place.add_argument(
        "--disk", type=quantities.rate, metavar="BYTES_PER_S",
        help="that a node reads, as 2e9 or 500M (default: measured on FILE, else 500M)",
    )  # fmt: skip
    add_settings(parser.add_argument_group("model"), ModelConfig)
    add_settings(parser.add_argument_group("run"), TrainConfig, OF_RUN)
    safety = parser.add_argument_group("safety")
    add_settings(safety, SafetyConfig, ("replicas",))
    safety.add_argument("--checkpoint", dest="checkpoints", action="store_true", help="there are checkpoints")
    parser.add_argument("--config", metavar="FILE.toml", help="settings, as `mfpar tune` writes them; options win")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run, collective=True)


def run(args: argparse.Namespace) -> None:
    """Run the verb. Collective under a launcher."""
    from mfpar.planning import calibration

    comm = launch.world()
    with comm.guard():
        network = args.network or calibration.network_of(comm)
        plan, notes = _plan(args, network, comm)
        if comm.rank > 0:
            return
        if args.json:
            print(json.dumps(plan.as_dict() | {"notes": notes}))
        elif sys.stdout.isatty() and not launch.expected_size()[1]:
            _show_table(plan, notes)
        else:
            _show_columns(plan, notes)


def _plan(args: argparse.Namespace, network: "Network | None", comm: Communicator) -> tuple["Plan", list[str]]:
    """The plan, and in words what it rests on. Collective."""
    from mfpar.blockfile import BlockedFile
    from mfpar.planning import calibration
    from mfpar.planning.cluster import DISK, ETHERNET, Cluster
    from mfpar.planning.job import Job
    from mfpar.planning.plan import make_plan, possible_ranks

    config = read_config(args.config)
    model, loss = settings_of(args, ModelConfig, config["model"]).resolved()
    train = settings_of(args, TrainConfig, config["train"]).resolved(loss)
    safety = settings_of(args, SafetyConfig, config["safety"])
    if safety.replicas and args.spills:
        raise ConfigError("--replicas 1 and --spill: replicas are of what lies in memory; give one of them")
    file, threads, per_node = _source(args), train.threads, args.ranks_per_node
    with BlockedFile(file) if file else contextlib.nullcontext() as opened:
        if opened:
            job = Job.of_file(opened, model, train)
        else:
            workers = max(args.ranks or [1]) * threads
            job = Job.of_shape(args.shape, args.nnz, model, train, args.grid, args.skew, workers)
        checkpoint = args.checkpoints or safety.checkpoint is not None
        job = dataclasses.replace(job, replicas=safety.replicas, checkpoint=checkpoint)
        disk = args.disk or (calibration.disk_rate(file) if file else DISK)
        cluster = Cluster(args.rate or 1.0, network or ETHERNET, disk, threads, per_node)
        ranks = possible_ranks(job, cluster, args.ranks)
        rates = dict.fromkeys(ranks, args.rate)
        if args.rate is None:
            rates = calibration.rates_by_ranks(job, opened, model, loss, train, cluster, ranks, comm)
    plan = make_plan(job, cluster, ranks, memory=args.memory, spill=args.spills, rates=rates)
    by = {
        "rate": "given" if args.rate else "measured",
        "network": "given" if args.network else "measured" if network else "assumed",
        "disk": "given" if args.disk else "measured" if file else "assumed",
    }
    return plan, _notes(plan, by)


def _source(args: argparse.Namespace) -> Path | None:
    """The file to plan for; None for a description, which is complete.

    Raises
    ------
    ConfigError
        It is neither the one nor the other.
    """
    described = {name: getattr(args, name) for name in ("shape", "nnz", "grid", "skew")}
    given = [f"--{name}" for name, value in described.items() if value]
    if args.file:
        if given:
            raise ConfigError(f"{args.file}: says itself what {given[0]} describes: give a file or --shape and --nnz")
        return Path(args.file)
    if args.shape is None or args.nnz is None:
        raise ConfigError("nothing to plan for: give a blocked file, or --shape ROWSxCOLS and --nnz N")
    return None


def _notes(plan: "Plan", by: dict[str, str]) -> list[str]:
    """What a plan rests on, a line for each thing."""
    job, cluster = plan.job, plan.cluster
    rates = sorted({f"{line.rate / 1e6:.3g}": line.rate for line in plan.lines}.items(), key=lambda pair: pair[1])
    shown = rates[0][0] if len(rates) == 1 else f"{rates[0][0]} to {rates[-1][0]}"
    rows, cols = int(job.rows.sum()), int(job.cols.sum())
    bits, latency = cluster.network.bandwidth * 8 / 1e9, cluster.network.latency * 1e6
    model = f"{job.layout.factors} factors{' + biases' * job.layout.biases}"
    workers = f"{cluster.threads} a rank, {cluster.ranks_per_node} ranks a node"
    disk = f"disk {cluster.disk / 1e6:.4g} MB/s ({by['disk']})"
    return [
        f"{job.ratings:,} ratings of {rows:,} × {cols:,}, grid {job.size}, {model}",
        f"{shown} M updates/s of a thread ({by['rate']}), {workers}",
        f"network {bits:.3g} Gb/s, {latency:.3g} µs ({by['network']}); {disk}",
    ]


def _fewest(plan: "Plan") -> str | None:
    return None if plan.fewest is None else f"fewest ranks within the memory: {plan.fewest}"


def _columns(line: "Line") -> dict[str, int | float | str]:
    """Figures of a line by column, in bytes and seconds."""
    needs = line.needs
    found: dict[str, int | float | str] = {
        "ranks": line.ranks,
        "nodes": line.nodes,
        "memory": needs.total,
        "ratings": needs.ratings,
        "P": needs.rows,
        "Q": needs.columns,
        "buffers": needs.buffers,
        "copies": needs.copies,
        "safety": needs.safety,
        "runtime": needs.runtime,
        "streams": line.streams,
        "sent": line.sent,
        "M updates/s": line.rate / 1e6,
        "balance": line.epoch.balance,
        "s/epoch": line.epoch.seconds,
        "efficiency": line.epoch.efficiency,
    }
    if line.fits is None:
        return found
    return found | {"fits": "no" if not line.fits else "yes, checkpoints wait" if needs.waiting else "yes"}


BYTES = ("memory", "ratings", "P", "Q", "buffers", "copies", "safety", "runtime", "sent")


def _show_columns(plan: "Plan", notes: list[str]) -> None:
    """Columns with tabs between, all in bytes and seconds; before them what they rest on."""
    for note in [*notes, *filter(None, [_fewest(plan)])]:
        print(f"# {note}")
    rows = [_columns(line) for line in plan.lines]
    print("\t".join(rows[0]))
    for row in rows:
        print("\t".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))


def _show_table(plan: "Plan", notes: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = [_columns(line) for line in plan.lines]
    table = Table(*rows[0], title="memory of a rank, bytes sent by all nodes in an epoch", caption=_fewest(plan))
    for column in table.columns:
        column.justify = "right"
    for row in rows:
        cells = [
            quantities.in_units(value) if name in BYTES and isinstance(value, int)
            else f"{value:.3g}" if isinstance(value, float) else str(value)
            for name, value in row.items()
        ]  # fmt: skip
        table.add_row(*cells, style="dim" if row.get("fits") == "no" else None)
    console = Console(highlight=False)
    for note in notes:
        console.print(note)
    console.print(table)
