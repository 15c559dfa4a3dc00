"""Checks a blocked ratings file, in bounded memory: docs/format.md says what has to hold."""

from typing import Any, get_type_hints

import h5py
import numpy as np

from mfpar.blockfile import FORMAT, PARTS, SIDES, VERSION, Header, arrays_of, checksum_of
from mfpar.formats import ascends, require_format, require_held
from mfpar.hashing import mixed
from mfpar.integrity.findings import Findings, Sums, require, require_cuts
from mfpar.sharded import require_shards, size_of

MASK = 2**64 - 1
TABLE = ("ids", "order", "counts")


def check_blocked(file: h5py.File, found: Findings) -> None:
    """Note all that is damaged in an open blocked file. Local.

    Whether an order is a permutation, and counts are those of the ratings, is told by sums of hashes modulo 2⁶⁴: memory
    does not grow with the number of rows. What is damaged already is not compared with other tables.

    Raises
    ------
    FormatError
        It is no blocked file, of another version, or so damaged that nothing else can be told.
    """
    require_format(file, found.path, FORMAT, VERSION, "a blocked ratings file", "mfpar convert")
    require_shards(file, found.path, "blocked file")
    require_held(file, found.path, size_of(file, found.path))
    found.kind = "blocked ratings"
    types = get_type_hints(Header)
    header = Header(**{name: kind(file.attrs[name].item()) for name, kind in types.items()})
    found.counts = {"rows": header.rows, "cols": header.cols, "ratings": header.ratings, "test": header.test_ratings}
    with found.part("header and tables"):
        require(
            checksum_of(header, file) == file.attrs["checksum"],
            "header and tables (attributes, cuts, offsets, checksums) do not match their checksum",
        )
    cuts = {side: file[side]["cuts"][()] for side in SIDES}
    for side, count in zip(SIDES, (header.rows, header.cols), strict=True):
        require_cuts(cuts[side], count, f"cuts of the {side}")
    require(len(cuts["rows"]) == len(cuts["cols"]), "rows and columns are cut into different numbers of blocks")
    said = {side: _check_table(file[side], side, cuts[side], found) for side in SIDES}
    met = {part: _check_part(file[part], part, cuts, header, found) for part in PARTS}
    for side in SIDES:
        for block, (counted, hashed) in enumerate(zip(said[side], met["train"][side], strict=True)):
            if counted is not None and hashed is not None:
                with found.part("counts"):
                    name = f"counts of the {side} in block {block} are not those of the training ratings"
                    require(counted == hashed, name)


def _check_table(group: Any, side: str, cuts: np.ndarray, found: Findings) -> list[int | None]:
    """Check ids, order and counts of a side; the hash of what each block counts, None for a damaged one."""
    said: list[int | None] = []
    order = expected = 0
    for block, stored in enumerate(group["checksums"][()]):
        said.append(None)
        with found.part(f"ids of the {side} in block {block}"):
            sums, at, counted = Sums(len(TABLE)), int(cuts[block]), 0
            for arrays in found.pieces(group, TABLE, at, int(cuts[block + 1])):
                sums.add(arrays)
                places = _keys(np.arange(at, at + len(arrays[0])))
                at += len(places)
                expected += _sum(places)
                order += _sum(_keys(arrays[1]))
                counted += _sum(places * arrays[2].astype(np.uint64))
            sums.require(stored, f"ids, order and counts of the {side} in block {block}")
            said[block] = counted & MASK
    if None not in said:
        with found.part(f"order of the {side}"):
            require((order - expected) & MASK == 0, f"the order of the {side} is no permutation")
    return said


def _check_part(
    group: Any, part: str, cuts: dict[str, np.ndarray], header: Header, found: Findings
) -> dict[str, list[int | None]]:
    """Check the ratings of a part; for each side the hash of the rows (columns) met, by block, None if damaged."""
    size, strangers, sound = len(cuts["rows"]) - 1, 0, True
    met: dict[str, list[int | None]] = {side: [None] * size for side in SIDES}
    cols = [0] * size
    names = arrays_of(part, header.weighted)
    offsets, count = group["offsets"][()], header.ratings if part == "train" else header.test_ratings
    damage = len(found.damage)
    with found.part(f"offsets of the {part} part"):
        whole = len(offsets) == size**2 + 1
        require(whole and ascends(offsets, count, 0), f"offsets of the {part} part do not ascend from 0 to {count}")
        lengths = {name: len(group[name]) for name in names}
        require(set(lengths.values()) == {count}, f"arrays of the {part} part have {lengths} elements, not {count}")
    if len(found.damage) > damage:
        return met
    for i in range(size):
        strip, name = offsets[i * size : (i + 1) * size + 1], f"{part} ratings of row-block {i}"
        damage = len(found.damage)
        with found.part(name):
            sums, at, rows = Sums(len(names)), int(strip[0]), 0
            unknown, outside = 0, False
            for arrays in found.pieces(group, names, at, int(strip[-1])):
                sums.add(arrays)
                ends = np.clip(strip - at, 0, len(arrays[0]))
                at += len(arrays[0])
                blocks = np.repeat(np.arange(size), np.diff(ends))
                row, col = arrays[0].astype(np.int64), arrays[1].astype(np.int64)
                height, width = cuts["rows"][i + 1] - cuts["rows"][i], np.diff(cuts["cols"])[blocks]
                stranger = (row == height) | (col == width)
                unknown += int(stranger.sum())
                outside |= bool(((row > height) | (col > width)).any() or (part == "train" and stranger.any()))
                rows += _sum(_keys(row + cuts["rows"][i]))
                hashes = np.cumsum(_keys(col + cuts["cols"][blocks]), dtype=np.uint64)
                upto = np.concatenate((np.zeros(1, np.uint64), hashes))[ends]
                cols = [have + more for have, more in zip(cols, np.diff(upto).tolist(), strict=True)]
            sums.require(group["checksums"][i], name)
            require(not outside, f"{name} have an index outside their blocks")
            strangers += unknown
            met["rows"][i] = rows & MASK
        sound = sound and len(found.damage) == damage
    if sound and part == "train":
        met["cols"] = [hashed & MASK for hashed in cols]
    if sound and part == "test":
        with found.part("unknown ids"):
            name = f"{strangers} test ratings have an unknown id, the header says {header.test_unknown}"
            require(strangers == header.test_unknown, name)
    return met


def _keys(places: np.ndarray) -> np.ndarray:
    """uint64[n] of rows or columns: the hash of zero would be zero, which no sum notices."""
    return mixed(places.astype(np.uint64) + np.uint64(1))


def _sum(hashes: np.ndarray) -> int:
    return int(hashes.sum(dtype=np.uint64))
