"""The format of a checkpoint: a folder with the raw blocks that each rank wrote, and a manifest that tells of them.

A folder without a manifest is no checkpoint. Nothing of a manifest is believed before it was checked.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mfpar.atomic import reason, replacing
from mfpar.errors import FormatError, StorageError

FORMAT, VERSION = "mfpar checkpoint", 1
MANIFEST = "manifest.json"
NAME = r"epoch-(\d{8,})-step-(\d{8,})-[0-9a-f]{8}"  # of a checkpoint's folder
FILE = r"\d{1,9}\.blocks"  # of the blocks that a rank wrote
MOST = 256 << 20  # bytes of a manifest
FREE = {"epochs", "threads", "memory", "spill"}  # settings that a run may go on with others of
SHOWN = 80  # letters of a value in a message


@dataclass(frozen=True)
class Block:
    """Where a block lies, in the folder of its checkpoint."""

    key: str
    file: str
    begin: int  # first byte in the file
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself.

    Attributes
    ----------
    identity : dict
        Plain JSON values of all that makes the result: `data_checksum`, settings `model` and `train`, and what else the
        engine put there.
    cut : dict
        The engine's own, with integers `epoch` (the one under way, from 1) and `step` (those of it that are done).
    blocks : list of Block
        In each file one behind another, from its first byte to its last.
    """

    identity: dict[str, Any]
    cut: dict[str, Any]
    blocks: list[Block]

    @property
    def files(self) -> dict[str, int]:
        """The size of each file in bytes."""
        return {block.file: block.begin + block.bytes for block in self.blocks}

    def write(self, path: Path) -> None:
        """Put the manifest into the checkpoint's folder, whole or not at all. Local.

        Raises
        ------
        StorageError
            It can't be written, or is larger than would be read.
        """
        content = {"format": FORMAT, "version": VERSION, "identity": self.identity, "cut": self.cut}
        text = json.dumps({**content, "blocks": [astuple(block) for block in self.blocks]}).encode()
        text = hashlib.sha256(text).hexdigest().encode() + b"\n" + text
        if len(text) > MOST:
            raise StorageError(f"{path}: its manifest would have {len(text)} bytes, more than {MOST}")
        with replacing(path / MANIFEST) as temporary:
            temporary.write_bytes(text)

    def require_sizes(self, path: Path) -> None:
        """Raise FormatError unless every file is there and as long as it should be. Local."""
        for name, size in self.files.items():
            with open_plain(path / name) as file:
                found = os.fstat(file.fileno()).st_size
            if found != size:
                raise FormatError(f"{path / name}: is damaged: it has {found} bytes instead of {size}")

    def difference(self, identity: dict[str, Any]) -> str | None:
        """What tells the run that wrote this from one of `identity`, as a clause; None if the bits are the same."""
        for part in sorted(self.identity.keys() | identity.keys()):
            theirs, ours = self.identity.get(part), identity.get(part)
            if part == "data_checksum" and theirs != ours:
                return "is of other data"
            if isinstance(theirs, dict) and isinstance(ours, dict):
                for name in [*ours, *theirs]:  # what was given comes before what follows from it
                    if name not in FREE and theirs.get(name) != ours.get(name):
                        return f"was made with {name}={_short(theirs.get(name))}, not {_short(ours.get(name))}"
            elif theirs != ours:
                return f"was made with another {part}"
        return None


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint's folder, checked for itself; its files are not looked at. Local.

    Raises
    ------
    FormatError
        There is none, or it is damaged, or not such as mfpar writes.
    StorageError
        It can't be read.
    """
    target = path / MANIFEST
    if not os.path.lexists(target):
        raise FormatError(f"{path}: is no whole checkpoint: it has no {MANIFEST}")
    with open_plain(target) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST:
            raise FormatError(f"{target}: is damaged or foreign: it has {size} bytes, more than any manifest")
        try:
            checksum, _, text = file.read(size).partition(b"\n")
        except OSError as error:
            raise StorageError(f"{target}: can't be read: {reason(error)}") from error
    if hashlib.sha256(text).hexdigest().encode() != checksum:
        raise FormatError(f"{target}: is damaged: it does not match its checksum")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{target}: is foreign: it is no JSON") from error
    return _checked(target, content)


def _checked(target: Path, content: Any) -> Manifest:
    """A manifest of what JSON holds; raises FormatError unless all of it is as it should be."""

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise FormatError(f"{target}: is foreign: {what}")

    require(isinstance(content, dict) and content.get("format") == FORMAT, "it is no manifest of a checkpoint")
    version = content.get("version")
    require(
        type(version) is int and version == VERSION, f"it has version {_short(version)}, this mfpar reads {VERSION}"
    )
    identity, cut, rows = content.get("identity"), content.get("cut"), content.get("blocks")
    require(isinstance(identity, dict), "it does not say which run it is of")
    require(isinstance(identity.get("data_checksum"), str), "it does not say which data it is of")
    for part in ("model", "train"):
        require(isinstance(identity.get(part), dict), f"it has no settings of {part}")
    require(isinstance(cut, dict), "it has no cut")
    for name, least in (("epoch", 1), ("step", 0)):
        require(type(cut.get(name)) is int and least <= cut[name] < 2**63, f"its {name} is {_short(cut.get(name))}")
    require(isinstance(rows, list), "it has no list of blocks")
    return Manifest(identity, cut, _blocks(target, rows))


def _blocks(target: Path, rows: list[Any]) -> list[Block]:
    """What a manifest says of blocks, checked."""
    keys, ends = set[str](), dict[str, int]()
    blocks = []
    for number, row in enumerate(rows):
        problem, block = "has other parts than key, file, begin, bytes and SHA-256", Block("", "", 0, 0, "")
        if isinstance(row, list) and [type(part) for part in row] == [str, str, int, int, str]:
            block = Block(*row)
            problem = _problem(block, ends.get(block.file, 0))
            if block.key in keys:
                problem = "occurs twice"
        if problem:
            raise FormatError(f"{target}: is foreign: block {number} {_short(block.key)} {problem}")
        keys.add(block.key)
        ends[block.file] = block.begin + block.bytes
        blocks.append(block)
    return blocks


def _problem(block: Block, begin: int) -> str:
    """What is wrong with a block that is to begin there, as the rest of a sentence; "" if nothing is."""
    if not re.fullmatch(FILE, block.file):
        return f"lies in a file {_short(block.file)}"
    if not 0 <= block.bytes < 2**62 or block.bytes % 4:
        return f"has {_short(block.bytes)} bytes"
    if block.begin != begin:
        return f"begins at byte {_short(block.begin)} instead of {begin}"
    if not re.fullmatch("[0-9a-f]{64}", block.sha256):
        return f"has the SHA-256 {_short(block.sha256)}"
    return ""


def _short(value: Any) -> str:
    """A value as Python writes it, as far as a message has room for it."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def open_plain(path: Path) -> BinaryIO:
    """Open a file of a checkpoint for reading: a regular one, no link to another place, no pipe that never answers.

    Raises
    ------
    FormatError
        There is none, or it is another thing.
    StorageError
        It can't be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise FormatError(f"{path}: is missing") from error
    except OSError as error:
        if path.is_symlink():
            raise FormatError(f"{path}: is a link, not a file of a checkpoint") from error
        raise StorageError(f"{path}: can't be read: {reason(error)}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FormatError(f"{path}: is no regular file")
    return os.fdopen(descriptor, "rb")


def is_checkpoint(path: Path) -> bool:
    """Whether a path is that of one checkpoint, whole or not, rather than of a folder with several."""
    return os.path.lexists(path / MANIFEST) or re.fullmatch(NAME, path.name) is not None


def position(path: Path) -> tuple[int, int, str]:
    """Epoch and step that the name of a checkpoint's folder tells, and the name: newer ones are greater."""
    found = re.fullmatch(NAME, path.name)
    return (int(found[1]), int(found[2]), path.name) if found else (0, 0, path.name)


def checkpoints_in(folder: Path, whole: bool = True) -> list[Path]:
    """Checkpoints in a folder, the newest first; with `whole` unset those without a manifest. Local.

    Raises
    ------
    StorageError
        The folder can't be read; one that does not exist has none.
    """
    try:
        found = [path for path in folder.iterdir() if re.fullmatch(NAME, path.name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{folder}: can't be read: {reason(error)}") from error
    return sorted((path for path in found if os.path.lexists(path / MANIFEST) == whole), key=position, reverse=True)


def remove(path: Path) -> None:
    """Remove a checkpoint, as far as that is possible: its manifest first, so that half of it is none. Local."""
    with contextlib.suppress(OSError):
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
