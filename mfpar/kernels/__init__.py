"""Compiled inner loops: arrays and scalars in, sums out. The only place that knows Numba."""

from mfpar.kernels.kind import (
    ABSOLUTES,
    COUNTED,
    DESCENT,
    LOSS,
    REFUSED,
    RIGHT,
    SCORES,
    SQUARES,
    SUMS,
    VALUE,
    Kind,
    Knobs,
)
from mfpar.kernels.objective import link_kernel, register
from mfpar.kernels.pairs import pairs_kernel
from mfpar.kernels.score import contrast_kernel, score_kernel
from mfpar.kernels.turns import (
    BEGAN,
    CAME,
    CLOCKS,
    DONE,
    ENDED,
    FINISHED,
    SLOT,
    STARTED,
    WAITED,
    WIDTH,
    WORKED,
    Turns,
    announce_all,
    finish,
    have_ended,
)
from mfpar.kernels.update import update_kernel

__all__ = [
    "ABSOLUTES", "BEGAN", "CAME", "CLOCKS", "COUNTED", "DESCENT", "DONE", "ENDED", "FINISHED", "LOSS", "REFUSED",
    "RIGHT", "SCORES", "SLOT", "SQUARES", "STARTED", "SUMS", "VALUE", "WAITED", "WIDTH", "WORKED",
    "Kind", "Knobs", "Turns", "announce_all", "contrast_kernel", "finish", "have_ended", "link_kernel", "pairs_kernel",
    "register", "score_kernel", "update_kernel",
]  # fmt: skip
