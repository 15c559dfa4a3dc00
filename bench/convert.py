"""A large CSV to a blocked file under a bound of memory: seconds, and the peak resident memory of the whole process.

`python bench/convert.py [--ratings 20_000_000] [--memory 1G]`
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
from report import report

COPY = """
COPY (SELECT 1 + floor(138493 * power(random(), 1.6))::BIGINT AS "userId",
             1 + floor(26744 * power(random(), 2.2))::BIGINT AS "movieId",
             (1 + floor(random() * 10)) / 2 AS rating, 1260759144 + i AS "timestamp" FROM range({count}) t(i))
TO '{path}' (HEADER, DELIMITER ',')
"""


def measure(count: int, memory: str, folder: Path) -> dict:
    """Write the CSV, convert it in a process of its own, and say what that took."""
    source, target = folder / "ratings.csv", folder / "ratings.h5"
    duckdb.execute("SELECT setseed(0.5)")
    duckdb.execute(COPY.format(count=count, path=source))
    started = time.perf_counter()
    command = [sys.executable, "-m", "mfpar", "convert", source, "-o", target, "--memory", memory]
    subprocess.run(command, check=True, timeout=1800)
    seconds = time.perf_counter() - started
    return {
        "ratings": count,
        "CSV MB": source.stat().st_size / 1e6,
        "memory": memory,
        "seconds": seconds,
        "M ratings/s": count / seconds / 1e6,
        "peak RSS MB": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratings", type=int, default=20_000_000)
    parser.add_argument("--memory", default="1G")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mfpar-bench-") as scratch:
        report("convert", "CSV to a blocked file", [measure(parsed.ratings, parsed.memory, Path(scratch))])
