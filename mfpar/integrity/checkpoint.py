"""Checks a checkpoint, in bounded memory: docs/format.md says what has to hold."""

import os

import numpy as np

from mfpar.errors import FormatError, StorageError
from mfpar.integrity.findings import PIECE, Findings
from mfpar.recovery.manifest import MANIFEST, read_manifest
from mfpar.recovery.reading import read_block


def check_checkpoint(found: Findings) -> None:
    """Note all that is damaged in a checkpoint's folder. Local.

    Raises
    ------
    FormatError
        Its manifest is missing or damaged, so that nothing else can be told.
    StorageError
        It can't be read.
    """
    found.kind = "checkpoint"
    manifest = read_manifest(found.path)
    found.counts = {"blocks": len(manifest.blocks), "files": len(manifest.files)}
    with found.part("manifest"):
        manifest.require_sizes(found.path)
    buffer = np.empty(PIECE, np.uint8)
    for block in manifest.blocks:
        found.parts += 1
        found.bytes += block.bytes
        try:
            read_block(found.path, block, buffer)
        except (FormatError, StorageError) as error:
            found.note(error)
    if found.damage and not os.path.lexists(found.path / MANIFEST):
        raise FormatError(f"{found.path}: was removed by its run while it was read")
