"""`mfpar tune`: chooses settings, serially or on the ranks of mpirun, and writes them for `mfpar train --config`."""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from mfpar.cli.options import SETTINGS
from mfpar.parallel import launch

Event = dict[str, Any]

OWN = ("validation_fraction", "folds", "fold", "patience", "seed")  # fields that are options of the search itself
SINGLE = ("epochs", "threads")
ROOM = 7  # lines of a terminal that a table needs beside its rows
FLAGS = {"true": True, "yes": True, "false": False, "no": False}


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser("tune", help="choose settings by what they do for ratings held out", description=_TEXT)
    parser.add_argument("file", metavar="FILE.h5", help="made by mfpar convert")
    parser.add_argument(
        "-o",
        "--output",
        default="best.toml",
        metavar="BEST.toml",
        help="the settings to write, for mfpar train --config (default: best.toml)",
    )
    held = parser.add_mutually_exclusive_group()
    held.add_argument("--folds", type=int, metavar="K", help="measure by K-fold cross-validation")
    held.add_argument(
        "--validation-fraction", type=float, metavar="F", help="measure on this share of the ratings (default: 0.1)"
    )
    parser.add_argument(
        "--trials", type=int, metavar="N", help="how many trials (default: 20, or the whole grid); of a small space all"
    )
    parser.add_argument(
        "--search", choices=("bayesian", "random", "grid"), default="bayesian",
        help="how to choose what to try (default: bayesian, by what came out before)",
    )  # fmt: skip
    parser.add_argument(
        "--parallel", type=int, default=1, metavar="P",
        help="trials to run side by side, on groups of the ranks (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--patience", type=int, default=5, metavar="N",
        help="a trial ends after N epochs without a better measure (default: 5)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="SEED", help="of search and training (default: 0)")
    parser.add_argument(
        "--study", metavar="FILE",
        help="journal of finished trials, with which a search goes on (default: BEST.toml.journal)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end, and nothing before")
    parser.add_argument("--force", action="store_true", help="overwrite the output, and start the study anew")
    for title, settings in SETTINGS.items():
        _add_space(parser.add_argument_group("run" if title == "train" else title), settings)
    parser.set_defaults(run=run, collective=True)


_TEXT = """Chooses settings of mfpar train: trains with some, measures on training ratings held out, and tries others.
A setting is a value for all trials, a choice A,B,C, or, for numbers, a range LOW:HIGH; without any choice or range,
learning rate and regularisation are searched. Started again, it goes on where it was stopped. Under mpirun, trials run
side by side with --parallel; what is found does not depend on the number of ranks."""


def _add_space(group: argparse._ArgumentGroup, settings: type[Any]) -> None:
    """An option for each setting that trials may have."""
    for field in dataclasses.fields(settings):
        if field.name in OWN:
            continue
        name, text = "--" + field.name.replace("_", "-"), field.metadata["help"]
        if field.name in SINGLE:
            most = "the most of a trial: " if field.name == "epochs" else ""
            group.add_argument(
                name, type=int, default=argparse.SUPPRESS, metavar="N", help=f"{most}{text} (default: {field.default})"
            )
        else:
            # What argparse says of a value that is none needs the function's name.
            parse = _parser(field)
            parse.__name__ = "value"
            group.add_argument(name, type=parse, default=argparse.SUPPRESS, metavar="SPACE", help=text)


def _parser(field: "dataclasses.Field[Any]") -> Callable[[str], Any]:
    return lambda text: parse_space(field, text)


def parse_space(field: "dataclasses.Field[Any]", text: str) -> Any:
    """What `mfpar.tune` takes for a setting: a value, a list of them, or a tuple of the ends of a range.

    >>> from mfpar.config import TrainConfig
    >>> parse_space(TrainConfig.__dataclass_fields__["lr"], "0.005:0.05")
    (0.005, 0.05)

    Raises
    ------
    argparse.ArgumentTypeError
        It is none of these.
    """
    parse = field.metadata["parse"]
    try:
        if parse is bool:
            values = [FLAGS[part.strip().lower()] for part in text.split(",")]
        elif parse is not str and ":" in text:
            low, high = text.split(":")
            return parse(low), parse(high)
        else:
            values = [parse(part.strip()) for part in text.split(",")]
    except (KeyError, ValueError) as error:
        ranges = "" if parse in (bool, str) else ", or a range LOW:HIGH"
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected {field.metadata['expected']}, or several with commas{ranges}"
        ) from error
    return values if len(values) > 1 else values[0]


