"""Writes a rank's blocks into a file, in a thread beside the training."""

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from mfpar.atomic import storage_errors, sync
from mfpar.engine.cut import Blocks
from mfpar.errors import StorageError
from mfpar.recovery.manifest import Block

PIECE = 8 << 20  # bytes that are hashed and written at a time
SYNCED = 32 << 20  # bytes after which the disk is waited for, so that they never pile up in front of other's
STALLED = 60.0  # seconds without a piece, after which a disk is taken for dead
STOPPING = 10.0  # seconds that a piece under way has to end

Views = Iterable[tuple[str, Iterable[np.ndarray]]]  # keys, each with its bytes in pieces


class Pieces:
    """Memory for a copy of blocks, which grows by pieces and is used again."""

    def __init__(self) -> None:
        self._pieces: list[np.ndarray] = []

    def copied(self, blocks: Blocks) -> Views:
        """Copy blocks; the copies, until the next call."""
        begin, table = 0, []
        for key, block in blocks:
            data, done = block.view(np.uint8), 0
            table.append((key, begin, len(data)))
            for view in self._views(begin, len(data)):
                view[:] = data[done : done + len(view)]
                done += len(view)
            begin += len(data)
        return ((key, self._views(first, length)) for key, first, length in table)

    def _views(self, begin: int, length: int) -> Iterator[np.ndarray]:
        end = begin + length
        while begin < end:
            number, offset = divmod(begin, PIECE)
            if number == len(self._pieces):
                self._pieces.append(np.empty(PIECE, np.uint8))
            view = self._pieces[number][offset : offset + end - begin]
            begin += len(view)
            yield view


def in_pieces(blocks: Blocks) -> Views:
    """Blocks as they lie."""
    for key, block in blocks:
        data = block.view(np.uint8)
        yield key, (data[begin : begin + PIECE] for begin in range(0, len(data), PIECE))


class Writer:
    """Writes one file; afterwards `problem` is a sentence, or `blocks` tells what is safely on the disk."""

    def __init__(self, target: Path):
        self._target = target
        self._thread: threading.Thread | None = None
        self._given_up = threading.Event()
        self._last = time.monotonic()
        self._failure: str | None = None
        self.blocks: list[Block] = []

    def start(self, views: Views) -> None:
        """Write in a thread."""
        self._thread = threading.Thread(target=self._run, args=(views,), name="mfpar-checkpoint", daemon=True)
        self._thread.start()

    def write(self, views: Views) -> None:
        """Write now; what goes wrong with the file becomes the problem."""
        try:
            with storage_errors(self._target):
                self._write(views)
        except StorageError as error:
            self._failure = str(error)

    @property
    def finished(self) -> bool:
        """Whether nothing is to be waited for any more: it is done, has failed, or the disk is taken for dead."""
        return not self._alive or time.monotonic() - self._last > STALLED

    @property
    def problem(self) -> str | None:
        """Why the file is not on the disk, once it is finished; None if it is."""
        if self._alive:
            return f"{self._target}: could not be written: the disk has not answered for {STALLED:.0f} s"
        return self._failure

    def stop(self) -> None:
        """Have it end with the piece under way, or as soon as the disk answers."""
        self._given_up.set()

    def abandon(self) -> None:
        """Stop, and remove the file and a folder that is empty then; never raises."""
        self.stop()
        if self._thread:
            self._thread.join(STOPPING)
        with contextlib.suppress(OSError):
            self._target.unlink(missing_ok=True)
            self._target.parent.rmdir()

    @property
    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self, views: Views) -> None:
        try:
            self.write(views)
        except Exception as error:  # noqa: BLE001 - nobody else would hear of it
            self._failure = f"{self._target}: could not be written: {error!r}"

    def _write(self, views: Views) -> None:
        self._target.parent.mkdir(parents=True, exist_ok=True)
        end = unsynced = 0
        with open(self._target, "xb", buffering=0) as file:
            for key, pieces in views:
                sha, begin = hashlib.sha256(), end
                for piece in pieces:
                    if self._given_up.is_set():
                        raise StorageError(f"{self._target}: was given up")
                    sha.update(piece)
                    written = 0
                    while written < len(piece):
                        written += file.write(piece[written:])
                    end, unsynced = end + written, unsynced + written
                    if unsynced >= SYNCED:
                        os.fdatasync(file.fileno())
                        unsynced = 0
                    self._last = time.monotonic()
                self.blocks.append(Block(key, self._target.name, begin, end - begin, sha.hexdigest()))
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # not every file system can
            sync(self._target.parent)
