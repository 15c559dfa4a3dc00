"""What a run of tests/chaos.py leaves: its model, its checkpoints, and what should not be there."""

import contextlib
import hashlib
import os
import re
import shutil
import time
from pathlib import Path

import h5py
import numpy as np
from victims import SHARED_MEMORY

from mfpar.errors import MfparError
from mfpar.integrity.verify import verify
from mfpar.model.opening import open_model
from mfpar.recovery.manifest import MANIFEST, position
from mfpar.sharded import shards_shown

OWN = re.compile(r"(attempt-\d+|right)\.(out|err)|cache|tmp|saved|model\.h5|model\.shards")  # what is there rightly
OF_MPI = re.compile(r"ompi\.|prte|pmix|openmpi|sm_segment\.")  # names of its own in the folder for temporary files
SLOW = 5.0  # seconds that Open MPI may take to tidy up


def fingerprint(path: Path) -> str:
    """A model's."""
    return open_model(path).fingerprint


def wrong_model(path: Path, right: str) -> list[str]:
    """What is wrong with a model that should have this fingerprint."""
    try:
        found = fingerprint(path)
    except MfparError as error:
        return [f"the model can't be opened: {error}"]
    damage = [f"the model is not sound: {text}" for text in verify(path).damage]
    return damage + [f"fingerprint {found[:16]}, undisturbed {right[:16]}"] * (found != right)


def saving(home: Path) -> bool:
    """Whether a model is being written."""
    return any(re.fullmatch(r"\.model\.h5\.[0-9a-f]{8}\.tmp|model\.shards", name) for name in os.listdir(home))


def left_beside(home: Path) -> list[str]:
    """Files beside a model that is done, which are no part of it."""
    strange = [name for name in os.listdir(home) if not OWN.fullmatch(name)]
    shown = set[str]()
    if (home / "model.h5").exists():
        with h5py.File(home / "model.h5", "r") as file:
            shown = shards_shown(file)
    strange += [
        str(path.relative_to(home)) for path in home.glob("model.shards/*") if f"model.shards/{path.name}" not in shown
    ]
    strange += [str(path.relative_to(home)) for path in home.glob("tmp/*") if not OF_MPI.match(path.name)]
    saved = home / "saved"
    strange += [str(path.relative_to(home)) for path in saved.glob("[!.]*") if not (path / MANIFEST).is_file()]
    return [f"left behind: {', '.join(strange)}"] if strange else []


def left_in_memory(used: set[str]) -> list[str]:
    """What is left in shared memory of what a run has used; it is removed."""
    end = time.monotonic() + SLOW
    while (left := {name for name in used if (SHARED_MEMORY / name).exists()}) and time.monotonic() < end:
        time.sleep(0.1)
    for name in left:
        shutil.rmtree(SHARED_MEMORY / name, ignore_errors=True)
        (SHARED_MEMORY / name).unlink(missing_ok=True)
    return [f"left in {SHARED_MEMORY}: {', '.join(sorted(left))}"] if left else []


class Saved:
    """The checkpoints of a run.

    Parameters
    ----------
    folder : Path
        Need not exist yet.
    keep : int
        How many have to stay.
    """

    def __init__(self, folder: Path, keep: int):
        self._folder, self._keep = folder, keep
        self._known: dict[str, str] = {}  # of each that was whole: a checksum of its files
        self._damaged: set[str] = set()

    def _whole(self) -> dict[str, str]:
        """Those with a manifest, oldest first."""
        found = {}
        for manifest in sorted(self._folder.glob(f"*/{MANIFEST}"), key=lambda path: position(path.parent)):
            with contextlib.suppress(OSError):  # it was removed as one of the old ones
                files = sorted(path for path in manifest.parent.rglob("*") if path.is_file())
                digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files))
                if manifest.exists():
                    found[manifest.parent.name] = digest.hexdigest()
        return found

    def remember(self) -> None:
        """Note which are whole at this moment."""
        self._known = self._whole()

    def under_way(self) -> bool:
        """Whether one is being written."""
        with contextlib.suppress(OSError):
            entries = [entry.path for entry in os.scandir(self._folder) if entry.is_dir()]
            return any(not os.path.exists(f"{path}/{MANIFEST}") for path in entries)
        return False

    def newest(self) -> tuple[int, int] | None:
        """Epoch and step of the newest that is whole and was not damaged."""
        sound = [name for name in self._whole() if name not in self._damaged]
        return position(self._folder / sound[-1])[:2] if sound else None

    def damage(self, rng: np.random.Generator) -> str | None:
        """Flip a byte of the newest, and return where."""
        whole = list(self._whole())
        if not whole:
            return None
        files = sorted(path for path in (self._folder / whole[-1]).rglob("*") if path.is_file() and path.stat().st_size)
        path = files[int(rng.integers(len(files)))]
        with contextlib.suppress(OSError), path.open("r+b") as file:
            place = int(rng.integers(path.stat().st_size))
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ int(rng.integers(1, 256))]))
            self._damaged.add(whole[-1])
            return f"byte {place} of {path.relative_to(self._folder)}"
        return None

    def lost(self) -> list[str]:
        """What has become of checkpoints that were whole, other than giving way to newer ones; then they are as now."""
        now, wrong = self._whole(), []
        before = {name: digest for name, digest in self._known.items() if name not in self._damaged}
        wrong += [
            f"checkpoint {name} was changed" for name, digest in before.items() if now.get(name, digest) != digest
        ]
        newer = len([name for name in now if name not in before and name not in self._damaged])
        missing = [name for name in before if name not in now]
        if missing and newer + len(before) - len(missing) < min(self._keep, len(before)):
            wrong.append(f"checkpoints {', '.join(missing)} were lost; there are {', '.join(now) or 'none'}")
        self._known = now
        return wrong
