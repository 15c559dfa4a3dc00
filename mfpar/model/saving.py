"""Writing a trained model: every rank its own shard, then one master file that shows them as a whole.

Order makes it safe. Shards get names that never occurred before, the master is renamed into place when all of them are
on the disk, and only then the shards of the model that it replaces are removed: whatever fails, wherever, the master
at the output path is whole and shows one whole model, the old or the new one.
"""

import contextlib
import hashlib
import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mfpar.atomic import DiskFile, replacing, storage_errors
from mfpar.blockfile import BlockedFile, digest, format_of, reading
from mfpar.engine.training import Training
from mfpar.errors import DivergedError, FormatError
from mfpar.model.opening import FORMAT, VERSION
from mfpar.parallel.comm import Communicator

SHARD = r"[0-9a-f]{8}-\d+of\d+\.h5"  # the name of a shard: token, rank and ranks


def save_model(path: Path, training: Training, file: BlockedFile, record: dict[str, Any], comm: Communicator) -> str:
    """Write the model that the ranks hold, in whose `guard` this is called. Collective.

    Parameters
    ----------
    path : Path
        The master, on a file system that all ranks share; shards go to `STEM.shards` beside it.
    training : Training
        After `finish`.
    file : BlockedFile
        That it was trained on; each rank copies the ids of its own blocks.
    record : dict
        Further attributes of the master; dicts and lists are stored as JSON.

    Returns
    -------
    str
        The fingerprint: SHA-256 (hex) over the checksums of all row-blocks, then of all column-blocks.

    Raises
    ------
    StorageError
        A rank could not write; nothing new is left behind.
    DivergedError
        A factor is infinite or undefined.
    """
    checksums = _gathered_checksums(training, comm)
    fingerprint = hashlib.sha256(b"".join(sums.tobytes() for sums in checksums.values())).hexdigest()
    attributes = _attributes(training, file, record) | {"fingerprint": fingerprint}
    folder = path.with_name(f"{path.stem}.shards")
    token = comm.gather(secrets.token_hex(4))[0]
    shards = [folder / f"{token}-{rank}of{comm.size}.h5" for rank in range(comm.size)]
    if comm.size > 1:
        with _removed_on_error(shards[comm.rank : comm.rank + 1]):
            with storage_errors(path):
                folder.mkdir(exist_ok=True)
            with replacing(shards[comm.rank]) as temporary, _new_file(temporary) as target:
                _write_blocks(target, training, file)
            comm.gather(None)  # all shards are on the disk
    replaced = _shards_shown_by(path) if comm.rank == 0 else set()
    # From here on only the rank that writes the master may remove shards: it alone knows that no master shows them.
    if comm.rank == 0:
        with _removed_on_error(shards), replacing(path) as temporary, _new_file(temporary) as target:
            if comm.size > 1:
                _show_shards(target, file, shards)
            else:
                _write_blocks(target, training, file)
            for name, array in checksums.items():
                target[name] = array
            target["row_cuts"], target["col_cuts"] = file.grid.row_cuts, file.grid.col_cuts
            target.attrs.update(attributes)
    comm.gather(None)  # the master is in place
    for old in replaced:
        old.unlink(missing_ok=True)
    if replaced:
        _remove_if_empty(folder)
    return fingerprint