def run(args: argparse.Namespace) -> None:
    """Run the verb. Collective under a launcher."""
    from mfpar import api
    from mfpar.api.trials import Search

    fields = [
        field.name for settings in SETTINGS.values() for field in dataclasses.fields(settings) if field.name not in OWN
    ]
    space = {name: getattr(args, name) for name in fields if hasattr(args, name)}
    names = [field.name for field in dataclasses.fields(Search)]
    plan = Search(**{name: getattr(args, name) for name in names})
    comm = launch.world()
    quiet = args.json or comm.rank > 0
    with _display(quiet) as show, comm.guard():
        result = api.tune_file(args.file, args.output, space, plan, comm, show, study=args.study, force=args.force)
        if comm.rank == 0 and args.json:
            print(json.dumps(result.as_dict() | {"output": args.output}), flush=True)
        elif comm.rank == 0:
            show({"kind": "best", **result.best.as_dict(), "output": args.output})


@contextlib.contextmanager
def _display(quiet: bool) -> Iterator[Callable[[Event], None]]:
    """Yield a function that shows the events of a search: a table on a terminal, else columns with tabs between."""
    if quiet:
        yield lambda event: None
    elif sys.stdout.isatty() and not launch.expected_size()[1]:
        with _table() as show:
            yield show
    else:
        yield _Columns().show


def _cells(trial: Event, searched: list[str]) -> list[str]:
    """Number, value, settings, epochs and seconds of a trial."""
    failed = trial["value"] is None
    settings = [_text(trial["settings"][name]) for name in searched]
    value, epochs = ("failed", "") if failed else (f"{trial['value']:.6f}", str(trial["epochs"]))
    return [str(trial["number"]), value, *settings, epochs, f"{trial['seconds']:.1f}"]


def _text(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _warn(trial: Event) -> str:
    return f"trial {trial['number']} failed: {trial['message']}"


class _Columns:
    """A line per trial; the last one is the best again."""

    def __init__(self) -> None:
        self._searched: list[str] = []

    def show(self, event: Event) -> None:
        if event["kind"] == "search":
            self._searched = event["searched"]
            self._line(["trial", event["measure"], *self._searched, "epochs", "seconds"])
        elif event["kind"] == "trial":
            self._line(_cells(event, self._searched))
            if event["message"]:
                print(f"mfpar: {_warn(event)}", file=sys.stderr, flush=True)
        elif event["kind"] == "best":
            self._line(["best", *_cells(event, self._searched)[1:]])

    def _line(self, cells: list[str]) -> None:
        print("\t".join(cells), flush=True)


@contextlib.contextmanager
def _table() -> Iterator[Callable[[Event], None]]:
    """The last trials while the search runs, as many as the terminal has room for, and all of them at its end."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    console = Console(highlight=False)
    live = Live(console=console, auto_refresh=False, transient=True)
    head: list[str] = []
    rows: list[tuple[list[str], str | None]] = []
    search: Event = {"searched": []}

    def table(last: int, caption: str | None = None) -> Table:
        made = Table(*head, caption=caption)
        for column in made.columns:
            column.justify = "right"
        for cells, style in rows[-last:]:
            made.add_row(*cells, style=style)
        return made

    def show(event: Event) -> None:
        caption = None
        if event["kind"] == "search":
            search.update(event)
            head.extend(["trial", event["measure"], *event["searched"], "epochs", "seconds"])
            live.start()
        elif event["kind"] == "epoch":
            fold = f", fold {event['fold']}" if event["fold"] else ""
            caption = (
                f"trial {event['trial']} of {search['trials']}{fold}, epoch {event['epoch']}: {event['value']:.4f}"
            )
        elif event["kind"] == "trial":
            rows.append((_cells(event, search["searched"]), "dim" if event["value"] is None else None))
            if event["message"]:
                console.print(_warn(event), style="yellow")
        else:
            rows.append((["best", *_cells(event, search["searched"])[1:]], "bold"))
        live.update(table(max(console.height - ROOM, 1), caption), refresh=True)

    try:
        yield show
    finally:
        live.stop()
        if rows:
            console.print(table(len(rows)))
