"""The sorted ratings on their way into the file: each block in the order in which training takes it."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from mfpar.blockfile import Header
from mfpar.grid import Grid
from mfpar.kernels.spread import RUN
from mfpar.parallel.comm import Communicator
from mfpar.ratings.blocks import BATCH, Block, SortedRatings, Statistics
from mfpar.ratings.blockwriter import BlockedWriter
from mfpar.ratings.columns import Wanted
from mfpar.ratings.ordering import UNKNOWN, spread

AHEAD = min(4, os.cpu_count() or 1)  # blocks whose orders are sought at a time


def write_blocks(
    writer: BlockedWriter, ordered: SortedRatings, grid: Grid, seed: int, wanted: Wanted, comm: Communicator
) -> Header:
    """Write all ratings of this rank, and return the header of the whole file. Collective."""
    statistics = Statistics(comm)
    test = unknown = 0
    for block, order in _with_orders(ordered):
        i, j, rows, cols, values = block.i, block.j, block.rows, block.cols, block.values
        if block.held:
            test += len(values)
            unknown += int(np.count_nonzero((rows >= UNKNOWN) | (cols >= UNKNOWN)))
            rows, cols = np.minimum(rows, grid.row_sizes[i]), np.minimum(cols, grid.col_sizes[j])
            writer.append("test", i, j, rows, cols, values)
        else:
            statistics.add(values)
            weights = None if block.weights is None else block.weights[order]
            writer.append("train", i, j, rows[order], cols[order], values[order], weights)
    count, mean, deviation, minimum, maximum = statistics.total()
    told = np.array(comm.gather([test, unknown, ordered.duplicates]), np.int64)
    test, unknown, duplicates = told.sum(0).tolist()
    return Header(
        rows=int(grid.row_cuts[-1]),
        cols=int(grid.col_cuts[-1]),
        ratings=count,
        test_ratings=test,
        test_unknown=unknown,
        duplicates=duplicates,
        seed=seed,
        streams=RUN,
        mean=mean,
        deviation=deviation,
        minimum=minimum,
        maximum=maximum,
        implicit=not wanted.rating,
        weighted=wanted.weighted,
    )


def _with_orders(blocks: Iterable[Block]) -> Iterator[tuple[Block, np.ndarray]]:
    """Each block with the order of its ratings, which threads find while others are fetched and written.

    Together those that wait hold no more ratings than a batch, which memory is counted for: a larger block is alone.
    """
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting: deque[tuple[Block, Future[np.ndarray]]] = deque()
        ratings = 0
        for block in blocks:
            waiting.append((block, pool.submit(spread, block.rows, block.cols, block.held)))
            ratings += len(block.values)
            while len(waiting) > AHEAD or ratings > BATCH:
                first, order = waiting.popleft()
                ratings -= len(first.values)
                yield first, order.result()
        for first, order in waiting:
            yield first, order.result()