@contextlib.contextmanager
def _removed_on_error(shards: list[Path]) -> Iterator[None]:
    """Leave nothing of these shards behind if what is done here fails."""
    try:
        yield
    except BaseException:
        for shard in shards:
            shard.unlink(missing_ok=True)
        _remove_if_empty(shards[0].parent)
        raise


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file, for which a full disk is an OSError."""
    with contextlib.closing(DiskFile(path)) as disk:
        with h5py.File(disk, "w", libver="latest") as file:
            yield file
        disk.check()


def _gathered_checksums(training: Training, comm: Communicator) -> dict[str, np.ndarray]:
    """Checksum of every block, of rows and of columns: uint8[G, 32] each, on every rank."""
    mine = []
    for side, block in (("row", training.row_block), ("column", training.col_block)):
        sums = []
        for index in range(training.first, training.last):
            factors, bias = block(index)
            if not (np.isfinite(factors).all() and np.isfinite(bias).all()):
                raise DivergedError(f"training diverged: {side}-block {index} is not finite; use a smaller --lr")
            sums.append(digest(factors, bias).tobytes().hex())
        mine.append(sums)
    ranks = comm.gather(mine)
    return {
        name: np.array([list(bytes.fromhex(text)) for rank in ranks for text in rank[side]], np.uint8)
        for side, name in enumerate(("row_checksums", "col_checksums"))
    }


def _attributes(training: Training, file: BlockedFile, record: dict[str, Any]) -> dict[str, Any]:
    header = file.header
    plain = {name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in record.items()}
    return {
        "format": FORMAT,
        "version": VERSION,
        "factors": training.layout.factors,
        "biases": int(training.layout.biases),
        "loss": training.objective.loss.name,
        "link": training.objective.loss.link_name,
        "clip": int(training.objective.model.clip),
        "base": training.base,
        "mean": header.mean,
        "minimum": header.minimum,
        "maximum": header.maximum,
        "ratings": header.ratings,
        "data_checksum": file.checksum,
        "data_path": str(file.path.absolute()),
    } | plain


def _write_blocks(target: h5py.File, training: Training, file: BlockedFile) -> None:
    """Write this rank's rows and columns, block by block."""
    first, last = training.first, training.last
    for side, factors_name, prefix, cuts, block in (
        ("rows", "P", "row", file.grid.row_cuts, training.row_block),
        ("cols", "Q", "col", file.grid.col_cuts, training.col_block),
    ):
        count = int(cuts[last] - cuts[first])
        factors = target.create_dataset(factors_name, (count, training.layout.factors), np.float32)
        biases = target.create_dataset(f"{prefix}_bias", (count,), np.float32)
        ids = target.create_dataset(f"{prefix}_ids", (count,), file.id_dtype(side))
        for index in range(first, last):
            inside = slice(cuts[index] - cuts[first], cuts[index + 1] - cuts[first])
            factors[inside], biases[inside] = block(index)
            ids[inside] = file.ids(side, index, index + 1)


def _show_shards(target: h5py.File, file: BlockedFile, shards: list[Path]) -> None:
    """Virtual datasets over the shards, under names relative to the master, so that both can be moved together."""
    totals = {"P": file.header.rows, "Q": file.header.cols}
    starts = dict.fromkeys(("P", "Q"), 0)
    layouts: dict[str, h5py.VirtualLayout] = {}
    for shard in shards:
        with h5py.File(shard, "r") as source:
            for factors_name, prefix in (("P", "row"), ("Q", "col")):
                start = starts[factors_name]
                for name in (factors_name, f"{prefix}_bias", f"{prefix}_ids"):
                    part = source[name]
                    shape = (totals[factors_name], *part.shape[1:])
                    layout = layouts.setdefault(name, h5py.VirtualLayout(shape, part.dtype))
                    relative = f"{shard.parent.name}/{shard.name}"
                    layout[start : start + len(part)] = h5py.VirtualSource(relative, name, part.shape, part.dtype)
                starts[factors_name] += len(source[factors_name])
    for name, layout in layouts.items():
        target.create_virtual_dataset(name, layout, fillvalue=np.nan if layout.dtype.kind == "f" else None)


def _shards_shown_by(path: Path) -> set[Path]:
    """The shards of the model that stands at `path`, if one does."""
    if format_of(path) != FORMAT:
        return set()
    with contextlib.suppress(FormatError), reading(path, "shards"), h5py.File(path, "r") as master:
        sources = master["P"].virtual_sources() if master["P"].is_virtual else []
        shown = {Path(source.file_name) for source in sources}
        return {path.parent / shard for shard in shown if re.fullmatch(SHARD, shard.name) and len(shard.parts) == 2}
    return set()


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not empty, or another rank was faster
        folder.rmdir()
