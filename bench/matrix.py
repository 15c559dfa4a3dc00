"""A seeded generator of rating matrices: planted factors, power-law rows and columns, in the shapes of known data."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shape:
    """Rows, columns and ratings of a data set."""

    rows: int
    cols: int
    ratings: int

    def scaled(self, scale: float) -> "Shape":
        """A matrix of the same density: both sides by the root of the scale."""
        return Shape(int(self.rows * scale**0.5), int(self.cols * scale**0.5), int(self.ratings * scale))


SHAPES = {
    "ml-1m": Shape(6_040, 3_706, 1_000_209),
    "ml-10m": Shape(71_567, 10_681, 8_000_000),
    "ml-20m": Shape(138_493, 26_744, 20_000_263),
}


def ratings(shape: Shape, seed: int = 0, factors: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw distinct cells by power laws, and ratings 0.5 … 5 from planted factors and noise.

    Returns
    -------
    users, items, values
        int64[ratings], int64[ratings], float32[ratings], in random order.
    """
    rng = np.random.default_rng(seed)
    cells = np.empty(0, np.int64)
    drawn = int(shape.ratings * 1.3)
    while len(cells) < shape.ratings:
        users = rng.choice(shape.rows, drawn, p=_popularity(rng, shape.rows, 0.8, 50))
        items = rng.choice(shape.cols, drawn, p=_popularity(rng, shape.cols, 0.9, 20))
        cells = np.unique(np.concatenate((cells, users * shape.cols + items)))
    users, items = np.divmod(rng.permutation(cells)[: shape.ratings], shape.cols)
    P = rng.normal(0, 0.6, (shape.rows, factors)).astype(np.float32)
    Q = rng.normal(0, 0.6, (shape.cols, factors)).astype(np.float32)
    values = np.empty(shape.ratings, np.float32)
    for first in range(0, shape.ratings, 1 << 20):
        some = slice(first, first + (1 << 20))
        planted = np.einsum("ij,ij->i", P[users[some]], Q[items[some]])
        noisy = 3.5 + planted + rng.normal(0, 0.8, len(planted))
        values[some] = np.clip(np.round(2 * noisy) / 2, 0.5, 5)
    return users, items, values


def _popularity(rng: np.random.Generator, count: int, exponent: float, offset: int) -> np.ndarray:
    weights = rng.permutation(1 / (np.arange(count) + offset) ** exponent)
    return weights / weights.sum()
