"""Damaged files, many of them: each is used as a user would, and has to give the right answer or one sentence.

    python tests/fuzz.py --files 2000 --seed 0

makes good blocked files and models (in one file, and in shards) and checkpoints, damages copies of them at random (bits
of up to 16 bytes flipped, the end cut off, a range made zero), and has a worker process use each: a blocked file is
described and trained on for an epoch, a model loaded, asked for predictions, and verified, a checkpoint gone on from
and verified. The worker has a bound of memory and of time; one that dies is replaced. Prints what became of how many,
and how to see each that should not be: exit code 1 if there is any.
File number I of a seed depends on both alone: `--seed S --only I` shows it again, `--keep FOLDER` leaves it there.
"""

import argparse
import collections
import contextlib
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simulated
from planted import plant, write

from mfpar import api
from mfpar.blockfile import BlockedFile
from mfpar.cli.inspect import describe
from mfpar.config import ModelConfig, TrainConfig
from mfpar.errors import FormatError, MfparError
from mfpar.integrity.verify import verify
from mfpar.model.opening import open_model
from mfpar.parallel.comm import Serial
from mfpar.recovery.checkpoints import Checkpoints
from mfpar.recovery.manifest import checkpoints_in
from mfpar.recovery.reading import newest

ROOT = Path(__file__).parents[1]
SECONDS = 20.0  # a good file takes a twentieth of one
MEMORY = 256 << 20  # bytes of address space beyond what using the good files took; they are a few MB long
GOOD = {"right", "error"}  # what may become of a file
KINDS = ("blocked", "weighted", "text", "model", "model of shards", "blocked of shards", "checkpoint")
IDENTITY = {"data_checksum": "ab", "model": {"factors": 4}, "train": {"seed": 0}}
MODEL, RUN = ModelConfig(factors=4), TrainConfig(epochs=1)


@dataclass(frozen=True)
class Outcome:
    """What became of a file: "right", "error" (of mfpar's family, in one line), or what must not be."""

    number: int
    kind: str
    damage: str
    outcome: str
    detail: str


def originals(folder: Path) -> dict[str, Path]:
    """Good files by kind, each in a folder of its own."""
    paths = {}
    for kind in KINDS:
        home = folder / kind.replace(" ", "-")
        home.mkdir()
        paths[kind] = home / ("saved" if kind == "checkpoint" else "file.h5")
    size = {"rows": 30, "cols": 20, "count": 300, "grid": 3, "test": 40, "unknown": 6}
    plain = plant(paths["blocked"], **size)
    plant(paths["weighted"], **size, weighted=True)
    ids = [np.array([f"ä{n}".encode() for n in side]) for side in (plain.row_ids, plain.col_ids)]
    write(paths["text"], plain.grid, plain.header, *ids, {"train": plain.train, "test": plain.test})
    for kind, ranks in (("model", 1), ("model of shards", 2)):
        simulated.run(
            ranks, lambda comm, kind=kind: api.train_file(plain.path, paths[kind], MODEL, RUN, comm, lambda event: None)
        )
    users, items, values = plain.row_ids[plain.train.rows], plain.col_ids[plain.train.cols], plain.train.values
    source = paths["blocked of shards"].with_name("ratings.csv")
    lines = (f"{user},{item},{value}\n" for user, item, value in zip(users, items, values, strict=True))
    source.write_text("user,item,rating\n" + "".join(lines))
    simulated.run(2, lambda comm: api.convert_file(source, paths["blocked of shards"], comm, grid=3, test_fraction=0.1))
    source.unlink()
    for epoch in (1, 2):
        simulated.run(3, lambda comm, epoch=epoch: keep_state(paths["checkpoint"], comm, epoch))
    (paths["checkpoint"] / ".lock").unlink()  # says nothing that matters
    return paths


def state(epoch: int) -> dict[str, np.ndarray]:
    """The blocks of a run after an epoch."""
    rng = np.random.default_rng(epoch)
    return {f"now/rows/{i}": rng.normal(size=size).astype(np.float32) for i, size in enumerate((80, 0, 400, 33, 7))}


def keep_state(folder: Path, comm: Any, epoch: int) -> None:
    """Write a checkpoint of it."""
    with Checkpoints(folder, comm, IDENTITY, 2, print) as checkpoints:
        checkpoints.begin({"epoch": epoch, "step": 0}, list(state(epoch).items())[comm.rank :: comm.size])
        checkpoints.settle()


