"""Writes the checkpoints of a run: each rank its own blocks, beside the training; then all agree that it is whole.

A checkpoint has a name that never occurred before. Its manifest is renamed into place when the files of all ranks are
on the disk, and only then are older checkpoints removed: whatever fails, wherever, the ones before are whole.
"""

import contextlib
import json
import secrets
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mfpar.atomic import make_folder, storage_errors, sync
from mfpar.engine.cut import Blocks
from mfpar.errors import ConfigError, FormatError, MfparError, StorageError
from mfpar.parallel.comm import Communicator
from mfpar.recovery.lock import Lock
from mfpar.recovery.manifest import MANIFEST, Block, Manifest, checkpoints_in, position, read_manifest, remove
from mfpar.recovery.writer import Pieces, Views, Writer, in_pieces

Warn = Callable[[str], None]


class Checkpoints:
    """The checkpoints that a run writes into a folder; a context manager. Collective, within `guard`.

    Parameters
    ----------
    folder : Path
        On a file system that all ranks share; made if it is missing. What killed runs left half-written in it goes.
    identity : dict
        Plain JSON values of all that makes the result, see `Manifest`.
    keep : int ≥ 1
        How many stay: the newest ones of those that are no newer than what this run has written last. Newer ones, of
        an older run of the same settings, stay until this run gets there: their bits are those that it will have.
    warn : called on each rank with the same sentence, when a checkpoint could not be written
    again : bool
        The run goes on after the loss of a rank: what is wrong with the folder is a warning.

    Attributes
    ----------
    damaged : set of str
        Names of those that are known to be damaged, which stay in place of no whole one.

    Raises
    ------
    ConfigError
        The folder has checkpoints of other data or settings.
    StorageError
        It can't be written to, or another run keeps its checkpoints there.
    """

    def __init__(
        self,
        folder: Path,
        comm: Communicator,
        identity: dict[str, Any],
        keep: int,
        warn: Warn,
        again: bool = False,
    ):
        self._folder, self._comm, self._keep, self._warn = folder, comm, keep, warn
        self._identity = json.loads(json.dumps(identity))
        self._pieces = Pieces()
        self._writer: Writer | None = None
        self._path, self._cut = folder, dict[str, Any]()
        self._lock: Lock | None = None
        self.damaged = set[str]()
        self._waste: list[Path] = []  # folders that are no checkpoints any more; the first rank's
        try:
            problem = comm.gather(self._claimed(again) if comm.rank == 0 else None)[0]
        except BaseException:
            self.abandon()
            raise
        if problem:
            warn(problem)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._clear()
        self.abandon()

    @property
    def written(self) -> bool | None:
        """Whether this rank has nothing left to write of the checkpoint under way; None without one. Local."""
        return self._writer.finished if self._writer else None

    def begin(self, cut: dict[str, Any], blocks: Blocks, background: bool = True) -> Path | None:
        """Begin a checkpoint, for `settle` to finish. Collective.

        Parameters
        ----------
        cut : dict
            The same plain JSON values on every rank, see `Manifest`.
        blocks : this rank's; keys are unique over all ranks, and their union does not depend on the number of ranks
        background : bool
            Copy the blocks and write them in a thread; otherwise, without a copy, they are written before this returns.

        Returns
        -------
        Path or None
            What `settle` said of a checkpoint that was still under way.
        """
        before = self.settle()
        token = self._comm.gather(secrets.token_hex(4))[0]
        self._cut, self._path = cut, self._folder / f"epoch-{cut['epoch']:08d}-step-{cut['step']:08d}-{token}"
        writer = self._writer = Writer(self._path / f"{self._comm.rank}.blocks")
        if background:
            writer.start(self._cleared(self._pieces.copied(blocks)))
        else:
            writer.write(self._cleared(in_pieces(blocks)))
        return before

    def settle(self) -> Path | None:
        """Finish the checkpoint under way: wait until all ranks have written, and make it whole. Collective.

        Returns
        -------
        Path or None
            The checkpoint; None if there was none under way, or it could not be written, of which a warning tells.
        """
        writer = self._writer
        if writer is None:
            return None
        self._comm.wait_until(lambda: writer.finished)
        # Only the first rank may remove anything from here on: it alone knows whether the manifest is in place.
        self._writer, path, problem = None, self._path, writer.problem
        ranks = self._comm.gather([[astuple(block) for block in writer.blocks], problem])
        problem = next((said for _, said in ranks if said), None)
        if self._comm.rank == 0:
            if problem is None:
                problem = self._complete(path, [Block(*row) for rows, _ in ranks for row in rows])
            if problem is not None:
                remove(path)
        problem = self._comm.gather(problem)[0]
        if problem:
            writer.stop()
            self._pieces = Pieces()  # a thread that is stuck may still be reading
            self._warn(f"no checkpoint of epoch {self._cut['epoch']}, step {self._cut['step']}: {problem}")
            return None
        return path

    def abandon(self) -> None:
        """Give up what is under way, and the folder; never raises. Local.

        The end of a `with` does so, and removes what is of no use any more, unless it ends with an error: then time may
        be short, and whoever takes the folder next does that.
        """
        writer, self._writer = self._writer, None
        lock, self._lock = self._lock, None
        if writer:
            writer.abandon()
        if lock:
            lock.release()

    def _claimed(self, again: bool) -> str | None:
        """Take the folder for this run; `again` the problem with it, if there is one, is returned."""
        try:
            self._claim()
        except MfparError as error:
            if not again:
                raise
            return str(error)
        return None

    def _claim(self) -> None:
        with storage_errors(self._folder):
            make_folder(self._folder, parents=True)
        self._lock = Lock(self._folder)
        for path in checkpoints_in(self._folder):
            difference = None
            with contextlib.suppress(FormatError, StorageError):  # a damaged one is told of when it is asked for
                difference = read_manifest(path).difference(self._identity)
            if difference:
                raise ConfigError(f"{path}: is of another run: it {difference}; choose another folder for checkpoints")
        if self._lock.held:
            self._waste = checkpoints_in(self._folder, whole=False)

    def _complete(self, path: Path, blocks: list[Block]) -> str | None:
        """Make a checkpoint whole, and remove older ones; returns a problem as a sentence."""
        try:
            with contextlib.suppress(OSError):  # not every file system can
                sync(self._folder)
            Manifest(self._identity, self._cut, blocks).write(path)
        except MfparError as error:
            return str(error)
        with contextlib.suppress(MfparError):
            older = [other for other in checkpoints_in(self._folder) if position(other) < position(path)]
            older.sort(key=lambda other: other.name in self.damaged)  # so these go first
            for other in older[self._keep - 1 :]:
                with contextlib.suppress(OSError):
                    (other / MANIFEST).unlink()
                    self._waste.append(other)
        return None

    def _cleared(self, views: Views) -> Views:
        """The same, once the waste is gone: large files take long to remove, so that is the writing thread's work."""
        self._clear()
        yield from views

    def _clear(self) -> None:
        while self._waste:
            remove(self._waste.pop())
