"""What is constant in a kernel, what it takes, and where things lie in a block."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from numba import types

from mfpar.kernels.turns import TURNS


@dataclass(frozen=True)
class Kind:
    """The compile-time constants of the kernels of a run: nobody pays for an option that he does not use."""

    stride: int  # floats from one row of factors to the next: `factors` rounded up to a multiple of 8
    factors: int
    loss: str  # its key, see `mfpar.kernels.objective.register`
    biases: bool
    adagrad: bool
    row_dtype: str  # "uint16" or "uint32": of the ratings' row indices
    col_dtype: str
    every: int = 1  # of how many ratings the value is computed for one
    cells: str = "rated"  # or "row", "col": pairs; "sampled", "all": one-class (see `mfpar.losses.Loss`)
    weighted: bool = False
    paced: bool = False  # AdaGrad: biases go at other rates than factors
    scaled: bool = False  # regularisation per row: each row and column has a factor of its own
    l1: bool = False
    nonnegative: bool = False
    checked: bool = False

    @property
    def name(self) -> str:
        """Tells this kind from all others but for its loss."""
        flags = ("biases", "adagrad", "weighted", "paced", "scaled", "l1", "nonnegative", "checked")
        chosen = [flag for flag in flags if getattr(self, flag)]
        return "_".join((f"k{self.factors}", f"every{self.every}", self.cells, *chosen, self.dtypes))

    @property
    def dtypes(self) -> str:
        """Of the ratings' indices, for a name."""
        return f"{self.row_dtype}_{self.col_dtype}"


class Knobs(NamedTuple):
    """The run-time constants of an epoch, float32 each; b are row biases, c column biases."""

    base: Any
    p_rate: Any
    q_rate: Any
    b_rate: Any
    c_rate: Any
    p_reg: Any
    q_reg: Any
    b_reg: Any
    c_reg: Any
    p_l1: Any
    q_l1: Any
    b_l1: Any
    c_l1: Any
    share: Any  # of a squared gradient that AdaGrad's sum takes: 1 / factors, in the unit of the ratings
    weight: Any  # one-class: of a cell without a rating
    target: Any  # one-class: what it is taken for


KNOBS = types.NamedUniTuple(types.float32, len(Knobs._fields), Knobs)

# What a row-block's sums are of: the loss's value, over how many ratings; with biases, minus the gradient; if checked,
# the steps refused, and r and z of the first.
VALUE, COUNTED, DESCENT, REFUSED = range(4)
SUMS = 6

# What a row-block's scores are sums of: the loss's value, squared and absolute errors of the prediction, right answers.
LOSS, SQUARES, ABSOLUTES, RIGHT = range(4)
SCORES = 4


def strip_types(kind: Kind) -> tuple[Any, ...]:
    """Numba types of a strip: offsets, rows, cols, values, weights."""
    row, col = (getattr(types, name) for name in (kind.row_dtype, kind.col_dtype))
    return types.int64[:, ::1], row[::1], col[::1], types.float32[::1], types.float32[::1]


# Numba types of P, p_starts, p_counts, Q, q_counts.
FACTORS_TYPES = (types.float32[::1], types.int64[::1], types.int64[::1], types.float32[::1], types.int64[::1])


def step_types(kind: Kind) -> Any:
    """Signature of the kernels that change the model; see `mfpar.kernels.update.update_kernel`."""
    return types.void(TURNS, *strip_types(kind), *FACTORS_TYPES, KNOBS, types.uint64, types.float64[:, ::1])
