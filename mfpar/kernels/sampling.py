"""Cells without a rating, drawn inside a block: counter-based, so that a sample depends on its place alone.

The n-th number of a stream is a bijective mix of n and the stream's key (SplitMix64: Steele, Lea, Flood: Fast
splittable pseudorandom number generators, OOPSLA 2014). A key stands for (seed, epoch, row-block, column-block).

A drawn cell that has a rating is no negative. Which cells have one is told by a table of bits that ratings are hashed
into (Bloom 1970, with one hash): it never takes a rated cell for a free one, and one free cell in sixteen for a rated
one.
"""

import numpy as np

from mfpar.kernels.compile import inlined
from mfpar.kernels.vector import get, put

U64 = np.uint64
GOLDEN = U64(0x9E3779B97F4A7C15)
FIRST, SECOND = U64(0xBF58476D1CE4E5B9), U64(0x94D049BB133111EB)
S27, S30, S31, S32 = U64(27), U64(30), U64(31), U64(32)
LOW = U64(63)
BITS_PER_RATING = 16


@inlined
def mixed(word):
    """A bijection of uint64 that leaves no pattern."""
    word = (word ^ (word >> S30)) * FIRST
    word = (word ^ (word >> S27)) * SECOND
    return word ^ (word >> S31)


@inlined
def stream(key, i, j):
    """uint64: key of the samples of block (i, j)."""
    return mixed(key + (U64(i) << S32) + U64(j) + U64(1))


@inlined
def draw(stream_key, n, count):
    """int64: the n-th sample of 0 … count − 1, count below 2^32."""
    return np.int64(((mixed(stream_key + U64(n) * GOLDEN) >> S32) * U64(count)) >> S32)


@inlined
def shift_for(count):
    """uint64: by how much hashes are shifted right for a table of `count` ratings."""
    shift = U64(58)
    while (U64(1) << (U64(64) - shift)) < U64(count * BITS_PER_RATING):
        shift -= U64(1)
    return shift


@inlined
def empty_table(shift):
    """uint64[:]: a table that holds nothing."""
    return np.zeros(np.int64(U64(1) << (U64(58) - shift)), np.uint64)


@inlined
def insert(table, shift, rows, cols, first, last):
    """Put the cells of the ratings first … last − 1 into a table."""
    for t in range(first, last):
        at = place(np.int64(get(rows, t)), np.int64(get(cols, t)), shift)
        word = np.int64(at >> U64(6))
        put(table, word, get(table, word) | (U64(1) << (at & LOW)))


@inlined
def place(row, col, shift):
    """uint64: the bit of a cell."""
    return (((U64(row) << S32) + U64(col) + U64(1)) * GOLDEN) >> shift


@inlined
def has_rating(table, row, col, shift):
    """Whether a cell has a rating; true for one free cell in sixteen, too."""
    at = place(row, col, shift)
    return (get(table, np.int64(at >> U64(6))) >> (at & LOW)) & U64(1) != U64(0)
