"""The order of the ratings inside a block: sixteen after sixteen of distinct rows and columns, as far as there are any.

Such ratings don't wait for each other, and a kernel may take them together (`mfpar.kernels.update`). They come from as
many streams as there are ratings in a run, each a segment of the block in which rows follow one another, so that few
rows of P are in use at a time.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from mfpar.kernels.compile import compiled
from mfpar.kernels.lanes import LANES

RUN = LANES  # ratings that a kernel may take together, and streams
REACH = 64  # ratings of a stream that are looked at for one that fits


@functools.cache
def spread_kernel() -> Callable[..., Any]:
    """Compile `spread(rows, cols, row_runs, col_runs, order)`.

    rows, cols : int64[n]
        Of the ratings, by row.
    row_runs, col_runs : int64[rows], int64[columns]
        −1 in each; afterwards the last run that has the row (column).
    order : int64[n]
        0 … n − 1; becomes the order.
    """
    one = types.int64[::1]

    @compiled("spread", types.void(one, one, one, one, one))
    def spread(rows, cols, row_runs, col_runs, order):
        count = len(order)
        length = -(-count // RUN)
        rest = order.copy()
        heads = np.minimum(np.arange(RUN) * length, count)
        ends = np.minimum(heads + length, count)
        stream = 0
        for n in range(count):
            run, found, spare = n // RUN, -1, -1
            for turn in range(RUN):
                s = (stream + turn) % RUN
                if spare < 0 and heads[s] < ends[s]:
                    spare = s  # where nothing fits: its next rating
                for at in range(heads[s], min(heads[s] + REACH, ends[s])):
                    if row_runs[rows[rest[at]]] < run and col_runs[cols[rest[at]]] < run:
                        found, spare = at, s
                        break
                if found >= 0:
                    break
            stream = spare
            at = found if found >= 0 else heads[stream]
            chosen = rest[at]
            rest[heads[stream] + 1 : at + 1] = rest[heads[stream] : at].copy()  # the others keep their order
            heads[stream] += 1
            order[n] = chosen
            row_runs[rows[chosen]] = col_runs[cols[chosen]] = run
            stream = (stream + 1) % RUN

    return spread
