"""Draw the convergence of a run: `python data/convergence.py RUN.jsonl OUT.png`, from a log of `mfpar train --log`."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

TRAIN, TEST, INK = "#8a94a6", "#1f6fb2", "#2b2f36"
LABELS = {"rmse": "RMSE", "mae": "MAE", "auc": "AUC", "log_loss": "log loss", "deviance": "Poisson deviance"}
RISING = {"auc", "accuracy"}  # more is better, and no training loss is on their scale


def read_log(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The line that describes the run, and those of its epochs."""
    run, *lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return run, [line for line in lines if line["kind"] == "epoch"]


def draw(run: dict[str, Any], epochs: list[dict[str, Any]], path: Path) -> None:
    """The deciding measure on held-out ratings over epochs, beside RMSE or loss on those trained on."""
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    numbers = [epoch["epoch"] for epoch in epochs]
    name = next(iter(epochs[0]["test"] or epochs[0]["validation"] or {"rmse": None}))
    training = [epoch["train_loss" if epoch["train_rmse"] is None else "train_rmse"] for epoch in epochs]
    if name not in RISING:
        axes.plot(numbers, training, color=TRAIN, linewidth=2, label="training")
    for part, label, style in (("test", "held out", "-"), ("validation", "validation", "--")):
        if epochs[0][part]:
            curve = [epoch[part][name] for epoch in epochs]
            axes.plot(numbers, curve, style, color=TEST, linewidth=2.5, label=label)
            if part == "validation" or not epochs[0]["validation"]:
                mark_best(axes, numbers, curve, name)
    axes.set(xlabel="epoch", ylabel=LABELS.get(name, name), xlim=(1, max(2, numbers[-1])))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    add_seconds(axes, epochs)
    axes.set_title(caption(run), loc="left", fontsize=11, color=INK, pad=12)
    figure.savefig(path, dpi=150)


def mark_best(axes: Axes, numbers: list[int], curve: list[float], name: str) -> None:
    """A ring round the best epoch, with its figure."""
    at = int(np.argmax(curve) if name in RISING else np.argmin(curve))
    place = numbers[at], curve[at]
    axes.plot(*place, "o", markersize=9, markerfacecolor="white", markeredgecolor=TEST, zorder=5, clip_on=False)
    text = f"best: {place[1]:.4f} after epoch {place[0]}"
    side = "right" if place[0] > np.mean(axes.dataLim.intervalx) else "left"
    axes.annotate(text, place, xytext=(0, 16), textcoords="offset points", ha=side, color=TEST)


def add_seconds(axes: Axes, epochs: list[dict[str, Any]]) -> None:
    """An upper axis with the time that training has taken after some of the epochs."""
    total = 0.0
    elapsed = {epoch["epoch"]: (total := total + epoch["seconds"]) for epoch in epochs}
    upper = axes.secondary_xaxis("top")
    shown = list(elapsed)[:: -max(1, len(elapsed) // 6)][::-1]
    upper.set_xticks(shown, [f"{elapsed[number]:.2g} s" for number in shown], color=TRAIN, fontsize=8)
    upper.set_xlabel("time spent training", color=TRAIN, fontsize=8, loc="left")
    upper.tick_params(length=0)
    upper.spines["top"].set_visible(False)


def caption(run: dict[str, Any]) -> str:
    """What ran, in a line."""
    model, train, ranks = run["model"], run["train"], run["ranks"]
    parts = (
        f"{run['ratings']:,} ratings of {run['rows']:,} × {run['cols']:,}",
        f"{model['factors']} factors" + " and biases" * model["biases"],
        f"{train['optimizer']}, {ranks} rank{'s' * (ranks > 1)}",
    )
    return "  ·  ".join(parts)


if __name__ == "__main__":
    log, picture = (Path(argument) for argument in sys.argv[1:3])
    draw(*read_log(log), picture)
    print(f"The picture of the convergence: {picture}")
