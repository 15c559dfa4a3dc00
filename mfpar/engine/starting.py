"""Starting values of blocks: keyed by the ids of rows and columns, whatever block and rank they lie in."""

import math

import numpy as np

from mfpar.blockfile import BlockedFile
from mfpar.config import ModelConfig
from mfpar.shards import Layout, start_block


class Starter:
    """Fills blocks with what training starts from.

    Parameters
    ----------
    file : BlockedFile
        Whose ids and counts of ratings it reads, block by block.
    model : ModelConfig
    layout : Layout
    seed : int
    unit : float
        Of the ratings; factors are in multiples of its root.
    """

    def __init__(self, file: BlockedFile, model: ModelConfig, layout: Layout, seed: int, unit: float):
        self._file, self._model, self._layout, self._seed = file, model, layout, seed
        self._scale = model.init_scale * math.sqrt(unit)

    def fill(self, block: np.ndarray, side: str, index: int) -> None:
        """Fill the block of a side ("rows", "cols") with this number; float32[floats]."""
        ids = self._file.ids(side, index, index + 1)
        start_block(block, self._layout, ids, self._seed, side, self._model.init, self._scale)
        if self._model.nonnegative:
            rows = self._layout.rows(block, len(ids))
            np.abs(rows, out=rows)
        if self._layout.scaled:
            counts = self._file.ratings_of(side, index, index + 1)
            self._layout.scales(block, len(ids))[:] = 1 / np.maximum(counts, 1)
