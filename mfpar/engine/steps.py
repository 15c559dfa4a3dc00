"""The kernels of a run, compiled for its settings, and how they are called on blocks."""

import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mfpar.blockfile import BlockedFile, Strip
from mfpar.config import ModelConfig, TrainConfig
from mfpar.engine.objective import Objective
from mfpar.kernels import (
    Kind,
    contrast_kernel,
    pairs_kernel,
    register,
    score_kernel,
    update_kernel,
)
from mfpar.parallel.comm import Communicator
from mfpar.shards import Layout

NO_WEIGHTS = np.empty(0, np.float32)


class Steps:
    """Kernels by what they do. Collective: the first rank of each node compiles before the others, which find it there.

    Attributes
    ----------
    update : kernel that changes the model
    score : kernel that measures how predictions fit ratings
    contrast : kernel that measures how positives go before other cells, or None where a loss does not ask
    """

    def __init__(self, objective: Objective, layout: Layout, train: TrainConfig, file: BlockedFile, comm: Communicator):
        self._kind = kind_of(objective, layout, train, file.dtypes("train"))
        hosts = comm.gather(socket.gethostname())
        first_here = hosts.index(hosts[comm.rank])
        for turn in (True, False):
            if turn == (comm.rank == first_here):
                self._compile()
            comm.gather(None)

    def _compile(self) -> None:
        kind = self._kind
        self.update = updating(kind)
        self.score = score_kernel(kind)
        self.contrast = contrast_kernel(kind) if kind.cells != "rated" else None

    def checked(self) -> Callable[..., Any]:
        """The updating kernel in a form that refuses steps which are not finite; compiled now. Local."""
        return updating(replace(self._kind, checked=True))


def updating(kind: Kind) -> Callable[..., Any]:
    """The kernel that changes the model."""
    return (pairs_kernel if kind.cells in ("row", "col") else update_kernel)(kind)


def kind_of(objective: Objective, layout: Layout, train: TrainConfig, dtypes: Mapping[str, np.dtype]) -> Kind:
    """The compile-time constants of a run's kernels, for ratings in arrays of these types."""
    model: ModelConfig = objective.model
    return Kind(
        stride=layout.stride,
        factors=model.factors,
        loss=register(objective.loss),
        biases=model.biases,
        adagrad=train.optimizer == "adagrad",
        row_dtype=dtypes["rows"].name,
        col_dtype=dtypes["cols"].name,
        cells=objective.cells,
        every=objective.every,
        weighted="weights" in dtypes,
        paced=train.lr_row_bias is not None or train.lr_col_bias is not None or objective.unit != 1,
        scaled=layout.scaled,
        l1=objective.l1,
        nonnegative=model.nonnegative,
    )


def arrays_of(strip: Strip) -> tuple[np.ndarray, ...]:
    """A strip as kernels take it."""
    weights = NO_WEIGHTS if strip.weights is None else strip.weights
    return strip.offsets, strip.rows, strip.cols, strip.values, weights
