"""Who meets whom, when: pure arithmetic.

In epoch e a permutation π of the column-blocks is drawn; in step s row-block i meets column-block π[(i + s) mod G].
With G = 4 and π = 2 0 3 1, on two ranks::

    step             0          1          2          3
    row-block 0      2          0          3          1      rank 0
    row-block 1      0          3          1          2
    ---------------------------------------------------
    row-block 2      3          1          2          0      rank 1
    row-block 3      1          2          0          3

Read along a row: every block is met once. Read down a column: no two row-blocks share a column-block (a *stratum*).
From one step to the next a column-block moves up by one row-block, so one crosses each border between ranks per step,
the one that the rank's first row-block has just met. After G steps each is back where it began.

Strata: Gemulla, Nijkamp, Haas, Sismanis: Large-scale matrix factorization with distributed stochastic gradient descent,
KDD 2011. Redrawing the order for every epoch: Teflioudi, Makari, Gemulla: Distributed matrix completion, ICDM 2012.
"""

import numpy as np


def ring(size: int, seed: int, epoch: int) -> np.ndarray:
    """int64[G]: π of an epoch, from (seed, epoch) alone.

    The order is that of G raw Philox words, which no NumPy version will change.
    """
    words = np.random.Philox(key=np.array([seed, epoch | 1 << 63], np.uint64)).random_raw(size)
    return np.argsort(words, kind="stable")


def sample_key(seed: int, epoch: int) -> np.uint64:
    """Key of the cells that are drawn in an epoch (0: of those that held-out ratings are set against)."""
    # With the top bit clear, where `ring` sets it: the streams keep apart.
    return np.uint64(np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw())


def meetings(order: np.ndarray, step: int | np.ndarray) -> np.ndarray:
    """int64[G]: the column-block that each row-block meets in `step`; int64[n, G] for steps int64[n, 1].

    >>> meetings(np.array([2, 0, 3, 1]), 1)
    array([0, 3, 1, 2])
    """
    met: np.ndarray = order[(np.arange(len(order)) + step) % len(order)]
    return met
