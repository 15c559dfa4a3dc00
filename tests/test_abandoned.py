"""What a process leaves that is killed while it writes goes when the next one writes there; nothing else does."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import simulated

from mfpar.abandoned import claimed, held
from mfpar.atomic import replacing
from mfpar.ratings.database import Database
from mfpar.sharded import new_file, show_shards, write_sharded

HERE = Path(__file__).parent


def killed(body, folder):
    """Run some Python in a process that ends by killing itself."""
    script = f"import os, sys, signal; sys.path.insert(0, {str(HERE)!r}); from pathlib import Path\n{body}"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, timeout=60)
    assert done.returncode == -signal.SIGKILL


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_temporary_file_is_gone_when_it_is_written_the_next_time(tmp_path):
    killed(
        "from mfpar.atomic import replacing\n"
        "with replacing(Path('a[1].txt')) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)",
        tmp_path,
    )
    (left,) = names(tmp_path)
    others = {".a[1].txt.0123abcd.tmp.old", ".a1.txt.0123abcd.tmp", ".b.0123abcd.tmp", ".a[1].txt.0123.tmp"}
    for name in others:
        (tmp_path / name).touch()
    with replacing(tmp_path / "a[1].txt") as first:
        first.write_text("first")
        assert not (tmp_path / left).exists()
        with replacing(tmp_path / "a[1].txt") as second:
            second.write_text("second")
        assert first.exists()
    assert names(tmp_path) == others | {"a[1].txt"}


def write(path, ranks, value, within=lambda: None):
    """A file of several ranks with 4 numbers of each."""

    def write_shard(temporary):
        with new_file(temporary) as file:
            file["x"] = np.full(4, value)

    def write_master(temporary, shards):
        with new_file(temporary) as file:
            file.attrs["format"] = "mfpar test"
            show_shards(file, shards, ["x"])
        within()

    simulated.run(ranks, lambda comm: write_sharded(path, comm, write_shard, write_master))


@pytest.mark.parametrize("old", [False, True])
def test_shards_without_a_master_are_gone_when_the_next_file_is_written(tmp_path, old):
    path = tmp_path / "m.h5"
    if old:
        write(path, 3, 1)
    before = names(tmp_path)
    killed(
        "import test_abandoned\ntest_abandoned.write(Path('m.h5'), 2, 2, lambda: os.kill(os.getpid(), signal.SIGKILL))",
        tmp_path,
    )
    assert len(names(tmp_path) - before) == 4  # two shards, the master, and a note
    if old:
        with h5py.File(path) as file:
            assert file["x"][:].tolist() == [1] * 12
    (tmp_path / "m.shards" / "mine.h5").touch()
    write(path, 3, 3)
    with h5py.File(path) as file:
        assert file["x"][:].tolist() == [3] * 12
    assert len(names(tmp_path)) == 5
    assert (tmp_path / "m.shards" / "mine.h5").exists()


def test_a_note_beside_shards_that_are_shown_costs_them_nothing(tmp_path):
    path = tmp_path / "m.h5"
    write(path, 2, 1)
    shard = next((tmp_path / "m.shards").iterdir())
    note = shard.with_name(f".{shard.name[:8]}.unfinished")
    note.touch()
    with held(note):

        def look():
            assert note.exists()
            assert shard.exists()

        write(tmp_path / "m.hdf5", 2, 2, look)
    with pytest.raises(KeyboardInterrupt):
        write(path, 2, 2, interrupt)
    assert not note.exists()
    with h5py.File(path) as file:
        assert file["x"][:].tolist() == [1] * 8


def interrupt():
    raise KeyboardInterrupt


def test_the_folder_of_a_conversion_is_gone_at_the_next_one(tmp_path):
    killed(
        "from mfpar.ratings.database import Database\n"
        "database = Database(Path('.'))\n"
        "(database.folder / 'spilled').write_text('much')\n"
        "os.kill(os.getpid(), signal.SIGKILL)",
        tmp_path,
    )
    (left,) = tmp_path.iterdir()
    with Database(tmp_path) as first:
        assert not left.exists()
        with Database(tmp_path):
            assert first.folder.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_what_was_made_again_meanwhile_is_not_claimed(tmp_path, monkeypatch):
    """Of three processes one removes what it takes for abandoned, its owner makes it again; the third has it open."""
    folder, flock = tmp_path / "folder", fcntl.flock

    def late(descriptor, how):
        folder.rmdir()
        folder.mkdir()
        flock(descriptor, how)

    folder.mkdir()
    monkeypatch.setattr(fcntl, "flock", late)
    with claimed(folder) as abandoned:
        assert not abandoned


def test_what_is_held_is_not_claimed(tmp_path):
    for path, folder in ((tmp_path / "file", False), (tmp_path / "folder", True)):
        with held(path, folder), held(path, folder), claimed(path) as abandoned:
            assert not abandoned
        with claimed(path) as abandoned:
            assert abandoned
    with claimed(tmp_path / "missing") as abandoned:
        assert not abandoned
    os.symlink("file", tmp_path / "link")
    with claimed(tmp_path / "link") as abandoned:
        assert not abandoned


def test_a_conversion_that_was_killed_leaves_nothing_for_the_next(tmp_path):
    """Killed at any moment; what is left goes with the next one that writes there."""
    rng = np.random.default_rng(0)
    source, target = tmp_path / "ratings.csv", tmp_path / "ratings.h5"
    lines = (f"u{user},{item},{value}" for user, item, value in rng.integers(1, 30_000, (300_000, 3)).tolist())
    source.write_text("\n".join(lines))
    command = [sys.executable, "-m", "mfpar", "convert", str(source), "-o", str(target), "--force"]
    for seconds in (0.6, 0.9, 1.2, 1.5):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            process.kill()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ratings.csv", "ratings.h5"]


def test_ratings_that_were_converted_for_a_killed_run_go_with_the_next(tmp_path):
    body = (
        "import mfpar\n"
        "def train(callback=None):\n"
        "    triples = [1, 1, 2], [1, 2, 1], [1.0, 2.0, 3.0]\n"
        "    mfpar.factorize(triples, 2, epochs=1, output='model.h5', callback=callback)\n"
    )
    killed(f"{body}train(lambda report: os.kill(os.getpid(), signal.SIGKILL))", tmp_path)
    assert names(tmp_path)
    killed(f"{body}train()\nos.kill(os.getpid(), signal.SIGKILL)", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.h5"]
