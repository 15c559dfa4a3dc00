"""How often a positive scores higher than a negative, over all pairs of them: exact, also across ranks."""

import math

import numpy as np

from mfpar.parallel.comm import Communicator, Message


def wins(positives: np.ndarray, negatives: np.ndarray) -> int:
    """Twice the number of pairs in which the positive scores higher, ties counted ½.

    Parameters
    ----------
    positives, negatives : float32[:]
        The negatives ascending.

    >>> wins(np.array([1.0, 5.0]), np.array([1.0, 2.0]))
    5
    """
    below, up_to = (np.searchsorted(negatives, positives, side) for side in ("left", "right"))
    return int(below.sum()) + int(up_to.sum())


def auc(positives: np.ndarray, negatives: np.ndarray, comm: Communicator) -> float:
    """Probability that a random positive scores higher than a random negative, over all ranks. Collective.

    Negatives go round the ring of ranks, so that each rank's meet the positives of every other.

    Parameters
    ----------
    positives, negatives : float32[:]
        Scores, this rank's own.

    Returns
    -------
    float
        From integers, so that it does not matter which rank has which; not a number where either is missing.
    """
    positives, negatives = np.sort(positives), np.sort(negatives)
    lengths = comm.gather(len(negatives))
    won = 0
    for step in range(1, comm.size + 1):
        won += wins(positives, negatives)
        if step < comm.size:
            coming = np.empty(lengths[(comm.rank - step) % comm.size], np.float32)
            above, below = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
            comm.start([Message(negatives, above, 0)], [Message(coming, below, 0)]).wait()
            negatives = coming
    total, count = (sum(values) for values in zip(*comm.gather([won, len(positives)]), strict=True))
    pairs = count * sum(lengths)
    return total / (2 * pairs) if pairs else math.nan
