"""Checkpoints on disk: written on any number of ranks, read on any other, whole or not there."""

import contextlib
import errno
import hashlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import simulated
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed import CHECKPOINT, MANIFESTS, SHARDS

from mfpar.cli.main import main
from mfpar.errors import ConfigError, FormatError, RankLostError, StorageError
from mfpar.integrity.verify import verify
from mfpar.parallel.comm import Serial
from mfpar.recovery import lock, manifest, writer
from mfpar.recovery.checkpoints import Checkpoints
from mfpar.recovery.manifest import checkpoints_in
from mfpar.recovery.reading import newest

IDENTITY = {"data_checksum": "ab" * 32, "model": {"factors": 3}, "train": {"epochs": 9, "seed": 1, "threads": 2}}


def made(sizes, seed=0):
    """Blocks of so many floats, by key; some numbers are not finite."""
    rng = np.random.default_rng(seed)
    blocks = {f"now/rows/{i}": rng.normal(size=size).astype(np.float32) for i, size in enumerate(sizes)}
    for block in blocks.values():
        block[1::7] = np.nan
    return blocks


def share(comm, blocks):
    """This rank's blocks: not the same on another number of ranks."""
    return [(key, block) for i, (key, block) in enumerate(blocks.items()) if (i * 7 + 3) % comm.size == comm.rank]


def cut_of(epoch, step=0):
    return {"epoch": epoch, "step": step, "order": [2, 0, 1], "best": -math.inf, "loss": math.nan}


def save(folder, blocks, *cuts, ranks=1, keep=2, background=True, identity=IDENTITY):
    """Write a checkpoint for each cut; returns those that became whole, and the warnings of the first rank."""

    def body(comm):
        warnings = []
        with Checkpoints(folder, comm, identity, keep, warnings.append) as checkpoints:
            paths = []
            for cut in cuts:
                checkpoints.begin(cut, iter(share(comm, blocks)), background)
                paths.append(checkpoints.settle())
        return paths, warnings

    outcomes = simulated.run(ranks, body)
    assert all(outcome == outcomes[0] for outcome in outcomes)
    return outcomes[0]


def load(where, like, ranks=1, epochs=9, identity=IDENTITY, required=False):
    """What is restored into blocks as large as `like`: what was found, the blocks, the warnings of the first rank."""
    blocks = {key: np.full_like(block, 7) for key, block in like.items()}

    def body(comm):
        warnings = []
        found = newest(where, comm, identity, epochs, lambda cut: share(comm, blocks), warnings.append, required)
        return found, warnings

    outcomes = simulated.run(ranks, body)
    assert all(repr(outcome) == repr(outcomes[0]) for outcome in outcomes)
    return outcomes[0][0], blocks, outcomes[0][1]


def same(blocks, others):
    return all(block.tobytes() == others[key].tobytes() for key, block in blocks.items())


SIZES = [5, 0, 300, 1, 77, 4, 0, 12]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 400), max_size=9),
    st.integers(1, 4),
    st.integers(1, 4),
    st.booleans(),
    st.integers(1, 999),
)
def test_any_ranks_read_what_any_others_wrote(tmp_path_factory, sizes, ranks, others, background, piece):
    folder = tmp_path_factory.mktemp("saved")
    blocks = made(sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "PIECE", piece)
        patch.setattr(writer, "SYNCED", 3 * piece)
        ((path,), warnings) = save(folder, blocks, cut_of(3, 2), ranks=ranks, background=background)
    found, restored, more = load(folder, blocks, others)
    assert (warnings, more) == ([], [])
    assert found.path == path
    assert repr(found.cut) == repr(cut_of(3, 2))
    assert same(blocks, restored)


def test_copies_are_of_the_moment_of_begin(tmp_path):
    blocks = made([1000, 10])
    wanted = {key: block.copy() for key, block in blocks.items()}
    gate = threading.Event()
    real = writer.Writer._write

    def late(self, views):
        gate.wait(30)
        real(self, views)

    with pytest.MonkeyPatch.context() as patch, Checkpoints(tmp_path, Serial(), IDENTITY, 2, pytest.fail) as saved:
        patch.setattr(writer.Writer, "_write", late)
        saved.begin(cut_of(1), blocks.items())
        assert saved.written is False
        for block in blocks.values():
            block[:] = 9
        gate.set()
        first = saved.begin(cut_of(2), blocks.items())  # memory is used again, once the first has been settled
        assert first == saved._folder / first.name
        assert saved.settle() is not None
        assert saved.written is None
        assert saved.settle() is None
    assert same(wanted, load(first, wanted)[1])
    assert same(blocks, load(tmp_path, blocks)[1])


