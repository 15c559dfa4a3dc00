"""The way of a worker through its visits where not all that it needs is in memory: few row-blocks at a time, for long.

Visit (i, s), of row-block i in step s, needs (i, s − 1) and (i + 1, s − 1) to be over. So a worker may let its last
row-block go one step ahead of the next worker's first, the one before it two, and so on: a staircase. From there every
row-block, last to first, can take as many steps at once as the staircase has. With 4 row-blocks of a single worker, in
a grid of 4, numbers being the order of visits::

    step           0   1   2   3
    row-block 0    6   7   8   9
    row-block 1    3   4   5  15
    row-block 2    1   2  13  14
    row-block 3    0  10  11  12

so that what belongs to a row-block is brought in twice an epoch, instead of once a step. Row-blocks and column-blocks
keep their own orders, and with them every bit.
"""

from collections.abc import Iterator


def sweeps(held: int, steps: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Stretches (place, since, until): the row-block at `place` takes the steps since … until − 1 at once.

    Parameters
    ----------
    held : row-blocks of this worker
    steps : of the pass
    window : steps that a row-block takes at once; at most `held`, or workers could wait for each other
        With 1 all take each step together, first to last, so that what leaves for the row-blocks above leaves early.

    >>> list(sweeps(3, 3, 3))
    [(2, 0, 1), (1, 0, 2), (0, 0, 3), (2, 1, 3), (1, 2, 3)]
    >>> list(sweeps(2, 2, 1))
    [(0, 0, 1), (1, 0, 1), (0, 1, 2), (1, 1, 2)]
    """
    taken = [0] * held
    sweep = 0
    while min(taken) < steps:
        for place in range(held) if window == 1 else reversed(range(held)):
            until = min(steps, sweep * window + min(held - place, window))
            if until > taken[place]:
                yield place, taken[place], until
                taken[place] = until
        sweep += 1
