"""Large files of ratings to blocked files: seconds of the whole command, and the peak resident memory of a process.

`python bench/convert.py [--ratings 20_000_000] [--memory 1G]`: a CSV and a Parquet file, each with and without the
bound of memory. The ratings have the shape of MovieLens 20M: 138,493 × 26,744, columns userId, movieId, rating,
timestamp.

`python bench/convert.py --parts 8 [--ranks 4] [--string-ids]`: one CSV cut into so many, within the bound of memory, by
one process and by so many ranks; both have to write the same content.
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

from mfpar.blockfile import BlockedFile
from mfpar.parallel.launch import ONE_NODE

RATINGS = """
COPY (SELECT {user} AS "userId", {item} AS "movieId", (1 + floor(random() * 10)) / 2 AS rating,
             1260759144 + i AS "timestamp" FROM range({first}, {last}) t(i))
TO '{path}' ({form})
"""
USER, ITEM = "1 + floor(138493 * power(random(), 1.6))::BIGINT", "1 + floor(26744 * power(random(), 2.2))::BIGINT"
CSV = "HEADER, DELIMITER ','"

# Each rank is started by this, which says what it took; mpirun itself can't be asked.
RANK = """
import os, resource, sys
from mfpar.cli.main import main
code = main(sys.argv[2:])
rank = os.environ.get("OMPI_COMM_WORLD_RANK", "0")
with open(os.path.join(sys.argv[1], "peak." + rank), "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
sys.exit(code)
"""


def write(count: int, folder: Path) -> list[Path]:
    """The same ratings as CSV and as Parquet; no table of them, as what a child's parent holds counts in its peak."""
    text, parquet = folder / "csv", folder / "parquet"
    duckdb.execute("SELECT setseed(0.5)")
    duckdb.execute(RATINGS.format(user=USER, item=ITEM, first=0, last=count, path=parquet, form="FORMAT parquet"))
    duckdb.execute(f"COPY (FROM read_parquet('{parquet}')) TO '{text}' ({CSV})")
    return [text, parquet]


def write_parts(count: int, folder: Path, parts: int, strings: bool) -> list[Path]:
    """Ratings as so many CSV files."""
    user, item = (f"'reader-' || ({USER})", f"'title-' || ({ITEM})") if strings else (USER, ITEM)
    files = [folder / f"part{part}.csv" for part in range(parts)]
    for part, file in enumerate(files):
        first, last = count * part // parts, count * (part + 1) // parts
        duckdb.execute(f"SELECT setseed({(part + 1) / (parts + 1)})")
        duckdb.execute(RATINGS.format(user=user, item=item, first=first, last=last, path=file, form=CSV))
    return files


def measure(sources: list[Path], output: Path, count: int, memory: str | None, ranks: int = 1) -> dict:
    """Convert in processes of their own, and say what that took."""
    command = [sys.executable, "-c", RANK, output.parent, "convert", *sources, "-o", output, "--force"]
    if ranks > 1:
        command = [Path(sys.executable).parent / "mpirun", "-n", str(ranks), *command]
    started = time.perf_counter()
    process = subprocess.Popen(
        command if memory is None else [*command, "--memory", memory], env={**os.environ, **ONE_NODE}
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    peaks = [int((output.parent / f"peak.{rank}").read_text()) * 1024 / 1e6 for rank in range(ranks)]
    return {
        "source": sources[0].name if len(sources) == 1 else f"{len(sources)} × csv",
        "MB": sum(source.stat().st_size for source in sources) / 1e6,
        "memory": memory or "half of all",
        "ranks": ranks,
        "ratings": count,
        "seconds": seconds,
        "CPU seconds": usage.ru_utime + usage.ru_stime,
        "M ratings/s": count / seconds / 1e6,
        "peak RSS MB": max(peaks),
    }


def checksum(path: Path) -> str:
    """That of a blocked file's content."""
    with BlockedFile(path) as file:
        return file.checksum


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratings", type=int, default=20_000_000)
    parser.add_argument("--memory", default="1G")
    parser.add_argument("--parts", type=int)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--string-ids", action="store_true")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mfpar-bench-") as scratch:
        folder = Path(scratch)
        if parsed.parts:
            files = write_parts(parsed.ratings, folder, parsed.parts, parsed.string_ids)
            outputs = {ranks: folder / f"{ranks}.h5" for ranks in (1, parsed.ranks)}
            rows = [measure(files, output, parsed.ratings, parsed.memory, ranks) for ranks, output in outputs.items()]
            if len({checksum(output) for output in outputs.values()}) > 1:
                raise SystemExit("the content depends on the number of ranks")
        else:
            files = write(parsed.ratings, folder)
            rows = [
                measure([file], file.with_suffix(".h5"), parsed.ratings, memory)
                for file in files
                for memory in (parsed.memory, None)
            ]
    report("convert-ranks" if parsed.parts else "convert", "Files of ratings to a blocked file", rows)
