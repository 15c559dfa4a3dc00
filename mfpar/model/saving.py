"""Writing a trained model: every rank its own shard, then one master file that shows them as a whole."""

import hashlib
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mfpar.blockfile import BlockedFile, digest
from mfpar.engine.training import Training
from mfpar.errors import DivergedError
from mfpar.model.opening import CHECKSUMS, FORMAT, TABLES, VERSION, checksum_of
from mfpar.parallel.comm import Communicator
from mfpar.sharded import new_file, show_shards, write_sharded


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
    checksums = _gathered_checksums(training, file, comm)
    factors = (checksums[name] for name in ("row_checksums", "col_checksums"))
    fingerprint = hashlib.sha256(b"".join(sums.tobytes() for sums in factors)).hexdigest()
    small = checksums | {"row_cuts": file.grid.row_cuts, "col_cuts": file.grid.col_cuts}
    attributes = _attributes(training, file, record) | {"fingerprint": fingerprint}
    attributes["checksum"] = checksum_of(attributes, small)

    def write_shard(temporary: Path) -> None:
        with new_file(temporary) as target:
            _write_blocks(target, training, file)

    def write_master(temporary: Path, shards: list[Path]) -> None:
        with new_file(temporary) as target:
            if shards:
                show_shards(target, shards, TABLES)
            else:
                _write_blocks(target, training, file)
            for name, array in small.items():
                target[name] = array
            target.attrs.update(attributes)

    write_sharded(path, comm, write_shard, write_master)
    return fingerprint


def _gathered_checksums(training: Training, file: BlockedFile, comm: Communicator) -> dict[str, np.ndarray]:
    """Checksum of every block, of rows and of columns, and of the ids of each: uint8[G, 32] each, on every rank."""
    mine = []
    for side, block in (("row", training.row_block), ("column", training.col_block)):
        sums = []
        for index in range(training.first, training.last):
            factors, bias = block(index)
            if not (np.isfinite(factors).all() and np.isfinite(bias).all()):
                raise DivergedError(f"training diverged: {side}-block {index} is not finite; use a smaller --lr")
            sums.append(digest(factors, bias).tobytes().hex())
        mine.append(sums)
    for ids in ("rows", "cols"):
        blocks = range(training.first, training.last)
        mine.append([digest(file.ids(ids, index, index + 1)).tobytes().hex() for index in blocks])
    ranks = comm.gather(mine)
    return {
        name: np.array([list(bytes.fromhex(text)) for rank in ranks for text in rank[side]], np.uint8)
        for side, name in enumerate(CHECKSUMS)
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