def test_the_newest_stay_and_newer_ones_of_an_older_run_until_it_gets_there(tmp_path):
    blocks = made(SIZES)
    names = lambda: [manifest.position(path)[:2] for path in checkpoints_in(tmp_path)]  # noqa: E731
    save(tmp_path, blocks, *[cut_of(epoch, step) for epoch in (1, 2, 12) for step in (0, 3)], ranks=2)
    assert names() == [(12, 3), (12, 0)]
    save(tmp_path, blocks, cut_of(2), cut_of(3), cut_of(4), ranks=3, keep=1)
    assert names() == [(12, 3), (12, 0), (4, 0)]
    save(tmp_path, blocks, cut_of(12, 2), keep=2)
    assert names() == [(12, 3), (12, 2), (12, 0)]
    save(tmp_path, blocks, cut_of(13), keep=2)
    assert names() == [(13, 0), (12, 3)]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in checkpoints_in(tmp_path)} | {lock.NAME}


def test_identity(tmp_path):
    blocks = made(SIZES)
    save(tmp_path, blocks, cut_of(5, 2), ranks=2)
    free = {**IDENTITY, "train": {"epochs": 5, "seed": 1, "threads": 4}}
    assert load(tmp_path, blocks, 2, 5, free)[0].cut["step"] == 2
    others = {
        "is of other data": {**IDENTITY, "data_checksum": "cd" * 32},
        "was made with factors=3, not 4": {**IDENTITY, "model": {"factors": 4, "base": 1}},
        "was made with seed=1, not None": {**IDENTITY, "train": {"epochs": 9}},
        "was made with another loss": {**IDENTITY, "loss": "0123"},
    }
    for text, identity in others.items():
        for where in (tmp_path, checkpoints_in(tmp_path)[0]):
            with pytest.raises(ConfigError, match=text):
                load(where, blocks, 3, identity=identity)
        with pytest.raises(ConfigError, match=f"is of another run: it {text}; choose another folder"):
            save(tmp_path, blocks, cut_of(6), identity=identity)
    with pytest.raises(ConfigError, match="is of epoch 5, beyond epochs=4"):
        load(tmp_path, blocks, 2, 4)
    save(tmp_path, blocks, cut_of(6, 0))  # the end of epoch 5
    assert load(tmp_path, blocks, epochs=5)[0].cut["epoch"] == 6


def test_nothing_to_go_on_from(tmp_path):
    for where in (tmp_path, tmp_path / "none"):
        assert load(where, {}, 2)[0] is None
        with pytest.raises(FormatError, match="has no checkpoint to go on from"):
            load(where, {}, 2, required=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file: can't be read: Not a directory"):
        load(tmp_path / "file", {}, 2)
    with pytest.raises(FormatError, match=r"is no whole checkpoint: it has no manifest.json"):
        load(tmp_path / "epoch-00000001-step-00000000-01234567", {}, 2)


def test_a_damaged_one_gives_way_to_the_one_before(tmp_path):
    old, new = made(SIZES, 1), made(SIZES, 2)
    (first,), _ = save(tmp_path, old, cut_of(1), ranks=2)
    (second,), _ = save(tmp_path, new, cut_of(2), ranks=3)
    victim = next(path for path in second.glob("*.blocks") if path.stat().st_size)
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found, restored, (warning,) = load(tmp_path, old, 2)
    assert found.path == first
    assert same(old, restored)
    assert warning.startswith(f"{victim}: is damaged: block now/rows/")
    assert warning.endswith("does not match its checksum; the checkpoint before it is tried")
    with pytest.raises(FormatError, match="does not match its checksum"):
        load(second, new, 2)
    (first / manifest.MANIFEST).write_text("{}")
    found, _, warnings = load(tmp_path, old, 2)
    assert found is None
    assert warnings[1] == (
        f"{first / manifest.MANIFEST}: is damaged: it does not match its checksum; there is no checkpoint before it"
    )


def test_every_damage_is_noticed(tmp_path):
    """Each byte of the manifest flipped, bytes of the blocks, each length cut to: what is read is right, or nothing."""
    blocks = made([20, 3, 0, 40])
    (path,), _ = save(tmp_path, blocks, cut_of(1), ranks=2)
    files = {file: file.read_bytes() for file in path.iterdir()}
    cases = 0
    for file, content in files.items():
        places = range(len(content))
        damaged = [content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :] for at in places]
        damaged += [content[:at] for at in places[:: 1 if file.suffix == ".blocks" else 7]]
        damaged += [content + b"\0", content + content[-1:]]
        for data in damaged:
            file.write_bytes(data)
            found, _, warnings = load(tmp_path, blocks)
            assert found is None, data
            assert len(warnings) == 1
            cases += 1
        file.unlink()
        assert load(tmp_path, blocks)[0] is None
        file.write_bytes(content)
    assert cases > 1000
    assert same(blocks, load(tmp_path, blocks)[1])


