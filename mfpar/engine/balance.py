"""How evenly the schedule spreads the ratings over ranks: arithmetic on the sizes of blocks."""

import numpy as np

from mfpar.grid import span
from mfpar.schedule import meetings


def step_balance(counts: np.ndarray, order: np.ndarray, ranks: int) -> list[float]:
    """For each step the ratings of a rank on average, as a share of the busiest one's; 1 for a step without ratings.

    Parameters
    ----------
    counts : int64[G, G]
        Ratings of each block.
    order : int64[G]
        See `mfpar.schedule.ring`.

    >>> step_balance(np.array([[6, 2], [4, 4]]), np.array([0, 1]), 2)
    [0.833, 0.75]
    """
    size = len(order)
    ends = [span(size, ranks, rank)[0] for rank in range(ranks)]
    places = np.arange(size)
    met = meetings(order, places[:, None])
    loads = np.add.reduceat(counts[places, met], ends, axis=1)
    busiest = loads.max(axis=1)
    shares = np.divide(loads.mean(axis=1), busiest, out=np.ones(size), where=busiest > 0)
    return [round(float(share), 3) for share in shares]
