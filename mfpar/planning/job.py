"""What is to be trained, as far as a plan cares: the sizes of blocks, read from a file or made from a description."""

import functools
import math
from dataclasses import dataclass

import numpy as np

from mfpar.blockfile import BlockedFile, index_dtype
from mfpar.config import ModelConfig, TrainConfig
from mfpar.errors import ConfigError
from mfpar.grid import default_grid
from mfpar.shards import Layout

BLOCKS_A_WORKER = 4  # row-blocks of each worker, at least, where the grid is free: docs/running.md
VALUE_BYTES = 4  # of a rating, and of its weight


@dataclass(frozen=True)
class Job:
    """The blocks of a run.

    Attributes
    ----------
    rows, cols : int64[G]
        Rows and columns of each block.
    counts : dict of int64[G, G]
        Ratings of each block, by part: "train", and "test" where there is one.
    layout : Layout
        Of a block of P and Q.
    seed : int
        Of the order of column-blocks.
    rating_bytes : int
        Of a rating, in memory and in the file.
    ratings : int
        Of training, in all.
    epochs : int
    evaluated : bool
        Held-out ratings are measured after each epoch, for which column-blocks go home.
    ways_back : int
        States to go back to that are part of what replicas and checkpoints hold.
    replicas : int
        Copies of each rank's state on other ranks, 0 or 1.
    checkpoint : bool
        There is one from time to time.
    skew : float
        Standard deviation of the ratings of a block over their mean, where `counts` has only the mean.
    """

    rows: np.ndarray
    cols: np.ndarray
    counts: dict[str, np.ndarray]
    layout: Layout
    seed: int
    rating_bytes: int
    ratings: int
    epochs: int = 20
    evaluated: bool = False
    ways_back: int = 0
    replicas: int = 0
    checkpoint: bool = False
    skew: float = 0.0

    @classmethod
    def of_file(cls, file: BlockedFile, model: ModelConfig, train: TrainConfig) -> "Job":
        """The blocks of a file."""
        rows, cols = file.grid.row_sizes, file.grid.col_sizes
        parts = ("train", "test") if file.header.test_ratings else ("train",)
        return cls(
            rows=rows,
            cols=cols,
            counts={part: file.counts(part) for part in parts},
            layout=Layout.of(model, train),
            seed=train.seed,
            rating_bytes=_rating_bytes(rows, cols, file.header.weighted),
            ratings=file.header.ratings,
            epochs=train.epochs,
            evaluated=len(parts) > 1 or train.validates,
            ways_back=train.ways_back,
        )

    @classmethod
    def of_shape(
        cls,
        shape: tuple[int, int],
        ratings: int,
        model: ModelConfig,
        train: TrainConfig,
        grid: int | None = None,
        skew: float = 0.0,
        workers: int = 1,
    ) -> "Job":
        """Blocks of equal sizes.

        Parameters
        ----------
        grid : blocks a side; None: as many as `mfpar convert` would make, and enough for so many `workers`

        Raises
        ------
        ConfigError
            There are more ratings than cells, or more blocks than rows or columns.
        """
        m, n = shape
        if not 0 < ratings <= m * n:
            raise ConfigError(
                f"{ratings:,} ratings in {m:,} × {n:,} cells: expected from 1 to as many as there are cells"
            )
        size = grid or min(max(default_grid(m, n, ratings), BLOCKS_A_WORKER * workers), m, n)
        if size > min(m, n):
            raise ConfigError(
                f"a grid of {size} needs at least as many rows and columns, but the shape is {m:,} × {n:,}"
            )
        rows, cols = (np.diff(np.arange(size + 1) * side // size) for side in shape)
        # One number seen as a table: a grid of 16,384 would fill 2 GB.
        counts = np.broadcast_to(np.int64(-(-ratings // size**2)), (size, size))
        layout = Layout.of(model, train)
        rating_bytes = _rating_bytes(rows, cols, False)
        return cls(
            rows, cols, {"train": counts}, layout, train.seed, rating_bytes, ratings, train.epochs,
            ways_back=train.ways_back, skew=skew,
        )  # fmt: skip

    @property
    def size(self) -> int:
        """G."""
        return len(self.rows)

    @property
    def block_bytes(self) -> np.ndarray:
        """int64[G]: bytes of each column-block, as it is sent."""
        return np.array([4 * self.layout.floats(int(size)) for size in self.cols])

    @functools.cached_property
    def strips(self) -> np.ndarray:
        """int64[G]: training ratings of each row-block."""
        total: np.ndarray = self.counts["train"].sum(axis=1)
        return total

    def met(self, order: np.ndarray, step: int) -> np.ndarray:
        """float64[G]: ratings of the block that each row-block visits in a step."""
        places = np.arange(self.size)
        train = self.counts["train"]
        if not self.skew:
            met: np.ndarray = train[places, order[(places + step) % self.size]].astype(np.float64)
            return met
        deviation = math.sqrt(math.log1p(self.skew**2))
        drawn = np.random.default_rng([self.seed, step]).standard_normal(self.size)
        noise: np.ndarray = np.exp(deviation * drawn - deviation**2 / 2)  # of mean 1
        return noise * float(train[0, 0])


def _rating_bytes(rows: np.ndarray, cols: np.ndarray, weighted: bool) -> int:
    return index_dtype(rows).itemsize + index_dtype(cols).itemsize + VALUE_BYTES * (1 + weighted)