def close_files_in(folder):
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(link).startswith(f"{folder}/"):
                os.close(int(link.name))


class KilledError(BaseException):
    """The end of a process, as far as a test can have one."""


def test_killed_between_any_two_steps_of_writing(tmp_path, monkeypatch):
    """Whatever call on the file system is the last one, the newest whole checkpoint is the old or the new one."""
    old, new = made(SIZES, 1), made(SIZES, 2)
    calls = {"left": math.inf, "made": 0}
    real = {}

    def counted(module, name):
        real[name] = getattr(module, name)

        def call(*arguments, **named):
            calls["made"] += 1
            if calls["made"] > calls["left"]:
                raise KilledError
            return real[name](*arguments, **named)

        monkeypatch.setattr(module, name, call)

    for name in ("replace", "fsync", "fdatasync", "open", "unlink", "mkdir", "rmdir", "close"):
        counted(os, name)
    counted(manifest.shutil, "rmtree")
    seen, last = set(), 0
    for number in range(200):
        folder = tmp_path / f"{number}"
        calls["left"] = math.inf
        save(folder, old, cut_of(1), cut_of(2))
        calls.update(made=0, left=number)
        try:
            saved = Checkpoints(folder, Serial(), IDENTITY, 2, pytest.fail)
            saved.begin(cut_of(3), new.items(), background=False)
            saved.settle()
            ended = True
        except KilledError:
            ended = False
        last = calls["made"]
        calls["left"] = math.inf
        close_files_in(folder)  # as the system does for who is killed
        found, restored, warnings = load(folder, old)
        assert warnings == []
        assert same({2: old, 3: new}[found.cut["epoch"]], restored)
        seen.add(found.cut["epoch"])
        save(folder, new, cut_of(4))  # the next run tidies up
        assert not checkpoints_in(folder, whole=False)
        if ended:
            break
    assert ended
    assert last > 10
    assert seen == {2, 3}


