"""Bringing to workers what their visits need: all at once where it is in memory, otherwise piece by piece.

A piece is some steps of one row-block (`mfpar.engine.way`). While a kernel works on one, a thread beside it reads the
ratings of the next, and the row-block where rows live in a file; that takes two buffers of each for every worker.
"""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mfpar.engine.rowblocks import RowBlocks
from mfpar.engine.source import Resident, Source, Streamed
from mfpar.engine.steps import arrays_of
from mfpar.engine.way import sweeps
from mfpar.kernels import DONE, Turns

Visit = Callable[[Turns, np.ndarray], None]


@dataclass(frozen=True)
class Call:
    """A kernel and what it works on.

    Attributes
    ----------
    kernel : function of turns, the arrays of each source's strip, those of P and Q, `rest`, sums
    sources : list of Source
    rest : constants
    changes : bool
        Whether it changes rows.
    """

    kernel: Callable[..., None]
    sources: list[Source]
    rest: tuple[Any, ...]
    changes: bool = False


@dataclass(frozen=True)
class Piece:
    """Some steps of one row-block: of a worker's stretches the n-th, in which no other row-block comes in between."""

    stretch: int
    place: int
    since: int
    columns: np.ndarray  # int64[steps]: the column-blocks that it meets, in order


class Feed:
    """What the workers of a rank take their blocks from. Local.

    Parameters
    ----------
    rows : RowBlocks
    row_sizes : int64[B]
    q_side : float32[:] and int64[G]
        The column-blocks' slots, and the sizes of column-blocks with the stranger.
    board : int32[G + 2, WIDTH]
        See `mfpar.kernels.turns`.
    alone : bool
        All row-blocks of the grid are on this node: its workers may run ahead of each other by more than a step.
    threads : of this rank
    """

    def __init__(
        self,
        rows: RowBlocks,
        row_sizes: np.ndarray,
        q_side: tuple[np.ndarray, np.ndarray],
        board: np.ndarray,
        alone: bool,
        threads: int,
    ):
        self._rows, self._row_counts, self._q_side = rows, row_sizes + 1, q_side
        self._board, self._alone = board, alone
        self._readers = ThreadPoolExecutor(threads, "mfpar-reader")  # starts threads when they are needed
        self._nowhere = np.zeros(1, np.int64)  # where the one row-block of a buffer begins

    def visitor(self, call: Call) -> Visit:
        """The function that makes the visits of a worker."""
        if self._rows.resident and all(isinstance(source, Resident) for source in call.sources):
            strips = [array for source in call.sources for array in arrays_of(source.strip)]  # type: ignore[union-attr]
            p_side = self._rows.resident.buffer, self._rows.resident.starts, self._row_counts
            given = *strips, *p_side, *self._q_side, *call.rest
            return lambda turns, sums: call.kernel(turns, *given, sums)
        return lambda turns, sums: self._visit(call, turns, sums)

    def _visit(self, call: Call, turns: Turns, sums: np.ndarray) -> None:
        pieces = list(self._pieces(call.sources, turns))
        with self._desk(call, pieces) as bring:
            coming: Future[Any] = self._readers.submit(bring, 0)
            try:
                for n, piece in enumerate(pieces):
                    strips, p_side = coming.result()
                    if n + 1 < len(pieces):
                        coming = self._readers.submit(bring, n + 1)
                    own = slice(piece.place, piece.place + 1)
                    part = turns._replace(
                        first=0,
                        last=1,
                        origin=turns.origin + piece.place,
                        since=piece.since,
                        steps=len(piece.columns),
                        clocks=turns.clocks[own],
                        marks=turns.marks[own],
                    )
                    strip_arrays = [array for strip in strips for array in arrays_of(strip)]
                    call.kernel(
                        *(part, *strip_arrays, *p_side, self._row_counts[own], *self._q_side, *call.rest, sums[own])
                    )
                    if self._board[-2, DONE]:
                        return  # all shall stop
            finally:
                with contextlib.suppress(Exception):  # it is of interest only if it comes to it
                    coming.result()

    def _pieces(self, sources: list[Source], turns: Turns) -> Iterator[Piece]:
        """The way of a worker, in pieces whose ratings fit the buffers."""
        held = turns.last - turns.first
        streamed = [source for source in sources if isinstance(source, Streamed)]
        number, before = -1, -1
        for nth, since, until in sweeps(held, turns.steps, held if self._alone else 1):
            place = turns.first + nth
            number, before = number + (place != before), place
            columns = turns.order[(turns.origin + place + np.arange(since, until)) % len(turns.order)]
            done = 0
            while done < len(columns):
                fits = min([source.reach(place, columns[done:]) for source in streamed], default=len(columns))
                yield Piece(number, place, since + done, columns[done : done + fits])
                done += fits

    @contextlib.contextmanager
    def _desk(self, call: Call, pieces: list[Piece]) -> Iterator[Callable[[int], Any]]:
        """A function that brings the strips and the row-block of the n-th piece; buffers are given back in the end."""
        streamed = [source for source in call.sources if isinstance(source, Streamed)]
        buffers = [(source, [source.take(), source.take()]) for source in streamed]
        tables = [] if self._rows.resident else [self._rows.take(), self._rows.take()]

        def bring(n: int) -> Any:
            piece = pieces[n]
            rooms = iter(buffers)
            strips = [
                source.row_block(piece.place)
                if isinstance(source, Resident)
                else source.read(piece.place, piece.columns, next(rooms)[1][n % 2])
                for source in call.sources
            ]
            if self._rows.resident:
                starts = self._rows.resident.starts[piece.place : piece.place + 1]
                return strips, (self._rows.resident.buffer, starts)
            table = tables[piece.stretch % 2]
            if n == 0 or pieces[n - 1].stretch != piece.stretch:
                if call.changes and piece.stretch >= 2:  # the one before the last, which the last doesn't touch
                    self._rows.store(places[piece.stretch - 2], table)
                self._rows.load(piece.place, table)
            return strips, (table, self._nowhere)

        places = {piece.stretch: piece.place for piece in pieces}
        try:
            yield bring
            if tables and call.changes:
                for stretch in range(max(len(places) - 2, 0), len(places)):
                    self._rows.store(places[stretch], tables[stretch % 2])
        finally:
            for source, pair in buffers:
                for buffer in pair:
                    source.give(buffer)
            for table in tables:
                self._rows.give(table)
