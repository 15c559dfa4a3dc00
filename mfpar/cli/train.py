"""`mfpar train`: a blocked file to a model, serially, as a rank under mpirun, or on ranks that it starts itself."""

import argparse
from typing import Any

from mfpar.cli.display import display
from mfpar.cli.logs import debug_log
from mfpar.cli.options import TABLES, add_settings, read_config, settings_of
from mfpar.cli.stopping import stopping
from mfpar.config import ModelConfig, SafetyConfig, TrainConfig
from mfpar.errors import ConfigError
from mfpar.parallel import launch
from mfpar.parallel.watch import TIMES
from mfpar.supervise import heartbeat


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser("train", help="factorize a blocked file", description=_TEXT)
    parser.add_argument("file", metavar="FILE.h5", help="made by mfpar convert")
    parser.add_argument("-o", "--output", required=True, metavar="MODEL.h5", help="the model to write")
    add_settings(parser.add_argument_group("model"), ModelConfig)
    add_settings(parser.add_argument_group("run"), TrainConfig)
    add_settings(parser.add_argument_group("safety"), SafetyConfig)
    parser.add_argument("--config", metavar="FILE.toml", help="settings, as `mfpar tune` writes them; options win")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--ranks", type=int, metavar="N", help="start N ranks on this machine")
    where.add_argument("--hosts", metavar="A:2,B:2", help="start ranks on hosts A and B by ssh, so many on each")
    parser.add_argument(
        "--restarts", type=int, metavar="R", default=0,
        help="with --ranks or --hosts: start at most R times again, on the hosts that answer, what ranks that die or "
        "hang leave undone (default: 0)",
    )  # fmt: skip
    parser.add_argument("--log", metavar="RUN.jsonl", help="write a line of JSON at the start and after every epoch")
    parser.add_argument("--debug-log", metavar="DIR", help="write a log of each rank, for debugging, into this folder")
    parser.add_argument(
        "--trace", metavar="TRACE.json", help="write what each rank and thread did when, for Perfetto (ui.perfetto.dev)"
    )
    parser.add_argument(
        "--progress", choices=("auto", "bar", "plain", "json", "none"), default="auto",
        help="how to show progress (default: a bar on a terminal, plain lines elsewhere)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    parser.set_defaults(run=run, collective=True)


_TEXT = """Factorizes a blocked file and saves the model. Run it as it is, under mpirun or srun, or with --ranks N: the
factors are the same, bit for bit, on any number of ranks and threads."""


def run(args: argparse.Namespace) -> None:
    """Run the verb. Collective under a launcher."""
    config = read_config(args.config)
    model, train, safety = (settings_of(args, kind, config[name]) for name, kind in TABLES.items())
    options: dict[str, Any] = {"log": args.log, "trace": args.trace, "force": args.force}
    if args.ranks is not None or args.hosts is not None:
        from mfpar import api

        where = {"hosts": args.hosts, "restarts": args.restarts, "safety": safety, "debug_log": args.debug_log}
        with display(args.progress, train.epochs) as show:
            api.train_on_ranks(args.file, args.output, model, train, args.ranks, show, **where, **options)
        return
    if args.restarts:
        raise ConfigError(f"restarts={args.restarts}: only of ranks that it has started; give --ranks or --hosts")
    heartbeat.start()
    # A request is noted from here on: an exception may get lost in what Numba has LLVM call while kernels are loaded.
    with stopping(safety.checkpoint is not None) as stop:
        from mfpar import api

        comm = launch.world(TIMES * safety.hang_timeout)
        # On any rank, as the first one may change; but only the first one is told of events.
        with debug_log(args.debug_log, launch.launched_rank()), display(args.progress, train.epochs) as show:
            api.train_enduringly(args.file, args.output, model, train, comm, show, safety=safety, stop=stop, **options)
