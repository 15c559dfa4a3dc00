"""Progress of a run: a live bar on a terminal, plain lines in a batch log, lines of JSON for programs."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from mfpar.parallel.launch import expected_size

Event = dict[str, Any]


@contextlib.contextmanager
def display(kind: str, epochs: int) -> Iterator[Callable[[Event], None]]:
    """Yield a function that shows the events of a run.

    Parameters
    ----------
    kind : "auto", "bar", "plain", "json" or "none"
        Auto is the bar on a terminal, plain lines elsewhere and under a launcher (Open MPI's gives its ranks a terminal
        that it forwards in pieces).
    epochs : int
        How many the run will have.
    """
    if kind == "auto":
        launcher = expected_size()[1]
        kind = "bar" if sys.stdout.isatty() and not launcher else "plain"
    if kind == "bar":
        with _bar(epochs) as show:
            yield show
    elif kind == "plain":
        yield _Plain(epochs).show
    elif kind == "json":
        yield print_event
    else:
        yield lambda event: None


def print_event(event: Event) -> None:
    """Print an event as a line of JSON."""
    print(json.dumps(event), flush=True)


def describe(run: Event) -> str:
    """One line about a run that starts."""
    model, train = run["model"], run["train"]
    ranks = f"{run['ranks']} rank{'s' * (run['ranks'] > 1)} × {train['threads']} thread{'s' * (train['threads'] > 1)}"
    return (
        f"{run['ratings']:,} ratings of {run['rows']:,} × {run['cols']:,}, grid {run['grid']}, "
        f"{model['factors']} factors{' + biases' * model['biases']}, "
        f"{(model['loss'] + ' loss, ') * (model['loss'] != 'squared')}{train['optimizer']}, {ranks}"
    )


def figures(epoch: Event) -> dict[str, str]:
    """What to show of an epoch, as text: the loss's deciding measure, called by its name where it is not the RMSE."""
    squared = epoch["train_rmse"] is not None
    shown = {"train" if squared else "train loss": f"{epoch['train_rmse'] if squared else epoch['train_loss']:.4f}"}
    for part in ("validation", "test"):
        if epoch[part]:
            name, measure = next(iter(epoch[part].items()))
            shown[part if name == "rmse" else f"{part} {name.replace('_', ' ')}"] = f"{measure:.4f}"
    return shown | {"speed": f"{epoch['updates_per_second'] / 1e6:.1f} M updates/s"}


class _Plain:
    """A line per event."""

    def __init__(self, epochs: int):
        self._epochs = epochs
        self._started, self._shown = time.perf_counter(), 0

    def show(self, event: Event) -> None:
        if event["kind"] == "run":
            print(describe(event), flush=True)
            self._started = time.perf_counter()
        elif "message" in event and event["kind"] != "stopped":  # that is the last sentence of all
            print(f"mfpar: {'warning: ' * (event['kind'] == 'warning')}{event['message']}", file=sys.stderr, flush=True)
        elif event["kind"] == "epoch":
            done = event["epoch"]
            self._shown += 1  # fewer than are done where the run has gone on from a checkpoint
            left = (time.perf_counter() - self._started) / self._shown * (self._epochs - done)
            text = "  ".join(f"{name} {value}" for name, value in figures(event).items())
            print(f"epoch {done:>3}/{self._epochs}  {text}  {left:.0f} s left", flush=True)


@contextlib.contextmanager
def _bar(epochs: int) -> Iterator[Callable[[Event], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("epoch"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
    progress = Progress(*columns, TextColumn("left"), TimeRemainingColumn())
    task = progress.add_task("", total=epochs)

    def show(event: Event) -> None:
        if event["kind"] == "run":
            progress.console.print(describe(event), highlight=False, soft_wrap=True)
            progress.start()
        elif "message" in event and event["kind"] != "stopped":  # that is the last sentence of all
            progress.console.print(f"[yellow]{event['kind']}:[/yellow] {event['message']}", highlight=False)
        elif event["kind"] == "epoch":
            text = "  ".join(f"{name} {value}" for name, value in figures(event).items())
            progress.update(task, completed=event["epoch"], description=text)

    try:
        yield show
    finally:
        progress.stop()
