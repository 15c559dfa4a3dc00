"""A large CSV and a large Parquet file to blocked files: seconds of the whole command, and its peak resident memory.

`python bench/convert.py [--ratings 20_000_000] [--memory 1G]`; each file with and without the bound of memory. The
ratings have the shape of MovieLens 20M: 138,493 × 26,744, columns userId, movieId, rating, timestamp.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
from report import report

RATINGS = """
COPY (SELECT 1 + floor(138493 * power(random(), 1.6))::BIGINT AS "userId",
             1 + floor(26744 * power(random(), 2.2))::BIGINT AS "movieId",
             (1 + floor(random() * 10)) / 2 AS rating, 1260759144 + i AS "timestamp" FROM range({count}) t(i))
TO '{path}' (FORMAT parquet)
"""


def write(count: int, folder: Path) -> list[Path]:
    """The same ratings as CSV and as Parquet; no table of them, as what a child's parent holds counts in its peak."""
    text, parquet = folder / "csv", folder / "parquet"
    duckdb.execute("SELECT setseed(0.5)")
    duckdb.execute(RATINGS.format(count=count, path=parquet))
    duckdb.execute(f"COPY (FROM read_parquet('{parquet}')) TO '{text}' (HEADER, DELIMITER ',')")
    return [text, parquet]


def measure(source: Path, count: int, memory: str | None) -> dict:
    """Convert a file in a process of its own, and say what that took."""
    command = [sys.executable, "-m", "mfpar", "convert", source, "-o", source.with_suffix(".h5"), "--force"]
    started = time.perf_counter()
    process = subprocess.Popen(command if memory is None else [*command, "--memory", memory])
    _, status, usage = os.wait4(process.pid, 0)  # unlike getrusage, this process's own peak
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {
        "source": source.name,
        "MB": source.stat().st_size / 1e6,
        "memory": memory or "half of all",
        "ratings": count,
        "seconds": seconds,
        "CPU seconds": usage.ru_utime + usage.ru_stime,
        "M ratings/s": count / seconds / 1e6,
        "peak RSS MB": usage.ru_maxrss * 1024 / 1e6,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratings", type=int, default=20_000_000)
    parser.add_argument("--memory", default="1G")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mfpar-bench-") as scratch:
        files = write(parsed.ratings, Path(scratch))
        rows = [measure(file, parsed.ratings, memory) for file in files for memory in (parsed.memory, None)]
    report("convert", "A file of ratings to a blocked file", rows)
