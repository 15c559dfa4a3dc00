"""Checks a model's files, in bounded memory: docs/format.md says what has to hold."""

import hashlib

import h5py
import numpy as np

from mfpar.errors import MfparError
from mfpar.formats import require_format, require_held
from mfpar.integrity.findings import Findings, Sums, require, require_cuts
from mfpar.model.opening import FORMAT, VERSION, open_model
from mfpar.sharded import require_shards, size_of

SIDES = (("row", "P"), ("col", "Q"))


def check_model(file: h5py.File, found: Findings) -> None:
    """Note all that is damaged in an open model. Local.

    Raises
    ------
    FormatError
        It is no model, of another version, or so damaged that nothing else can be told.
    """
    require_format(file, found.path, FORMAT, VERSION, "a model", "mfpar train")
    require_shards(file, found.path, "model")
    require_held(file, found.path, size_of(file, found.path))
    found.kind = "model"
    found.counts = {"rows": len(file["P"]), "cols": len(file["Q"]), "factors": file["P"].shape[1]}
    with found.part("header"):
        try:
            open_model(found.path)  # attributes and cuts against their checksum, shapes, where the shards lie
        except MfparError as error:
            found.note(error)
    with found.part("fingerprint"):
        sums = b"".join(file[f"{side}_checksums"][()].tobytes() for side, _ in SIDES)
        said = file.attrs["fingerprint"]
        require(
            hashlib.sha256(sums).hexdigest() == said, "row_checksums and col_checksums do not match the fingerprint"
        )
    for side, factors in SIDES:
        damage = len(found.damage)
        cuts = file[f"{side}_cuts"][()]
        with found.part(f"{side}_cuts"):
            require_cuts(cuts, len(file[factors]), f"{side}_cuts")
        if len(found.damage) > damage:
            continue
        _check_blocks(file, (factors, f"{side}_bias"), cuts, f"{side}_checksums", found)
        _check_blocks(file, (f"{side}_ids",), cuts, f"{side}_id_checksums", found)


def _check_blocks(file: h5py.File, names: tuple[str, ...], cuts: np.ndarray, checksums: str, found: Findings) -> None:
    """Compare every block of some datasets with its checksum."""
    stored = file[checksums][()]
    with found.part(checksums):
        require(len(stored) == len(cuts) - 1, f"{checksums} has {len(stored)} blocks, expected {len(cuts) - 1}")
    for block, expected in enumerate(stored[: len(cuts) - 1]):
        name = f"{' and '.join(names)} of block {block}"
        with found.part(name):
            sums = Sums(len(names))
            for arrays in found.pieces(file, names, int(cuts[block]), int(cuts[block + 1])):
                sums.add(arrays)
            sums.require(expected, name)