def damaged(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """A damaged copy, and what was done to it."""
    data = np.frombuffer(content, np.uint8).copy()
    how = rng.choice(["flip", "truncate", "zero", "start"], p=[0.4, 0.15, 0.2, 0.25])
    # Most of a small file is room that was never written to. What HDF5 goes by lies scattered, much of it at the start.
    written = np.flatnonzero(data)
    if how == "start":
        written = written[: len(written) // 8]
    if how == "truncate":
        data = data[: rng.integers(len(data))]
        return data.tobytes(), f"cut after {len(data)} bytes"
    if how == "zero":
        first = int(rng.choice(written))
        last = min(len(data), first + int(2 ** rng.uniform(1, 12)))
        data[first:last] = 0
        return data.tobytes(), f"zeros from {first} to {last}"
    places = rng.choice(written, int(2 ** rng.uniform(0, 4.01)))
    data[places] ^= rng.integers(1, 256, len(places)).astype(np.uint8)
    return data.tobytes(), f"bits flipped at {sorted(set(places.tolist()))}"


def use(path: Path) -> Any:
    """Use a file as a user would; what comes of it, comparable by ==."""
    if path.is_dir():
        return go_on(path)
    facts = {name: value for name, value in describe(path).items() if name not in ("path", "data", "versions", "curve")}
    if facts["kind"] == "model":
        model = open_model(path)
        users, items = (ids.take(np.arange(len(ids))) for ids in (model.row_ids, model.col_ids))
        pairs = np.repeat(users, len(items)), np.tile(items, len(users))
        found = [model.predict(*pairs).tobytes(), *model.recommend(users[:3], 5)]
        model.verify()
        return repr((facts, [np.asarray(part).tolist() for part in pairs], found))
    output = path.with_name("model.h5")
    try:
        fingerprint = api.train_file(path, output, MODEL, RUN, Serial(), lambda event: None)
        trained = open_model(output)
        ids = [table.take(np.arange(len(table))).tolist() for table in (trained.row_ids, trained.col_ids)]
        with BlockedFile(path) as file:
            tables = [[table(side).tolist() for table in (file.order, file.ratings_of)] for side in ("rows", "cols")]
        return repr((facts, fingerprint, trained.curve[0]["test"], ids, tables))
    finally:
        output.unlink(missing_ok=True)


def go_on(folder: Path) -> str:
    """Go on from the newest checkpoint that is whole; what it is of. An error if any is damaged."""
    blocks, warnings = {key: np.ones_like(block) for key, block in state(0).items()}, list[str]()
    found = newest(folder, Serial(), IDENTITY, 9, lambda cut: blocks.items(), warnings.append)
    wanted = state(found.cut["epoch"]) if found else {}
    if any(blocks[key].tobytes() != block.tobytes() for key, block in wanted.items()):
        return "other blocks than were written"
    checks = [verify(path) for path in checkpoints_in(folder)]
    if checks[0].sound == bool(warnings):
        return "verify does not agree"
    for check in checks:
        if not check.sound:
            raise FormatError(check.damage[0])
    return repr((found and found.cut, describe(folder)["epoch"]))


def work() -> None:
    """The worker: reads lines of JSON with good files first, then with files to use; answers each with a line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # HDF5 and MPI may say what they like, elsewhere
    right: dict[str, str] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        path, kind = Path(asked["path"]), asked["kind"]
        before = set(path.parent.iterdir())
        try:
            answer = use(path)
            outcome = "right" if right.setdefault(kind, answer) == answer else "wrong answer"
            detail = ""
        except MfparError as error:
            outcome, detail = "error", f"{type(error).__name__}: {error}"
            if "\n" in str(error):
                outcome = "several lines"
        except MemoryError as error:
            outcome, detail = "memory", repr(error)
        except BaseException as error:  # whatever it is, it is counted
            outcome, detail = "other exception", repr(error)
        if outcome in GOOD and set(path.parent.iterdir()) != before:
            outcome, detail = "left behind", str(sorted(set(path.parent.iterdir()) - before))
        print(json.dumps([outcome, detail]), file=answers)
        if len(right) == len(KINDS) and resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))


class Worker:
    """A worker process that has seen the good files; a context manager."""

    def __init__(self, good: dict[str, Path]):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "2"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--work"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        for kind, path in good.items():
            outcome, detail = self.ask(kind, path, 10 * SECONDS)  # it may have to compile kernels first
            if outcome != "right":
                raise RuntimeError(f"the good file of kind {kind}: {outcome} {detail}")

    def ask(self, kind: str, path: Path, seconds: float = SECONDS) -> tuple[str, str]:
        """What becomes of a file."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"kind": kind, "path": str(path)}).encode() + b"\n")
            self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return "hang", f"no answer after {seconds:g} s"
        line = self._process.stdout.readline()
        if not line:
            return "crash", f"ended by {signal.Signals(-self._process.wait()).name}"
        outcome, detail = json.loads(line)
        return outcome, detail

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def fuzz(numbers: range | list[int], seed: int, keep: Path | None = None) -> Iterator[Outcome]:
    """Damage and use the files of these numbers."""
    with tempfile.TemporaryDirectory(prefix="mfpar-fuzz-") as name, contextlib.ExitStack() as closing:
        good = originals(Path(name))
        place = keep or Path(name) / "damaged"
        worker = closing.enter_context(Worker(good))
        for number in numbers:
            rng = np.random.default_rng([seed, number])
            kind = KINDS[int(rng.integers(len(KINDS)))]
            home = place / f"{number}"
            shutil.copytree(good[kind].parent, home)
            files = sorted(path for path in home.rglob("*") if path.is_file() and path.stat().st_size)
            victim = files[int(rng.integers(len(files)))]
            content, damage = damaged(victim.read_bytes(), rng)
            victim.write_bytes(content)
            outcome = Outcome(
                number, kind, f"{victim.relative_to(home)}: {damage}", *worker.ask(kind, home / good[kind].name)
            )
            if outcome.outcome in ("hang", "crash"):
                worker.__exit__()
                worker = closing.enter_context(Worker(good))
            if keep is None:
                shutil.rmtree(home)
            yield outcome


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the one file of this number")
    parser.add_argument("--keep", type=Path, help="leave the damaged files in this folder")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work()
        return 0
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    bad = 0
    for one in fuzz(range(args.files) if args.only is None else [args.only], args.seed, args.keep):
        counts[one.outcome][one.kind] += 1
        if one.outcome not in GOOD or args.only is not None:
            print(
                f"--seed {args.seed} --only {one.number}: {one.kind}, {one.damage}: {one.outcome}: {one.detail}",
                flush=True,
            )
        bad += one.outcome not in GOOD
    width = max(map(len, KINDS))
    print(f"{'':<18}" + "".join(f"{kind:>{width + 2}}" for kind in KINDS))
    for outcome, row in sorted(counts.items(), key=lambda item: (item[0] not in GOOD, item[0])):
        print(f"{outcome:<18}" + "".join(f"{row[kind]:>{width + 2}}" for kind in KINDS))
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
