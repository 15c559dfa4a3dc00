"""Random numbers from counters and names: pure functions of uint64, which no version of NumPy will change."""

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # multiples of it, mixed, are the numbers of a stream


def mixed(words: np.ndarray) -> np.ndarray:
    """A bijection of uint64[n] that leaves no pattern.

    SplitMix64's (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
    """
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(words ^ (words >> np.uint64(31)))


def hashed(ids: np.ndarray) -> np.ndarray:
    """uint64[n] of ids: an integer is its own hash, a string has its FNV-1a, however wide it is stored.

    Parameters
    ----------
    ids : int64[n] or bytes[n]
    """
    if ids.dtype.kind != "S":
        return ids.astype(np.int64).view(np.uint64)
    letters = np.ascontiguousarray(ids).view(np.uint8).reshape(len(ids), ids.dtype.itemsize)
    hashes = np.full(len(ids), 0xCBF29CE484222325, np.uint64)
    for column in letters.T:
        hashes = np.where(column > 0, (hashes ^ column) * np.uint64(0x100000001B3), hashes)
    return hashes
