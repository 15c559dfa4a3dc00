"""Goes back to a checkpoint: the newest one that every rank can read, on any number of ranks."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mfpar.atomic import reason
from mfpar.engine.cut import Blocks
from mfpar.errors import ConfigError, FormatError, StorageError
from mfpar.parallel.comm import Communicator
from mfpar.recovery.manifest import (
    Block,
    Manifest,
    checkpoints_in,
    is_checkpoint,
    open_plain,
    position,
    read_manifest,
)

PIECE = 4 << 20  # bytes that are read and hashed at a time


@dataclass(frozen=True)
class Found:
    """A checkpoint that was restored: its path, the engine's cut, and the names of newer ones, which are damaged."""

    path: Path
    cut: dict[str, Any]
    damaged: list[str]


def newest(
    where: Path,
    comm: Communicator,
    identity: dict[str, Any],
    epochs: int,
    lay_out: Callable[[dict[str, Any]], Blocks],
    warn: Callable[[str], None],
    required: bool = False,
    again: bool = False,
) -> Found | None:
    """Restore the newest whole checkpoint, or the one before if it is damaged. Collective, within `guard`.

    In a folder those of a longer run that are beyond the last epoch are passed over, unless there is no other.

    Parameters
    ----------
    where : Path
        Of a folder of checkpoints, or of one of them.
    identity : dict
        Of the run that is to go on, see `Manifest`.
    epochs : int
        That it is to have.
    lay_out : function of a cut
        Makes this rank ready for it, and returns its blocks, to be written to. May be collective; raises FormatError,
        on all ranks, if the cut does not fit. Where nothing could be restored, the blocks have any content.
    warn : called on each rank with the same sentence for each checkpoint that is damaged
    required : bool
        It is an error if there is none; otherwise only damage to the one that `where` names is.
    again : bool
        The run has begun already: then it is none that there is nothing to go on from.

    Raises
    ------
    ConfigError
        It is of other data or settings, or beyond the last epoch.
    FormatError
        The one named is damaged, or there is none.
    """
    identity = json.loads(json.dumps(identity))
    one, names = is_checkpoint(where), list[str]()
    if comm.rank == 0:
        every = [where] if one else checkpoints_in(where)
        within = every if one else [path for path in every if not _is_beyond(*position(path)[:2], epochs)]
        names = [str(path) for path in within or every * (not again)]
    one, names = comm.gather([one, names])[0]
    for number, path in enumerate(map(Path, names)):
        manifest, problem = None, None
        try:
            manifest = read_manifest(path)
            if comm.rank == 0:
                manifest.require_sizes(path)
        except (FormatError, StorageError) as error:
            problem = str(error)
        problem = _first(comm.gather(problem))
        if manifest is not None and problem is None:
            require_same(path, manifest, identity, epochs)
            try:
                problem = restore(path, manifest, lay_out(manifest.cut))
            except FormatError as error:
                problem = f"{path}: is foreign: {error}"
            problem = _first(comm.gather(problem))
            if problem is None:
                return Found(path, manifest.cut, [Path(name).name for name in names[:number]])
        if one and not again:
            raise FormatError(str(problem))
        last = number == len(names) - 1
        warn(f"{problem}; {'there is no checkpoint before it' if last else 'the checkpoint before it is tried'}")
    if required and not again:
        raise FormatError(f"{where}: has no checkpoint to go on from")
    return None


def require_same(path: Path, manifest: Manifest, identity: dict[str, Any], epochs: int) -> None:
    """Raise ConfigError unless a run of `identity` and so many epochs can go on from a checkpoint to the same bits."""
    if difference := manifest.difference(identity):
        raise ConfigError(f"{path}: {difference}; go on with what it is of, or choose another checkpoint")
    epoch, step = manifest.cut["epoch"], manifest.cut["step"]
    if _is_beyond(epoch, step, epochs):
        raise ConfigError(f"{path}: is of epoch {epoch}, beyond epochs={epochs}; ask for more, or start anew elsewhere")


def _is_beyond(epoch: int, step: int, epochs: int) -> bool:
    return epoch - (step == 0) > epochs  # before its first step, an epoch is the end of the one before


def restore(path: Path, manifest: Manifest, blocks: Blocks) -> str | None:
    """Read blocks of a checkpoint, each against its checksum. Local.

    Returns
    -------
    str or None
        What is wrong, as a sentence; the blocks have any content then.
    """
    places = {block.key: block for block in manifest.blocks}
    try:
        for key, buffer in blocks:
            place = places.get(key)
            if place is None:
                raise FormatError(f"{path}: is foreign: it has no block {key}")
            if place.bytes != buffer.nbytes:
                raise FormatError(f"{path}: is foreign: block {key} has {place.bytes} bytes instead of {buffer.nbytes}")
            read_block(path, place, buffer.view(np.uint8))
    except (FormatError, StorageError) as error:
        return str(error)
    return None


def read_block(path: Path, place: Block, buffer: np.ndarray, piece: int = PIECE) -> None:
    """Read a block into uint8[n], or, where that is shorter, through it, and compare it with its checksum. Local.

    Raises
    ------
    FormatError
        It is damaged, or its file is missing.
    StorageError
        It can't be read.
    """
    sha, done = hashlib.sha256(), 0
    with open_plain(path / place.file) as file:
        try:
            file.seek(place.begin)
            while done < place.bytes:
                at = done % len(buffer)
                view = buffer[at : at + min(piece, place.bytes - done)]
                count = file.readinto(view)  # type: ignore[attr-defined]
                if not count:
                    break
                sha.update(view[:count])
                done += count
        except OSError as error:
            raise StorageError(f"{path / place.file}: can't be read: {reason(error)}") from error
    if done < place.bytes or sha.hexdigest() != place.sha256:
        raise FormatError(f"{path / place.file}: is damaged: block {place.key} does not match its checksum")


def _first(problems: list[str | None]) -> str | None:
    return next((problem for problem in problems if problem), None)
