"""Files of several ranks: a shard of each, and a master whose virtual datasets show them as a whole.

Order makes it safe. Shards get names that never occurred before, the master is renamed into place when all of them are
on the disk, and only then the shards of the file that it replaces are removed: whatever fails, wherever, the master at
the output path is whole and shows one whole file, the old or the new one. A note beside the shards tells the next one
to write there what belongs to a file that was never finished.
"""

import contextlib
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from mfpar.abandoned import claimed, held, remove_abandoned
from mfpar.atomic import TOKEN, DiskFile, make_folder, replacing, storage_errors
from mfpar.errors import FormatError, MfparError, RankLostError
from mfpar.formats import require_hdf5
from mfpar.parallel.comm import Communicator

SHARD = r"([0-9a-f]{8})-\d+of\d+\.h5"  # the name of a shard: token, rank and ranks
UNFINISHED = ".unfinished"  # what the name of such a note ends with
FAMILY = "mfpar "  # what the attribute `format` of all our files begins with


def write_sharded(
    path: Path,
    comm: Communicator,
    write_shard: Callable[[Path], None],
    write_master: Callable[[Path, list[Path]], None],
) -> None:
    """Write a file together. Collective, within `guard`.

    Parameters
    ----------
    path : Path
        The master, on a file system that all ranks share; shards go to `STEM.shards` beside it.
    write_shard : writes this rank's shard to the path given; may be collective; not called where there is one rank
    write_master : writes the master to the path given, over the shards given, which are on the disk; on the first rank
        Without shards, one rank writes everything.

    Raises
    ------
    StorageError
        A rank could not write; nothing new is left behind.
    """
    folder = path.with_name(f"{path.stem}.shards")
    if comm.rank == 0:
        _remove_unfinished(path, folder)
    token = secrets.token_hex(4)
    with contextlib.ExitStack() as noted:
        if comm.rank == 0 and comm.size > 1:
            with storage_errors(path):
                make_folder(folder)
                noted.enter_context(_note(folder, token))
        token = comm.gather(token)[0]  # of a shard there is a note before anybody can write it
        shards = [folder / f"{token}-{rank}of{comm.size}.h5" for rank in range(comm.size)] if comm.size > 1 else []
        if shards:
            with _removed_on_error(shards[comm.rank : comm.rank + 1]):
                with storage_errors(path):
                    folder.mkdir(exist_ok=True)  # it is there, but another machine may remember that it was not
                with replacing(shards[comm.rank]) as temporary:
                    write_shard(temporary)
                comm.gather(None)  # all shards are on the disk
        replaced = _shards_of(path) if comm.rank == 0 else []
        # From here on only the rank that writes the master may remove shards: it alone knows that no master shows them.
        if comm.rank == 0:
            with _removed_on_error(shards), replacing(path) as temporary:
                write_master(temporary, shards)
            for old in replaced:  # before others go on: if one were lost then, the next file would not know of these
                old.unlink(missing_ok=True)
        comm.gather(None)  # the master is in place
    if replaced:
        _remove_if_empty(folder)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file, for which a full disk is an OSError."""
    with contextlib.closing(DiskFile(path)) as disk:
        with h5py.File(disk, "w", libver="latest") as file:
            yield file
        disk.check()


def show_shards(target: h5py.File, shards: Sequence[Path], names: Sequence[str]) -> None:
    """Make virtual datasets in a master: each the rows of the shards' datasets of that name, one after the other.

    They name the shards relative to the master, so that both can be moved together.
    """
    parts: dict[str, list[tuple[str, tuple[int, ...], np.dtype]]] = {name: [] for name in names}
    for shard in shards:
        with h5py.File(shard, "r") as source:
            for name in names:
                if name in source and len(source[name]):
                    dataset = source[name]
                    parts[name].append((f"{shard.parent.name}/{shard.name}", dataset.shape, dataset.dtype))
    for name, pieces in parts.items():
        if not pieces:  # of no length: nothing to be shown
            with h5py.File(shards[0], "r") as source:
                target.create_dataset(name, source[name].shape, source[name].dtype)
            continue
        shape, dtype = pieces[0][1:]
        layout = h5py.VirtualLayout((sum(piece[1][0] for piece in pieces), *shape[1:]), dtype)
        start = 0
        for relative, own, _ in pieces:
            layout[start : start + own[0]] = h5py.VirtualSource(relative, name, own, dtype)
            start += own[0]
        target.create_virtual_dataset(name, layout, fillvalue=np.nan if dtype.kind == "f" else None)


def shards_shown(file: h5py.File) -> set[str]:
    """The files that an open master's virtual datasets show, as it names them: relative to its own folder."""
    shown: set[str] = set()

    def look(_: str, thing: object) -> None:
        if isinstance(thing, h5py.Dataset) and thing.is_virtual:
            shown.update(source.file_name for source in thing.virtual_sources())

    file.visititems(look)
    return shown - {"."}  # HDF5's name for the master itself


