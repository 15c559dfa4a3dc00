"""`mfpar convert`: ratings to a blocked file."""

import argparse
import time

from mfpar.parallel import launch
from mfpar.settings import size


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser("convert", help="convert ratings into a blocked HDF5 file", description=_TEXT)
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="files or glob patterns, in the order to read them"
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE.h5", help="the blocked file to write")
    parser.add_argument(
        "--columns", metavar="USER,ITEM[,RATING]", type=lambda text: text.split(","),
        help="names (or numbers from 1) of these columns; found by themselves where their names are usual",
    )  # fmt: skip
    parser.add_argument(
        "--implicit", action="store_true", help="not ratings, but what happened: every pair is a rating of 1"
    )
    parser.add_argument(
        "--weights", metavar="COLUMN", help="name (or number from 1) of a column with the weight of each rating"
    )
    parser.add_argument("--test", action="append", metavar="FILE", help="hold out the ratings of this source")
    parser.add_argument("--test-fraction", type=float, default=0.0, metavar="F", help="hold out this share, by seed")
    parser.add_argument(
        "--grid", type=int, metavar="G", help="cut into G × G blocks (default: from the size, 16 and up)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="SEED", help="of order and held-out part (default: 0)")
    parser.add_argument(
        "--duplicates", choices=("error", "last", "mean"), default="last",
        help="what to do with ratings of the same user and item (default: last)",
    )  # fmt: skip
    parser.add_argument(
        "--memory", type=size, metavar="SIZE", help="bound of each rank (512M, 2G; default: half of all)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    parser.set_defaults(run=run, collective=True)


_TEXT = """Reads CSV, TSV, MovieLens .dat (::), triples separated by spaces, Parquet, Matrix Market and scipy .npz, text
also gzipped, in one or several files, and writes a file of blocks that `mfpar train` takes. Header, delimiter and
columns are found by themselves. Ids may be integers or strings. Under mpirun or srun the ranks share out the files;
what they write has the content of what a single process writes."""


def run(args: argparse.Namespace) -> None:
    """Run the verb. Collective under a launcher."""
    from mfpar import api

    started = time.perf_counter()
    names = ("columns", "implicit", "weights", "test", "test_fraction", "grid", "seed", "duplicates", "memory", "force")
    comm = launch.world()
    with comm.guard():
        header = api.convert_file(args.sources, args.output, comm, **{name: getattr(args, name) for name in names})
    if comm.rank > 0:
        return
    what = "pairs" if header.implicit else "ratings"
    print(f"{args.output}: {header.rows:,} × {header.cols:,}, {header.ratings:,} {what}", end="")
    print("" if header.implicit else f", mean {header.mean:.4f}", end="")
    print(", weighted" if header.weighted else "", end="")
    print(f", {header.test_ratings:,} held out" if header.test_ratings else "", end="")
    print(f", {time.perf_counter() - started:.1f} s")
    if header.duplicates:
        print(f"{header.duplicates:,} repeated {what} of a user and item: settled by --duplicates {args.duplicates}")
    if header.test_unknown:
        print(f"{header.test_unknown:,} held-out {what} have a user or item without training ratings")
