"""`mfpar predict`, `mfpar recommend`, `mfpar export`: what a model is used for."""

import argparse
import contextlib
import csv
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from mfpar.errors import ConfigError
from mfpar.parallel import launch
from mfpar.settings import size


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verbs."""
    predict = verbs.add_parser("predict", help="predict the ratings of pairs of user and item")
    predict.add_argument("model", metavar="MODEL", help="made by mfpar train")
    predict.add_argument("pairs", metavar="PAIRS", help="a source with a column of users and one of items")
    predict.add_argument("-o", "--output", metavar="OUT.csv", help="default: standard output")
    predict.add_argument("--columns", metavar="USER,ITEM", type=lambda text: text.split(","))
    predict.add_argument("--loss", metavar="MODULE:NAME", help="the model's, where it is one of your own")
    predict.add_argument(
        "--memory", type=size, metavar="SIZE", help="bound of the process (512M, 2G; default: half of all)"
    )
    predict.add_argument("--force", action="store_true", help="overwrite the output")
    predict.set_defaults(run=run_predict)
    recommend = verbs.add_parser("recommend", help="find the items that users will like best", description=_TEXT)
    recommend.add_argument("model", metavar="MODEL", help="made by mfpar train")
    who = recommend.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", action="append", metavar="ID", help="may be given several times")
    who.add_argument("--all", action="store_true", dest="collective", help="every user of the model; needs -o")
    recommend.add_argument("--top", type=int, default=10, metavar="N", help="how many items (default: 10)")
    recommend.add_argument("--seen", metavar="FILE.h5", help="leave out what the users have rated in this blocked file")
    recommend.add_argument(
        "--names", metavar="FILE:ID,NAME", help="show the names of items found in two columns of this source"
    )
    recommend.add_argument("--loss", metavar="MODULE:NAME", help="the model's, where it is one of your own")
    recommend.add_argument("--json", action="store_true", help="print JSON")
    recommend.add_argument("-o", "--output", metavar="TOP.parquet", help="with --all: the file to write, or TOP.csv")
    recommend.add_argument(
        "--memory", type=size, metavar="SIZE", help="with --all: bound of each rank (200M, 2G; default: 512M)"
    )
    recommend.add_argument("--force", action="store_true", help="overwrite the output")
    recommend.set_defaults(run=run_recommend)
    export = verbs.add_parser("export", help="write the factors as a NumPy .npz file")
    export.add_argument("model", metavar="MODEL", help="made by mfpar train")
    export.add_argument("-o", "--output", required=True, metavar="FACTORS.npz")
    export.add_argument("--force", action="store_true", help="overwrite the output")
    export.set_defaults(run=run_export)


_TEXT = """Prints the best items of some users, or with --all writes those of every user into one file: run as it is, or
under mpirun or srun, to the same file on any number of ranks."""


def run_predict(args: argparse.Namespace) -> None:
    """Run `mfpar predict`."""
    from mfpar.model.opening import open_model
    from mfpar.ratings.reading import read_chunks

    model = open_model(args.model, args.loss)
    count = unknown = 0
    with _output(args.output, args.force, (args.model, args.pairs)) as out:
        writer = csv.writer(out, lineterminator="\n")
        for users, items, _ in read_chunks(args.pairs, args.columns, need_rating=False, memory=args.memory):
            if not count:
                writer.writerow(("user", "item", "prediction"))
            predictions, strange = model.predict_known(users, items, None if args.memory is None else args.memory // 8)
            texts = (f"{value:.6g}" for value in predictions)
            writer.writerows(zip(users.tolist(), items.tolist(), texts, strict=True))
            count, unknown = count + len(users), unknown + int(strange.sum())
    print(f"{count:,} predictions, {unknown:,} with an unknown user or item", file=sys.stderr)


def run_recommend(args: argparse.Namespace) -> None:
    """Run `mfpar recommend`. With --all collective under a launcher."""
    from mfpar.model.opening import open_model

    if args.collective:
        _recommend_all(args)
        return
    if args.output or args.memory is not None:
        raise ConfigError("-o and --memory go with --all: what is found for some users is printed")
    names = _names(args.names) if args.names else {}
    model = open_model(args.model, args.loss)
    items, scores = model.recommend(args.user, args.top, args.seen)
    rows = [
        {"user": user, "place": place, "item": item, "score": score}
        | ({"name": names.get(str(item))} if args.names else {})
        for user, its_items, its_scores in zip(args.user, items.tolist(), scores.tolist(), strict=True)
        for place, (item, score) in enumerate(zip(its_items, its_scores, strict=True), 1)
        if not math.isnan(score)  # a user with fewer items left than asked for
    ]
    if args.json:
        print(json.dumps(rows))
    else:
        _print_rows(rows)


def _recommend_all(args: argparse.Namespace) -> None:
    """Write the recommendations of every user. Collective."""
    from mfpar.model.opening import open_model

    if not args.output:
        raise ConfigError("--all needs -o TOP.parquet (or .csv), the file to write")
    if args.names or args.json:
        raise ConfigError("--names and --json go with --user: --all writes ids, in the format of the output's name")
    comm = launch.world()
    with comm.guard():
        model = open_model(args.model, args.loss)
        options = {"memory": args.memory, "force": args.force, "comm": comm}
        count = model.recommend_all(args.output, args.top, args.seen, **options)
    if comm.rank == 0:
        print(f"{args.output}: {count:,} recommendations for {model.shape[0]:,} users")


def run_export(args: argparse.Namespace) -> None:
    """Run `mfpar export`."""
    from mfpar.model.export import export
    from mfpar.model.opening import open_model

    export(open_model(args.model), args.output, force=args.force)
    print(f"{args.output}: written")


@contextlib.contextmanager
def _output(path: str | None, force: bool, inputs: tuple[str, ...]) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    from mfpar.atomic import refuse_existing, replacing

    refuse_existing(Path(path), force, map(Path, inputs))
    with replacing(Path(path)) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        yield file


def _names(argument: str) -> dict[str, str]:
    """Item id to name, from "FILE:ID,NAME"."""
    from mfpar.ratings.reading import read_chunks

    path, colon, columns = argument.rpartition(":")
    if not colon or columns.count(",") != 1:
        raise ConfigError(f"--names {argument}: expected FILE:ID,NAME with the names of two columns")
    chunks = read_chunks(path, columns.split(","), need_rating=False)
    return {str(item): str(name) for items, names, _ in chunks for item, name in zip(items, names, strict=True)}


def _print_rows(rows: list[dict[str, Any]]) -> None:
    """A table on a terminal, tab-separated lines elsewhere."""
    columns = list(rows[0]) if rows else []
    lines = [
        ["" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows
    ]
    if not sys.stdout.isatty():
        for line in (columns, *lines):
            print("\t".join(line))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns)
    for line in lines:
        table.add_row(*map(escape, line))
    Console().print(table)