def require_shards(file: h5py.File, path: Path, what: str) -> None:
    """Raise FormatError if a shard of an open master is missing, which HDF5 would read as zeros, or no HDF5 file.

    Parameters
    ----------
    what : what the master is, for the message
    """
    folder = path.resolve().parent  # HDF5 too follows a link to the master before it looks for shards
    for name in sorted(shards_shown(file)):
        if not (folder / name).is_file():
            raise FormatError(
                f"{folder / name}: this shard of the {what} {path} is missing; copy it together with its .shards folder"
            )
        require_hdf5(folder / name)


def size_of(file: h5py.File, path: Path) -> int:
    """Bytes of an open master and its shards, or of a file without any."""
    folder = path.resolve().parent
    return sum(one.stat().st_size for one in (path, *(folder / name for name in shards_shown(file))))


def _shards_of(path: Path) -> list[Path]:
    """All shards that were written together with the file that stands at `path`, if that is one of ours."""
    shown: set[Path] = set()
    with contextlib.suppress(OSError, KeyError, ValueError, RuntimeError), h5py.File(path, "r") as master:
        if str(master.attrs.get("format", "")).startswith(FAMILY):
            shown = {Path(name) for name in shards_shown(master)}
    found = {
        (path.parent / one.parent, re.fullmatch(SHARD, one.name))
        for one in shown
        if one.parts[:-1] == (one.parent.name,)
    }
    tokens = {(folder, name[1]) for folder, name in found if name}
    return [
        shard for folder, token in tokens for shard in folder.glob(f"{token}-*.h5") if re.fullmatch(SHARD, shard.name)
    ]


@contextlib.contextmanager
def _note(folder: Path, token: str) -> Iterator[None]:
    """A note, for a while, that shards of this token are of a file that is not finished.

    It stays if a rank was lost, who can't remove its shard; others then may not know whether they are to remove theirs.
    """
    note, stays = folder / f".{token}{UNFINISHED}", False
    try:
        with held(note):
            yield
    except BaseException as error:
        stays = isinstance(error, RankLostError) or not isinstance(error, MfparError)  # MPI's own are named later
        raise
    finally:
        if not stays:
            note.unlink(missing_ok=True)
        _remove_if_empty(folder)


def _remove_unfinished(path: Path, folder: Path) -> None:
    """Remove shards that ranks which were killed have left of a file that did not come to be."""
    remove_abandoned(folder.glob(f".{TOKEN}-*of*.h5.{TOKEN}.tmp"))
    shown = {shard.name for shard in _shards_of(path)}
    for note in folder.glob(f".{TOKEN}{UNFINISHED}"):
        with claimed(note) as abandoned:
            shards = [one for one in folder.glob(f"{note.name[1:9]}-*.h5") if re.fullmatch(SHARD, one.name)]
            if abandoned and not shown.intersection(shard.name for shard in shards):
                for shard in shards:
                    shard.unlink(missing_ok=True)
            if abandoned:
                note.unlink(missing_ok=True)
    _remove_if_empty(folder)


@contextlib.contextmanager
def _removed_on_error(shards: list[Path]) -> Iterator[None]:
    """Leave nothing of these shards behind if what is done here fails."""
    try:
        yield
    except BaseException:
        for shard in shards:
            shard.unlink(missing_ok=True)
        if shards:
            _remove_if_empty(shards[0].parent)
        raise


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not empty, or another rank was faster
        folder.rmdir()
