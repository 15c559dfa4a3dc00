"""The part of an HDF5 file that HDF5 reads without a checksum: its global heaps, looked over before it may see them.

Strings of any length (attributes) and what virtual datasets show lie in *collections*: a head, then objects, each with
its own size. HDF5 goes from one to the next by these sizes: where damage made one zero, it would go on for ever.
"""

import struct
from pathlib import Path

MAGIC = b"GCOL\1\0\0\0"
HEAD = struct.Struct("<8sQ")  # MAGIC; bytes of the collection, its head among them
OBJECT = struct.Struct("<HHIQ")  # number, 0 for free space; references; nothing; bytes, of free space with this head
REACH = 16 << 20  # bytes at the start and at the end of a file where mfpar writes them; a master is no longer


def damaged_heap(path: Path) -> int | None:
    """The byte where a global heap begins that can't be gone through, or None.

    Raises
    ------
    OSError
        The file can't be read.
    """
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        for first, last in _pieces(size):
            file.seek(first)
            piece = file.read(last - first)
            at = piece.find(MAGIC)
            while at >= 0:
                # Whole in the piece: it is some kilobytes long, and HDF5 puts it behind what is in the file already.
                if not _sound(piece, at):
                    return first + at
                at = piece.find(MAGIC, at + len(MAGIC))
    return None


def _pieces(size: int) -> list[tuple[int, int]]:
    return [(0, size)] if size <= 2 * REACH else [(0, REACH), (size - REACH, size)]


def _sound(piece: bytes, at: int) -> bool:
    """Whether the objects of a collection follow each other to its end."""
    if at + HEAD.size > len(piece):
        return False
    end = at + HEAD.unpack_from(piece, at)[1]
    at += HEAD.size
    if not at <= end <= len(piece):
        return False
    while at + OBJECT.size <= end:
        number, _, _, size = OBJECT.unpack_from(piece, at)
        step = OBJECT.size + (size + 7) // 8 * 8 if number else size
        if not OBJECT.size <= step <= end - at:
            return False
        at += step
    return True
