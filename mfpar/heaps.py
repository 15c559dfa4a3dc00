"""The part of an HDF5 file that HDF5 reads without a checksum: its global heaps, looked over before it may see them.

Strings of any length (attributes) and what virtual datasets show lie in *collections*: a head, then objects, each with
its own size. HDF5 goes from one to the next by these sizes: where damage made one zero, it would go on for ever.
"""

import struct
from pathlib import Path
from typing import BinaryIO

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
                file.seek(first + at)  # it may end behind the piece
                if not _sound(file.read(HEAD.size), file):
                    return first + at
                at = piece.find(MAGIC, at + len(MAGIC))
    return None


def _pieces(size: int) -> list[tuple[int, int]]:
    return [(0, size)] if size <= 2 * REACH else [(0, REACH), (size - REACH, size)]


def _sound(head: bytes, file: BinaryIO) -> bool:
    """Whether the objects of a collection, which follow its head in the file, follow each other to its end."""
    if len(head) < HEAD.size:
        return False
    left = HEAD.unpack(head)[1] - HEAD.size
    if not 0 <= left <= REACH:
        return False
    objects = file.read(left)
    if len(objects) < left:
        return False
    at = 0
    while at + OBJECT.size <= left:
        number, _, _, size = OBJECT.unpack_from(objects, at)
        step = OBJECT.size + (size + 7) // 8 * 8 if number else size
        if not OBJECT.size <= step <= left - at:
            return False
        content = objects[at + OBJECT.size : at + OBJECT.size + size] if number else b""
        # What a virtual dataset shows; strings begin with no zero. HDF5 looks at its checksum after it has believed it.
        if len(content) > 12 and content[0] == 0 and lookup3(content[:-4]) != int.from_bytes(content[-4:], "little"):
            return False
        at += step
    return True


def lookup3(data: bytes) -> int:
    """The checksum of HDF5's metadata: Bob Jenkins' hash of that name, 32 bits, from 0.

    >>> hex(lookup3(b"")), hex(lookup3(b"Four score and seven years ago"))
    ('0xdeadbeef', '0x17770551')
    """
    mask: int = 0xFFFFFFFF
    a = b = c = (0xDEADBEEF + len(data)) & mask
    if not data:
        return c
    last = (len(data) - 1) // 12 * 12
    words: tuple[int, ...] = struct.unpack(f"<{last // 4 + 3}I", data.ljust(last + 12, b"\0"))

    def turned(x: int, by: int) -> int:
        return (x << by | x >> (32 - by)) & mask

    for at in range(0, last // 4, 3):
        a, b, c = (a + words[at]) & mask, (b + words[at + 1]) & mask, (c + words[at + 2]) & mask
        a, c = (a - c) & mask ^ turned(c, 4), (c + b) & mask
        b, a = (b - a) & mask ^ turned(a, 6), (a + c) & mask
        c, b = (c - b) & mask ^ turned(b, 8), (b + a) & mask
        a, c = (a - c) & mask ^ turned(c, 16), (c + b) & mask
        b, a = (b - a) & mask ^ turned(a, 19), (a + c) & mask
        c, b = (c - b) & mask ^ turned(b, 4), (b + a) & mask
    a, b, c = (a + words[-3]) & mask, (b + words[-2]) & mask, (c + words[-1]) & mask
    c = ((c ^ b) - turned(b, 14)) & mask
    a = ((a ^ c) - turned(c, 11)) & mask
    b = ((b ^ a) - turned(a, 25)) & mask
    c = ((c ^ b) - turned(b, 16)) & mask
    a = ((a ^ c) - turned(c, 4)) & mask
    b = ((b ^ a) - turned(a, 14)) & mask
    found: int = ((c ^ b) - turned(b, 24)) & mask
    return found
