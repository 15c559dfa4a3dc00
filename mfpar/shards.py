"""What a rank holds of P and Q: blocks in one flat float32 buffer, each block a message that can be sent as it lies.

A block of n rows is laid out as n + 1 rows of factors, then n + 1 biases (if any), then n + 1 scales of regularisation
(if it counts per row), then n + 1 floats for each piece of optimizer state. Row n is the *stranger*: never updated, it
stands for every id that training has not seen, so that a held-out rating of an unknown id is scored like any other.
"""

from dataclasses import dataclass

import numpy as np

from mfpar.config import ModelConfig, TrainConfig
from mfpar.hashing import GOLDEN, hashed, mixed
from mfpar.parallel.memory import ALIGNMENT, aligned

LANES = 8  # a row of factors is padded with zeros to a multiple of this (see mfpar.kernels.vector)
SIDES = {"rows": 0, "cols": 1}
CHUNK = 1 << 17  # starting values drawn at a time, in arrays that the cache holds


@dataclass(frozen=True)
class Layout:
    """Where things lie inside a block."""

    factors: int
    biases: bool
    states: int = 0  # floats of optimizer state a row
    scaled: bool = False  # a scale of regularisation a row

    @classmethod
    def of(cls, model: ModelConfig, train: TrainConfig) -> "Layout":
        """The layout that a run needs: AdaGrad keeps one running sum for each row."""
        return cls(model.factors, model.biases, int(train.optimizer == "adagrad"), model.reg_per == "row")

    @property
    def stride(self) -> int:
        """Floats from one row of factors to the next."""
        return -(-self.factors // LANES) * LANES

    def floats(self, size: int) -> int:
        """Floats of a block of `size` rows, the stranger and the padding to whole cache lines included."""
        per_line = ALIGNMENT // 4
        needed = (size + 1) * (self.stride + self.biases + self.scaled + self.states)
        return -(-needed // per_line) * per_line

    def rows(self, block: np.ndarray, size: int) -> np.ndarray:
        """View float32[size, factors] of a block's factors."""
        return block[: size * self.stride].reshape(size, self.stride)[:, : self.factors]

    def stranger(self, block: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Views of the stranger's factors float32[factors] and bias float32[biases]."""
        bias = (size + 1) * self.stride + size
        return block[size * self.stride :][: self.factors], block[bias : bias + self.biases]

    def bias(self, block: np.ndarray, size: int) -> np.ndarray:
        """View float32[size] of a block's biases; zeros where the model has none."""
        if not self.biases:
            return np.zeros(size, np.float32)
        start = (size + 1) * self.stride
        return block[start : start + size]

    def scales(self, block: np.ndarray, size: int) -> np.ndarray:
        """View float32[size] of a block's scales of regularisation; empty where there are none."""
        start = (size + 1) * (self.stride + self.biases)
        return block[start : start + size * self.scaled]

    def state(self, block: np.ndarray, size: int) -> np.ndarray:
        """View float32[states, size + 1] of a block's optimizer state."""
        start = (size + 1) * (self.stride + self.biases + self.scaled)
        return block[start : start + self.states * (size + 1)].reshape(self.states, size + 1)


def start_block(
    block: np.ndarray, layout: Layout, ids: np.ndarray, seed: int, side: str, init: str = "uniform", scale: float = 0.01
) -> None:
    """Fill a block with its starting values: small random factors, zero biases, AdaGrad sums of one.

    Values come from a counter-based generator keyed by (seed, side, id): a row starts alike in whatever file, block or
    rank it lies. Arithmetic alone makes them, which no version of NumPy will change.

    Parameters
    ----------
    ids : int64[n] or bytes[n]
        Of the block's rows.
    side : "rows" or "cols"
    init : "uniform", "normal" or "positive"
        Uniform around zero, close to normal around zero (the sum of four uniform numbers), or uniform from zero on.
    scale : float
        Root mean square of the factors.
    """
    block[:] = 0
    rows = layout.rows(block, len(ids))
    lanes = np.arange(1, layout.factors + 1, dtype=np.uint64) * GOLDEN
    count = max(1, CHUNK // layout.factors)
    for first in range(0, len(ids), count):
        keys = mixed(hashed(ids[first : first + count]) ^ mixed(np.array([seed * 2 + SIDES[side]], np.uint64)))
        bits = mixed(keys[:, None] + lanes)
        if init == "normal":
            quarters = np.zeros_like(bits)
            for shift in (0, 16, 32, 48):
                quarters += (bits >> np.uint64(shift)) & np.uint64(0xFFFF)
            unit = (quarters.astype(np.float32) * np.float32(2.0**-16) - np.float32(2 - 2**-15)) * np.float32(3**0.5)
        else:
            unit = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)  # 24 bits fill a float32: [0, 1)
            unit = unit * np.float32(3**0.5) if init == "positive" else (unit - np.float32(0.5)) * np.float32(12**0.5)
        rows[first : first + count] = unit * np.float32(scale)
    layout.state(block, len(ids))[:] = 1


class Slots:
    """Room for blocks in one aligned buffer.

    Parameters
    ----------
    lengths : floats of each slot, multiples of a cache line
    memory : uint8[Slots.nbytes(lengths)], aligned and full of zeros; None: memory of this process

    Attributes
    ----------
    buffer : float32[:]
    starts : int64[slots]
        Where each slot begins.
    """

    def __init__(self, lengths: list[int], memory: np.ndarray | None = None):
        memory = aligned(self.nbytes(lengths)) if memory is None else memory
        self.buffer = memory.view(np.float32)
        self.starts = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))[:-1]
        self._lengths = lengths

    @staticmethod
    def nbytes(lengths: list[int]) -> int:
        """Bytes that such slots take."""
        return 4 * sum(lengths)

    def __getitem__(self, slot: int) -> np.ndarray:
        """View of a slot."""
        start = self.starts[slot]
        return self.buffer[start : start + self._lengths[slot]]
