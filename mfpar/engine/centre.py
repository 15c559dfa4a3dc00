"""What the average row and column are, and the move of a trained model to where these are zero.

While it trains, z = base + bᵢ + cⱼ + pᵢ·qⱼ, and the errors keep a mean δ that regularisation holds up against the lift
(docs/method.md): predictions add it. With p̄, b̄, q̄, c̄ the averages over training ratings, the same z is

    [base + δ + b̄ + c̄ + p̄·q̄]  +  [bᵢ − b̄ + (pᵢ − p̄)·q̄]  +  [cⱼ − c̄ + (qⱼ − q̄)·p̄]  +  (pᵢ − p̄)·(qⱼ − q̄),

a model of the same form whose average row and column are zero: an unknown id, taken for the average one, contributes
nothing. What the first bracket exceeds the mean of the ratings (in general: the level that scores start from) by goes
to the biases, half to each side.

All sums run elementwise over whole rows or lanes, in float64 and in a fixed order, which no BLAS or SIMD width changes.
"""

from dataclasses import dataclass

import numpy as np

from mfpar.blockfile import SIDES

CHUNK = 1 << 11  # rows at a time, in float64


def weighted_sum(factors: np.ndarray, bias: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """float64[k + 1]: Σ count · (factors, bias) over the rows of a block."""
    total = np.zeros(factors.shape[1] + 1)
    for first in range(0, len(bias), CHUNK):
        some = slice(first, first + CHUNK)
        rows = np.column_stack((factors[some], bias[some])).astype(np.float64) * counts[some, None]
        # Along the outer axis NumPy adds row after row.
        total = np.concatenate((total[None], rows)).sum(axis=0)
    return total


def lanes_dot(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """float64[n]: rows[n, k] · vector[k], lane after lane."""
    total = np.zeros(len(rows))
    for lane, factor in enumerate(vector):
        total += rows[:, lane] * factor
    return total


@dataclass(frozen=True)
class Averages:
    """The average row and column, and the constants that go with them."""

    factors: dict[str, np.ndarray]  # by side, "rows" and "cols": float64[k], p̄ and q̄
    bias: dict[str, float]  # b̄ and c̄
    excess: float  # half of what the first bracket exceeds the ratings' mean by

    @classmethod
    def of(cls, sums: dict[str, list[list[float]]], ratings: int, level: float, fixed: bool = False) -> "Averages":
        """From the blocks' weighted sums of both sides.

        Parameters
        ----------
        sums : by side, the `weighted_sum` of each block, in block order
        ratings : int
            How many ratings were counted.
        level : float
            base + δ − the level that the model's base is to be at.
        fixed : bool
            Factors stay where they are, because they must not be negative; only biases are moved.
        """
        means = {side: np.array(sums[side]).sum(axis=0) / ratings for side in SIDES}
        factors = {side: mean[:-1] * (not fixed) for side, mean in means.items()}
        bias = {side: float(mean[-1]) for side, mean in means.items()}
        product = float(lanes_dot(factors["rows"][None], factors["cols"])[0])
        return cls(factors, bias, (level + bias["rows"] + bias["cols"] + product) / 2)

    def seat_stranger(self, factors: np.ndarray, bias: np.ndarray, side: str) -> None:
        """Make a block's stranger the average row, so that it is scored as the saved model will score it."""
        factors[:], bias[:] = self.factors[side], self.bias[side] - self.excess

    def centre(self, factors: np.ndarray, bias: np.ndarray, side: str) -> None:
        """Move a block, views float32[n, k] and float32[n], to where the average is zero."""
        other = self.factors["cols" if side == "rows" else "rows"]
        for first in range(0, len(bias), CHUNK):
            some = slice(first, first + CHUNK)
            apart = factors[some] - self.factors[side]
            bias[some] = bias[some] - self.bias[side] + lanes_dot(apart, other) + self.excess
            factors[some] = apart
