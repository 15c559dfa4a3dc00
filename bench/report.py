"""What every benchmark ends with: a table for people, JSON with the machine's description, and a picture."""

import datetime as dt
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from picture import Panel, draw
from rich.console import Console
from rich.table import Table

Rows = list[dict[str, Any]]
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("mfpar", "numpy", "numba", "llvmlite", "h5py", "mpi4py", "duckdb")


def machine() -> dict[str, Any]:
    """The machine that the figures were taken on, and the packages that took part."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "cpu": model,
        "cores": cores(),
        "caches": caches(),
        "memory GB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load": os.getloadavg(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def caches() -> dict[str, int]:
    """Bytes of the data caches of the first core, by level ("L1", "L2", …); empty where Linux does not tell."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = int(size.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(size[-1], 0)
    return found


def median_and_spread(values: Sequence[float]) -> tuple[float, str]:
    """The median of repeated measurements, and their range in words.

    >>> median_and_spread([3.0, 1.0, 2.0])
    (2.0, '1 … 3')
    """
    return statistics.median(values), f"{min(values):.3g} … {max(values):.3g}"


def numbers(text: str) -> list[int]:
    """The parser of an option that takes numbers with commas between.

    >>> numbers("8,32")
    [8, 32]
    """
    return [int(part) for part in text.split(",")]


def show(title: str, rows: Rows) -> None:
    """Print a table of rows, which may differ in what they tell."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*names, title=title)
    for row in rows:
        cells = [row.get(name, "") for name in names]
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in cells))
    Console(width=160).print(table)


def report(name: str, title: str, rows: Rows | dict[str, Rows], panels: Sequence[Panel] = (), **further: Any) -> None:
    """Print a table of the rows, write them to results/NAME.json, and draw results/NAME.png.

    Parameters
    ----------
    rows : the figures, or several tables of them by what they are about
    panels : what the picture shows; none, no picture
    further : what else the JSON says
    """
    for about, table in (rows if isinstance(rows, dict) else {"": rows}).items():
        show(f"{title}: {about}" if about else title, table)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"title": title, "date": dt.date.today().isoformat(), "machine": machine(), **further, "rows": rows}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    written = [path]
    if panels and draw(path.with_suffix(".png"), title, panels):
        written.append(path.with_suffix(".png"))
    print("written:", *(one.relative_to(Path.cwd()) if one.is_relative_to(Path.cwd()) else one for one in written))
