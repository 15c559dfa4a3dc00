"""Pictures of benchmarks: a few panels side by side, of lines or of bars, as small PNG files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Points = tuple[Sequence[float], Sequence[float]]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")  # Okabe and Ito
PER_ROW = 4
SHADES = 64  # colours of a file: a third of its size with all of them
FEW = 8  # places on a logarithmic axis that are written out


@dataclass(frozen=True)
class Lines:
    """Curves over a common axis.

    Attributes
    ----------
    series : by label, x and y; a label that begins with "(" is drawn dashed and without marks: a limit, an ideal
    log : axes with logarithmic scales, as "x", "xy"
    """

    title: str
    x: str
    y: str
    series: Mapping[str, Points]
    log: str = ""


@dataclass(frozen=True)
class Bars:
    """Groups of bars: `values[label][group]`."""

    title: str
    y: str
    groups: Sequence[str]
    values: Mapping[str, Sequence[float]]
    line: float | None = None  # drawn across: what is to be reached


Panel = Lines | Bars


def draw(path: Path, title: str, panels: Sequence[Panel]) -> bool:
    """Write a PNG of some panels; says so and returns False where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from PIL import Image
    except ImportError:
        print("no picture: matplotlib is missing (pip install mfpar[plot])")
        return False
    across = min(PER_ROW, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(4.6 * across, 3.6 * down), dpi=85, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    for place, panel in enumerate(panels, 1):
        axes = figure.add_subplot(down, across, place)
        (_lines if isinstance(panel, Lines) else _bars)(axes, panel)
        axes.set_title(panel.title, fontsize=9)
        axes.set_ylabel(panel.y, fontsize=8)
        axes.tick_params(labelsize=7, which="both")
        axes.grid(axis="y" if isinstance(panel, Bars) else "both", linewidth=0.4, alpha=0.6)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, framealpha=0.7)
    canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(SHADES).save(path, optimize=True)
    return True


def _lines(axes, panel: Lines) -> None:
    for at, (label, (x, y)) in enumerate(panel.series.items()):
        ideal = label.startswith("(")
        style = {"linestyle": "--", "linewidth": 1} if ideal else {"marker": "o", "markersize": 3, "linewidth": 1.3}
        axes.plot(x, y, label=label, color=COLOURS[at % len(COLOURS)], **style)
    axes.set_xlabel(panel.x, fontsize=8)
    places = sorted({place for x, _ in panel.series.values() for place in x})
    if "x" in panel.log:
        axes.set_xscale("log")
        if len(places) <= FEW:
            axes.set_xticks(places, [f"{place:g}" for place in places])
            axes.set_xticks([], minor=True)
    if "y" in panel.log:
        axes.set_yscale("log")


def _bars(axes, panel: Bars) -> None:
    width = 0.8 / len(panel.values)
    slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if len(panel.groups) > FEW else {}
    for at, (label, heights) in enumerate(panel.values.items()):
        places = [group + (at - (len(panel.values) - 1) / 2) * width for group in range(len(heights))]
        axes.bar(places, heights, width, label=label, color=COLOURS[at % len(COLOURS)])
    axes.set_xticks(range(len(panel.groups)), panel.groups, fontsize=7, **slanted)
    if panel.line is not None:
        axes.axhline(panel.line, color="#000000", linewidth=0.8, linestyle="--")