class Failing:
    """A file that takes so many bytes only."""

    def __init__(self, file, room, code):
        self._file, self._room, self._code = file, room, code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def fileno(self):
        if self._room == 0:  # what it took can't be synced
            raise OSError(self._code, os.strerror(self._code))
        return self._file.fileno()

    def write(self, data):
        self._room -= len(data)
        if self._room < 0:
            raise OSError(self._code, os.strerror(self._code))
        return self._file.write(data)


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize(("room", "code"), [(0, errno.ENOSPC), (900, errno.EIO), (1200, errno.EROFS)])
def test_a_disk_that_fails_costs_a_warning(tmp_path, monkeypatch, room, code, background):
    blocks = made([100] * 9)
    save(tmp_path, blocks, cut_of(1), cut_of(2), ranks=3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def opened(path, *mode, **named):
        file = open(path, *mode, **named)  # noqa: SIM115
        return Failing(file, room, code) if path.name == "1.blocks" else file

    monkeypatch.setattr(writer, "open", opened, raising=False)
    paths, (warning,) = save(tmp_path, blocks, cut_of(3, 4), ranks=3, background=background)
    assert paths == [None]
    assert warning.startswith(f"no checkpoint of epoch 3, step 4: {tmp_path}/epoch-00000003-step-00000004-")
    assert "1.blocks: could not be written: " in warning
    assert warning.count("\n") == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    paths, warnings = save(tmp_path, blocks, cut_of(3, 4), ranks=3, background=background)
    assert warnings == []
    assert same(blocks, load(paths[0], blocks)[1])


def test_a_limit_of_the_system_for_files(tmp_path):
    blocks = made([100_000] * 4)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    (good,), _ = save(tmp_path, blocks, cut_of(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        paths, (warning,) = (
            save(tmp_path, blocks, cut_of(2), cut_of(3), ranks=2)[0],
            save(tmp_path, blocks, cut_of(4))[1],
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "could not be written: File too large" in warning
    assert None not in paths  # halves are small enough
    assert same(blocks, load(tmp_path, blocks, 3)[1])
    assert good not in checkpoints_in(tmp_path)


def test_a_manifest_that_can_not_be_written(tmp_path, monkeypatch):
    blocks = made(SIZES)
    (old,), _ = save(tmp_path, blocks, cut_of(1), ranks=2)
    monkeypatch.setattr(manifest, "MOST", 100)
    (path,), (warning,) = save(tmp_path, blocks, cut_of(2), ranks=2)
    assert path is None
    assert "its manifest would have" in warning
    monkeypatch.undo()
    assert [*tmp_path.glob("epoch-*")] == [old]


def test_a_folder_that_is_removed_while_it_is_written_to(tmp_path):
    blocks, folder, warnings = made([1000]), tmp_path / "saved", []
    with Checkpoints(folder, Serial(), IDENTITY, 2, warnings.append) as saved:
        saved.begin(cut_of(1), blocks.items(), background=False)
        shutil.rmtree(folder)
        assert saved.settle() is None
        assert "manifest.json: could not be written: No such file or directory" in warnings[0]
        saved.begin(cut_of(2), blocks.items())
        path = saved.settle()
    assert len(warnings) == 1
    assert same(blocks, load(path, blocks)[1])


@pytest.mark.parametrize("where", ["/proc/mfpar", "file", "file/saved"])
def test_a_folder_that_can_not_be(tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=f"{where}: could not be written: "):
        save(tmp_path / where, {}, cut_of(1), ranks=2)

    def again(comm):
        warnings = []
        with Checkpoints(tmp_path / where, comm, IDENTITY, 2, warnings.append, again=True) as saved:
            saved.begin(cut_of(1), made([3]).items())
            assert saved.settle() is None
        return warnings

    first, second = simulated.run(2, again)
    assert first == second
    assert len(first) == 2  # of the folder, and of the checkpoint


HOLDER = """
import sys, time
from pathlib import Path
from mfpar.integrity.verify import verify
from mfpar.parallel.comm import Serial
from mfpar.recovery.checkpoints import Checkpoints
identity = {"data_checksum": "", "model": {}, "train": {}}
saved = Checkpoints(Path(sys.argv[1]), Serial(), identity, 1, print)
print("held", flush=True)
time.sleep(60)
"""


def test_one_run_at_a_time(tmp_path, monkeypatch):
    """A folder that another process writes to is refused, and what it is writing left alone, until it is killed."""
    half = tmp_path / "epoch-00000001-step-00000000-01234567"
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            half.mkdir()
            with pytest.raises(StorageError, match=rf"another run .*\(process {holder.pid} on .*choose another folder"):
                save(tmp_path, {}, cut_of(1), ranks=2)
            warnings = []
            with Checkpoints(tmp_path, Serial(), IDENTITY, 2, warnings.append, again=True) as saved:
                saved.begin(cut_of(1), made([3]).items())
                assert saved.settle() is not None
            assert len(warnings) == 1
            assert half.exists()
            # Of another host, which may be dead, there is more patience: until the lock is given back.
            (tmp_path / ".lock").write_text("process 7 on some other host")
            ending = threading.Timer(1.0, holder.kill)
            ending.start()
            save(tmp_path, {}, cut_of(3), ranks=2)
        finally:
            holder.kill()
    assert not half.exists()


def test_without_locks_nothing_is_taken_for_waste(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.EOPNOTSUPP, "not here")

    half = tmp_path / "epoch-00000001-step-00000000-01234567"
    half.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(lock.fcntl, "flock", no_locks)
        assert None not in save(tmp_path, {}, cut_of(2), ranks=2)[0]
    assert half.exists()
    save(tmp_path, {}, cut_of(3))
    assert not half.exists()


def test_given_up(tmp_path, monkeypatch):
    """A rank fails while all write: nothing stays but what was whole, and the next has the folder at once."""
    blocks = made([5000] * 8)
    (old,), _ = save(tmp_path, blocks, cut_of(1), ranks=2)
    gate, real = threading.Event(), hashlib.sha256

    def slow(*arguments):
        gate.wait(0.01)
        return real(*arguments)

    monkeypatch.setattr(writer.hashlib, "sha256", slow)

    def body(comm):
        with Checkpoints(tmp_path, comm, IDENTITY, 2, pytest.fail) as saved:
            saved.begin(cut_of(2), share(comm, blocks))
            if comm.rank == 1:
                raise RankLostError("gone")
            saved.settle()

    for _ in range(3):
        assert {type(outcome) for outcome in simulated.run_all(3, body)} == {RankLostError}
    monkeypatch.undo()
    assert load(tmp_path, blocks)[0].path == old
    assert [*tmp_path.glob("epoch-*")] == [old]
    assert not [thread for thread in threading.enumerate() if thread.name == "mfpar-checkpoint"]


def test_a_rank_that_is_lost_while_all_agree_costs_no_checkpoint(tmp_path):
    """Once all have written, the first rank may have made it whole: others must not remove what they wrote."""
    blocks = made(SIZES)

    def body(comm):
        with Checkpoints(tmp_path, comm, IDENTITY, 1, pytest.fail) as saved:
            saved.begin(cut_of(2), share(comm, blocks))
            gather, calls = comm.gather, []

            def losing(value):
                calls.append(value)
                if len(calls) == 2 and comm.rank == 1:
                    raise RankLostError("gone")
                return gather(value)

            comm.gather = losing
            saved.settle()

    assert {type(outcome) for outcome in simulated.run_all(3, body)} == {RankLostError}
    found, restored, warnings = load(tmp_path, blocks, 2)
    assert found.cut["epoch"] == 2
    assert warnings == []
    assert same(blocks, restored)


def test_who_hears_of_a_loss_while_it_takes_the_folder_can_take_it_again(tmp_path, monkeypatch):
    def losing(_):
        raise RankLostError("gone")

    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    comm = Serial()
    monkeypatch.setattr(comm, "gather", losing)
    with pytest.raises(RankLostError):
        Checkpoints(tmp_path, comm, IDENTITY, 2, pytest.fail)
    assert len(save(tmp_path, made([3]), cut_of(1))[0]) == 1


def test_a_dead_disk_is_not_waited_for(tmp_path, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(writer, "STALLED", 0.2)
    real = os.fsync

    def stuck(descriptor):
        gate.wait(60)
        real(descriptor)

    monkeypatch.setattr(writer.os, "fsync", stuck)
    warnings = []
    with Checkpoints(tmp_path, Serial(), IDENTITY, 1, warnings.append) as saved:
        saved.begin(cut_of(1), made([3]).items())
        assert saved.settle() is None
        assert "the disk has not answered" in warnings[0]
        gate.set()
        monkeypatch.undo()
        saved.begin(cut_of(2), made([3]).items())
        assert saved.settle() is not None


def test_a_cut_that_does_not_fit_counts_as_damage(tmp_path):
    blocks = made(SIZES)
    save(tmp_path, blocks, cut_of(1), cut_of(2))

    def lay_out(cut):
        if cut["epoch"] == 2:
            raise FormatError("the order is no permutation")
        return blocks.items()

    warnings = []
    found = newest(tmp_path, Serial(), IDENTITY, 9, lay_out, warnings.append)
    assert found.cut["epoch"] == 1
    (warning,) = warnings
    assert warning.endswith(": is foreign: the order is no permutation; the checkpoint before it is tried")
    for other in (made([5]), made([5, 0, 300, 1, 77, 4, 0, 12, 9]), made([5, 0, 300, 1, 77, 4, 0, 16])):
        del warnings[:]
        more = len(other) > 1
        assert bool(newest(tmp_path, Serial(), IDENTITY, 9, lambda _, o=other: o.items(), warnings.append)) != more
        assert len(warnings) == 2 * more


def test_verify_names_all_that_is_damaged(tmp_path, capsys, monkeypatch):
    blocks = made([100, 2000, 0, 30])
    (old, new), _ = save(tmp_path, blocks, cut_of(1), cut_of(2, 1), ranks=2)
    monkeypatch.setattr("mfpar.integrity.checkpoint.PIECE", 1000)
    assert main(["verify", str(tmp_path), str(old)]) == 0
    assert f"{new}: sound checkpoint: 4 blocks, 2 files; 5 parts, 8.32K in" in capsys.readouterr().out
    for file in new.glob("*.blocks"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        content[0] ^= 128
        file.write_bytes(content + b"more" * (file.name == "0.blocks"))
    assert main(["verify", str(tmp_path), "--json"]) == 1
    said = capsys.readouterr()
    first, second = map(json.loads, said.out.splitlines())
    assert (first["path"], first["sound"], second["path"], second["sound"]) == (str(new), False, str(old), True)
    assert first["damage"][0].startswith("0.blocks: is damaged: it has ")
    assert sum("does not match its checksum" in text for text in first["damage"]) == 3
    assert f"not sound: {new};" in said.err


def test_verify_of_a_large_checkpoint_takes_little_memory(tmp_path):
    (path,), _ = save(tmp_path, made([5 << 20, 4 << 20]), cut_of(1))
    tracemalloc.start()
    assert verify(path).sound
    assert tracemalloc.get_traced_memory()[1] < 6 << 20
    tracemalloc.stop()


def test_info(tmp_path, capsys):
    save(tmp_path, made([100, 20]), cut_of(1), cut_of(2, 1), ranks=2)
    assert main(["info", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["epoch"], facts["step"], facts["bytes"]) == ("checkpoint", 2, 1, 480)
    assert main(["info", facts["path"]]) == 0
    said = capsys.readouterr().out
    assert "factors 3, epochs 9, seed 1, threads 2" in said


@pytest.mark.parametrize(("name", "sentence", "make"), [*MANIFESTS, *SHARDS])
@pytest.mark.parametrize("ranks", [1, 3])
def test_malformed_checkpoints_are_not_gone_on_from(tmp_path, monkeypatch, name, sentence, make, ranks):
    monkeypatch.chdir(tmp_path)
    make()
    like = {key: np.zeros(10, np.float32) for key in ("now/rows/0", "now/cols/0")}
    identity = {"data_checksum": "ab", "model": {"factors": 4}, "train": {"seed": 0}}
    with pytest.raises(FormatError) as caught:
        load(Path(CHECKPOINT), like, ranks, identity=identity)
    assert sentence in str(caught.value), name
    found, _, warnings = load(Path("saved"), like, ranks, identity=identity)
    assert found is None
    assert all(sentence in warning and "\n" not in warning and len(warning) < 400 for warning in warnings)
    assert len(warnings) == (name != "without manifest")


@pytest.mark.parallel(nprocs=3)
def test_processes_write_and_read(tmp_path):
    from mpi4py import MPI

    from mfpar.parallel.mpi import Mpi

    comm = Mpi(MPI.COMM_WORLD)
    blocks, warnings = made(SIZES), []
    restored = {key: np.full_like(block, 7) for key, block in blocks.items()}
    with comm.guard():
        folder = Path(comm.gather(str(tmp_path))[0])
        with Checkpoints(folder, comm, IDENTITY, 1, warnings.append) as saved:
            for epoch in (1, 2):
                saved.begin(cut_of(epoch), share(comm, blocks))
                path = saved.settle()
        found = newest(folder, comm, IDENTITY, 9, lambda cut: share(comm, restored), warnings.append)
        assert comm.gather(str(found.path)) == [str(path)] * 3
        assert repr(found.cut) == repr(cut_of(2))
        assert same(dict(share(comm, blocks)), restored)
        assert checkpoints_in(folder) == [path]
        assert warnings == []
