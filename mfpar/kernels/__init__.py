"""Compiled inner loops: arrays and scalars in, sums out. The only place that knows Numba."""

from mfpar.kernels.score import score_kernel
from mfpar.kernels.update import update_kernel

__all__ = ["score_kernel", "update_kernel"]
