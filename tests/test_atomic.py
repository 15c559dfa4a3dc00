"""Law 7: files appear whole or not at all."""

import errno
import os
import stat

import h5py
import numpy as np
import pytest

from mfpar import atomic
from mfpar.atomic import DiskFile, make_folder, reason, refuse_existing, replacing
from mfpar.errors import OutputExistsError, StorageError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_all_is_written(tmp_path):
    path = tmp_path / "out.txt"
    for text in ("first", "second"):
        before = path.read_text() if path.exists() else None
        with replacing(path) as temporary:
            temporary.write_text(text)
            assert (path.read_text() if path.exists() else None) == before
            assert temporary.parent == path.parent  # on the same file system, where renaming is one step
        assert path.read_text() == text
        assert names(tmp_path) == ["out.txt"]


def test_a_folder_that_is_made_is_synced_with_all_above_it(tmp_path, monkeypatch):
    """Its name stands in the one above, without which all in it is lost where the machine goes down."""
    synced = []
    monkeypatch.setattr(atomic, "sync", synced.append)
    make_folder(tmp_path / "a" / "b", parents=True)
    assert synced == [tmp_path / "a", tmp_path]
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2
    with pytest.raises(FileNotFoundError):
        make_folder(tmp_path / "c" / "d")

    def cannot(_):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(atomic, "sync", cannot)
    make_folder(tmp_path / "e")
    assert (tmp_path / "e").is_dir()


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_an_error_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "out.txt"
    path.write_text("old")

    def write():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_of_the_system_is_one_sentence_and_leaves_what_was_there(tmp_path, monkeypatch, call):
    path = tmp_path / "out.txt"
    path.write_text("old")

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StorageError) as caught, replacing(path) as temporary:
        temporary.write_text("new")
    assert str(caught.value) == f"{path}: could not be written: no space left on the device; nothing was left behind"
    assert path.read_text() == "old"
    assert names(tmp_path) == ["out.txt"]


def test_a_disk_that_is_read_only_all_at_once(tmp_path, monkeypatch):
    path = tmp_path / "out.txt"
    path.write_text("old")

    def fail(*arguments, **named):
        raise OSError(errno.EROFS, "Read-only file system")

    def write():
        with replacing(path) as temporary:
            temporary.write_text("new")
            for call in ("fsync", "replace", "unlink"):
                monkeypatch.setattr(os, call, fail)

    with pytest.raises(StorageError, match=f"^{path}: could not be written: Read-only"):
        write()
    assert path.read_text() == "old"


def test_a_folder_that_can_not_be_synced_takes_nothing_back(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(tmp_path / "out.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "out.txt").read_text() == "new"


def test_file_and_folder_are_synced_around_the_renaming(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(atomic, "sync", lambda path: done.append(path))
    monkeypatch.setattr(os, "replace", lambda old, new: done.append("replace"))
    with replacing(tmp_path / "out.txt") as temporary:
        temporary.write_text("new")
    assert done == [temporary, "replace", tmp_path]


def test_outputs_that_can_not_be_are_refused_beforehand(tmp_path):
    (tmp_path / "taken").write_text("")
    refuse_existing(tmp_path / "free", force=False)
    refuse_existing(tmp_path / "taken", force=True)
    with pytest.raises(OutputExistsError, match="taken: exists already"):
        refuse_existing(tmp_path / "taken", force=False)
    with pytest.raises(StorageError, match="is a folder"):
        refuse_existing(tmp_path, force=True)
    with pytest.raises(StorageError, match="missing does not exist"):
        refuse_existing(tmp_path / "missing" / "file", force=True)


def test_what_hdf5_hides_is_found():
    hidden = "Can't write data (file write failed: time = Tue, errno = 28, error message = 'No space left on device')"
    assert reason(OSError(hidden)) == "no space left on the device"
    assert reason(OSError(errno.EACCES, "whatever")) == "Permission denied"
    assert reason(OSError("first line\nsecond")) == "first line"


def write_hdf5(target, count):
    with h5py.File(target, "w", libver="latest") as file:
        file["small"] = np.arange(10)
        large = file.create_dataset("large", (0,), np.float32, chunks=(1000,), maxshape=(None,))
        for first in range(0, count, 1000):
            large.resize((first + 1000,))
            large[first : first + 1000] = np.arange(first, first + 1000)
        file.attrs["finished"] = True


def test_hdf5_in_a_disk_file_is_hdf5(tmp_path):
    with DiskFile(tmp_path / "a.h5") as disk:
        write_hdf5(disk, 20_000)
        disk.check()
    with h5py.File(tmp_path / "a.h5", "r") as file:
        assert file.attrs["finished"]
        np.testing.assert_array_equal(file["large"], np.arange(20_000))


def test_a_disk_file_reads_all_that_is_asked_for(tmp_path, monkeypatch):
    """Linux reads 2 GiB at once at most; here 1000 bytes."""
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, views, at: real(file, [view[:1000] for view in views], at))
    content = np.random.default_rng(0).bytes(12_345)
    with DiskFile(tmp_path / "a") as disk:
        disk.write(content)
        for first, wanted in ((0, 12_345), (345, 12_000), (12_000, 1000), (12_345, 10)):
            buffer = bytearray(wanted)
            disk.seek(first)
            count = disk.readinto(memoryview(buffer))
            assert count == min(wanted, len(content) - first)
            assert buffer == content[first : first + count] + bytes(wanted - count)
            assert disk.tell() == first + count
    with DiskFile(tmp_path / "a.h5") as disk, h5py.File(disk, "w", libver="latest") as file:
        file["large"] = np.arange(20_000)
        np.testing.assert_array_equal(file["large"], np.arange(20_000))


@pytest.mark.parametrize("room", [0, 1000, 30_000])
def test_a_full_disk_comes_out_when_asked_for(tmp_path, monkeypatch, room):
    real, written = os.pwrite, 0

    def pwrite(descriptor, data, offset):
        nonlocal written
        if offset + len(data) > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written += len(data)
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with DiskFile(tmp_path / "a.h5") as disk:
        write_hdf5(disk, 20_000)
        with pytest.raises(OSError, match="No space left"):
            disk.check()
    assert (written > 0) == (room > 0)
