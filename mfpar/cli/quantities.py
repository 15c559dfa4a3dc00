"""Quantities as people write them on a command line, and the parsers of options that take them."""

import argparse
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mfpar.planning.cluster import Network

DECIMAL = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
SHOWN = ("B", "K", "M", "G", "T", "P")  # powers of 1024, as `mfpar.config.size` reads them


def in_units(count: int) -> str:
    """Bytes as `--memory` takes them.

    >>> in_units(0), in_units(1536), in_units(5 << 30)
    ('0', '1.5K', '5G')
    """
    if count < 1024:
        return str(count)
    power = min((count.bit_length() - 1) // 10, len(SHOWN) - 1)
    return f"{count / 1024**power:.4g}{SHOWN[power]}"


def count(text: str) -> int:
    """An integer from 1 on, also as 1e9."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < 2**62 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer from 1 on, as 4096 or 1e9")
    return int(value)


def counts(text: str) -> list[int]:
    """Such integers with commas between."""
    return [count(part) for part in text.split(",")]


def shape(text: str) -> tuple[int, int]:
    """Rows and columns.

    >>> shape("1e9x20")
    (1000000000, 20)
    """
    parts = re.split("[x×]", text)
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"{text!r}: expected rows and columns, as 1e9x1e8")
    return count(parts[0]), count(parts[1])


def deviation(text: str) -> float:
    """A number from 0 to 100."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 to 100")
    return value


def rate_or_auto(text: str) -> float | None:
    """A number a second; None for "auto"."""
    return None if text == "auto" else rate(text)


def rate(text: str) -> float:
    """A number a second, also as 500M; powers of 1000, as rates are told."""
    found = re.fullmatch(r"([\d.]+(?:e\d+)?)([KMGT]?)B?", text.strip(), re.IGNORECASE)
    try:
        value = float(found[1]) * DECIMAL[found[2].upper()] if found else 0.0
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number a second, as 2e8 or 500M")
    return value


def network(text: str) -> "Network":
    """Bandwidth and latency.

    >>> network("100Gb,2us")
    Network(bandwidth=12500000000.0, latency=2e-06)
    """
    from mfpar.planning.cluster import Network

    found = re.fullmatch(r"([\d.]+)([KMGT]?)(b|B)(?:/?s|ps)?,([\d.]+)(ns|us|µs|ms|s)", text.strip())
    try:
        bandwidth = float(found[1]) * DECIMAL[found[2]] / (8 if found[3] == "b" else 1)  # type: ignore[index]
        latency = float(found[4]) * SECONDS[found[5]]  # type: ignore[index]
    except (TypeError, ValueError):
        bandwidth = latency = 0.0
    if not bandwidth > 0:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected bandwidth in bits (b) or bytes (B) a second, and latency, as 100Gb,2us or 12.5GB,2us"
        )
    return Network(bandwidth, latency)
