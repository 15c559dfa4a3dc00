"""Malformed inputs, each with the command that meets it and what that has to say: the corpus of test_malformed.py.

Everything is made by code, in the current folder. A good ratings.csv, ratings.h5 and model.h5 are there already.
"""

import gzip
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from mfpar import blockfile
from mfpar.model import opening

Maker = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A command line, what is to be made before, and how it ends: exit code, and a part of the one sentence."""

    name: str
    arguments: tuple[str, ...]
    sentence: str
    code: int = 1
    make: Maker = lambda: None


CONVERT = ("convert", "bad", "-o", "new.h5")
HEAD = "user,item,rating\n"
GOOD = HEAD + "".join(f"{i},{j},{1 + (i * j) % 5}\n" for i in range(1, 9) for j in range(1, 9))


def _written(content: str | bytes, name: str = "bad") -> Maker:
    data = content.encode() if isinstance(content, str) else content
    return lambda: Path(name).write_bytes(data)


def _text(name: str, content: str | bytes, sentence: str, *options: str, code: int = 1) -> Case:
    return Case(f"text: {name}", (*CONVERT, *options), sentence, code, _written(content))


TEXT = [
    _text("empty", "", "bad: is empty"),
    _text("blank lines", "\n\n\n", "bad: is empty"),
    _text("header only", HEAD, "bad: no ratings found"),
    _text("one column", "a\n1\n2\n", "has no delimiter"),
    _text("two columns", "1,2\n3,4\n", "columns for user, item, rating are needed"),
    _text("too few fields", GOOD + "9,9\n", "bad, line 66: has too few fields: 2 where 3"),
    _text("too many fields", GOOD + "9,9,1,1\n", "bad, line 66: has too many fields: 4 where 3"),
    _text("rating is a word", GOOD + "9,9,good\n", "bad, line 66: the rating 'good' is not a finite number"),
    _text("rating is missing", GOOD + "9,9,\n", "bad, line 66: the rating is missing"),
    _text("rating is NaN", GOOD + "9,9,nan\n", "bad, line 66: the rating 'nan' is not a finite number"),
    _text("rating is infinite", GOOD + "9,9,-inf\n", "bad, line 66: the rating '-inf' is not a finite number"),
    _text("rating is beyond single precision", GOOD + "9,9,1e39\n", "line 66: the rating '1e39' is not a finite"),
    _text("rating is beyond double precision", GOOD + "9,9,1e999\n", "line 66: the rating '1e999' is not a finite"),
    _text("rating with a decimal comma", "1;2;3\n4;5;3,5\n", "bad, line 2: the rating '3,5' is not a finite"),
    _text("user is missing", GOOD + ",9,1\n", "bad, line 66: the user id is missing"),
    _text("item is missing", GOOD + "9,,1\n", "bad, line 66: the item id is missing"),
    _text("id of 2,000 bytes", GOOD + "x" * 2000 + ",9,1\n", "bad, line 66: the user id 'xxx"),
    _text("id with NUL", GOOD + "a\0b,9,1\n", "bad: is a binary file"),
    _text("NUL late", HEAD + GOOD.removeprefix(HEAD) * 300 + "a\0b,9,1\n", "NUL"),
    _text("binary", bytes(range(256)) * 9, "bad: is a binary file"),
    _text("UTF-16", GOOD.encode("utf-16"), "bad: is a binary file"),
    _text("Latin-1", GOOD.encode() + "é,9,1\n".encode("latin-1"), "is not UTF-8; convert the file first"),
    _text("quote never closed", GOOD + '"9,9,1\n8,8,1\n', "a quoted field does not end"),
    _text("a line of a megabyte", GOOD + "9" * (1 << 20) + ",9,1\n", "bad, line 66: the user id '999"),
    _text("a line of 3 megabytes", GOOD + "9" * (3 << 20) + ",9,1\n", "is longer than 2 MB"),
    _text("a first line of 3 megabytes", "9" * (3 << 20) + ",9,1\n", "bad: "),
    _text("mixed delimiters", GOOD + "9;9;1\n", "bad, line 66: has too few fields: 1 where 3"),
    _text("second header", GOOD + HEAD, "bad, line 66: the rating 'rating' is not a finite number"),
    _text("header without rating", "user,item,when\n1,2,x\n", "has no column known as rating"),
    _text("header with two users", "uid,userid,item,rating\n1,2,3,4\n", "has several columns known as user"),
    _text("columns that are not there", GOOD, "has no column 'nope'", "--columns", "user,item,nope"),
    _text("column 9", GOOD, "has no column '9'", "--columns", "1,2,9"),
    _text("two names of columns", GOOD, "must be names or positions", "--columns", "user,item", code=2),
    _text("a column twice", GOOD, "must be names or positions", "--columns", "user,user,rating", code=2),
    _text("weights that are not there", GOOD, "has no column 'w'", "--weights", "w"),
    _text(
        "negative weight", "user,item,rating,w\n1,2,3,1\n1,3,3,-1\n", "line 3: the weight '-1' is not", "--weights", "w"
    ),
    _text("weight is NaN", "user,item,rating,w\n1,2,3,nan\n", "line 2: the weight 'nan' is not", "--weights", "w"),
    _text("repeated ratings", GOOD + "1,1,2\n", "1", "--duplicates", "error"),
    _text("truncated gzip", gzip.compress(GOOD.encode() * 99)[:-40], "bad: is a truncated or damaged gzip file"),
    _text("gzip cut in its head", gzip.compress(GOOD.encode())[:5], "bad: is a truncated or damaged gzip file"),
    _text("no gzip", b"\x1f\x8b" + GOOD.encode(), "bad: is a truncated or damaged gzip file"),
    _text("gzip of nothing", gzip.compress(b""), "bad: is empty"),
    _text("gzip with a wrong sum", gzip.compress(GOOD.encode())[:-8] + b"\0" * 8, "damaged gzip file"),
    _text("gzip in gzip", gzip.compress(gzip.compress(GOOD.encode())), "bad: is a binary file"),
]


def _parquet(**columns: object) -> Maker:
    def make() -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), "bad")

    return make


def _cut(name: str, length: int) -> None:
    Path(name).write_bytes(Path(name).read_bytes()[:length])


THREE = {"user": [1, 2, 3], "item": [1, 2, 3], "rating": [1.0, 2.0, 3.0]}
PARQUET = [
    Case(f"parquet: {name}", CONVERT, sentence, 1, make)
    for name, sentence, make in (
        ("magic bytes and garbage", "bad: is damaged, truncated", _written(b"PAR1" + b"garbage" * 99)),
        ("magic bytes round garbage", "bad: is damaged, truncated", _written(b"PAR1" + b"\xff" * 99 + b"PAR1")),
        ("magic bytes alone", "bad: is damaged, truncated", _written(b"PAR1")),
        ("truncated", "bad: is damaged, truncated", lambda: (_parquet(**THREE)(), _cut("bad", 200))),
        ("no columns", "bad: ", _parquet()),
        (
            "no rows",
            "bad: no ratings found",
            _parquet(**{name: np.array(values[:0], float) for name, values in THREE.items()}),
        ),
        ("null user", "bad, row 2: the user id is missing", _parquet(**THREE | {"user": [1, None, 3]})),
        ("null rating", "bad, row 2: the rating is missing", _parquet(**THREE | {"rating": [1.0, None, 3.0]})),
        ("NaN rating", "bad, row 2: the rating 'nan'", _parquet(**THREE | {"rating": [1.0, float("nan"), 3.0]})),
        ("words for ratings", "bad, row 1: the rating 'a'", _parquet(**THREE | {"rating": ["a", "b", "c"]})),
        ("nested user", "the column 'user' has the type", _parquet(**THREE | {"user": [[1], [2], [3]]})),
        ("nested rating", "the column 'rating' has the type", _parquet(**THREE | {"rating": [{"a": 1}] * 3})),
        ("user 1.5", "the user id 1.5 is neither a whole number", _parquet(**THREE | {"user": [1.0, 1.5, 2.0]})),
        ("other columns", "has no column known as user or item or rating", _parquet(a=[1], b=[2])),
    )
]

MTX = "%%MatrixMarket matrix coordinate real general\n"


def _npz(**arrays: object) -> Maker:
    def make() -> None:
        with open("bad", "wb") as file:
            np.savez(file, **arrays)

    return make


class _Bomb:
    """What runs code where somebody unpickles it."""

    def __reduce__(self):
        return Path.touch, (Path("pickle-was-read"),)


def _shelled(content: bytes) -> None:
    with zipfile.ZipFile("bad", "w") as archive:
        for name in THREE:
            archive.writestr(f"{name}.npy", content)


MATRICES = [
    Case(f"matrix: {name}", CONVERT, sentence, 1, make)
    for name, sentence, make in (
        ("header of mtx alone", "bad: is no sound Matrix Market file", _written(MTX)),
        (
            "mtx of another kind",
            "bad: is no sound Matrix Market file",
            _written(MTX.replace("real", "odd") + "1 1 1\n"),
        ),
        ("mtx truncated", "bad: is no sound Matrix Market file", _written(MTX + "3 3 4\n1 1 1\n")),
        ("mtx beyond its size", "bad: is no sound Matrix Market file", _written(MTX + "3 3 1\n9 1 1\n")),
        ("mtx with words", "bad: is no sound Matrix Market file", _written(MTX + "3 3 1\na b c\n")),
        ("mtx of absurd size", "bad: ", _written(MTX + f"3 3 {10**15}\n1 1 1\n")),
        ("mtx dense", "is a dense Matrix Market array", _written(MTX.replace("coordinate", "array") + "1 1\n1\n")),
        ("mtx complex", "holds complex numbers", _written(MTX.replace("real", "complex") + "3 3 1\n1 1 1 1\n")),
        ("mtx with NaN", "row 1: the rating is missing or not a number", _written(MTX + "3 3 1\n1 1 nan\n")),
        ("mtx of no entries", "bad: no ratings found", _written(MTX + "3 3 0\n")),
        ("zip garbage", "bad: is no .npz file", _written(b"PK\3\4" + b"garbage" * 9)),
        ("zip of garbage", "bad: is no .npz file", lambda: _shelled(b"garbage")),
        ("npz truncated", "bad: is no .npz file", lambda: (_npz(**THREE)(), _cut("bad", 300))),
        ("npz of two arrays", "bad: ", _npz(user=[1], item=[2])),
        ("npz of unequal lengths", "of one length", _npz(user=[1, 2], item=[2], rating=[1.0])),
        ("npz with dimensions", "must be flat", _npz(user=[[1]], item=[[2]], rating=[[1.0]])),
        ("npz with dates", "has dtype", _npz(user=np.array(["2020"], "M8[D]"), item=[1], rating=[1.0])),
        ("npz of pickles", "bad: is no .npz file", _npz(user=np.array([_Bomb()]), item=[1], rating=[1.0])),
        ("npz of half a matrix", "bad: is no .npz file", _npz(format=b"csr", shape=(2, 2), data=[1.0])),
        (
            "npz matrix with wild indices",
            "bad: is no .npz file",
            _npz(format=b"csr", shape=(2, 2), data=[1.0], indices=[7], indptr=[0, 1, 1]),
        ),
        ("hdf5", "bad: is an HDF5 file, not a source", lambda: shutil.copy("ratings.h5", "bad")),
    )
]


def _edited(source: str, edit: Callable[[h5py.File], object], sums: bool = True) -> Maker:
    """A copy of a good file, changed; with `sums` under a checksum that says that all is well."""

    def make() -> None:
        shutil.copy(source, "bad.h5")
        with h5py.File("bad.h5", "r+", libver="latest") as file:
            edit(file)
            if sums and source == "ratings.h5":
                names = {field: file.attrs[field].item() for field in blockfile.Header.__dataclass_fields__}
                names |= {name: bool(names[name]) for name in ("implicit", "weighted")}
                file.attrs["checksum"] = blockfile.checksum_of(blockfile.Header(**names), file)
            elif sums:
                file.attrs["checksum"] = opening.checksum_of(file.attrs, file)

    return make


def _set(name: str, value: object) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[name]
        file[name] = value

    return edit


def _deleted(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


def _attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


def _huge(name: str, dtype: str) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, (1 << 50,), dtype, chunks=(1 << 16,))

    return edit


def _descending(file: h5py.File) -> None:
    file["train/offsets"][1] = 1 << 40


def _outside(file: h5py.File) -> None:
    end = int(file["train/offsets"][4])  # of the first of four row-blocks
    file["train/rows"][end - 1] = 60_000
    sums = [file[f"train/{name}"][:end] for name in ("rows", "cols", "values")]
    file["train/checksums"][0] = blockfile.digest(*sums)


def _packed(file: h5py.File) -> None:
    values = file["P"][()]
    del file["P"]
    file.create_dataset("P", data=values, compression="gzip")


def _shard_gone(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(file["train/values"].shape, np.float32)
    layout[:] = h5py.VirtualSource("gone.shards/1.h5", "train/values", file["train/values"].shape)
    del file["train/values"]
    file.create_virtual_dataset("train/values", layout)


def _old_format() -> None:
    with h5py.File("bad.h5", "w", libver="earliest") as file, h5py.File("ratings.h5") as good:
        file.attrs.update(good.attrs)


BLOCKED = [
    Case(f"blocked: {name}", ("info", "bad.h5"), sentence, 1, make)
    for name, sentence, make in (
        *(
            (
                f"without {name}",
                f"bad.h5: is damaged or foreign: it has no dataset {name}",
                _edited("ratings.h5", _deleted(name), False),
            )
            for name in ("rows/ids", "cols/cuts", "train/values", "train/offsets", "test/checksums")
        ),
        ("without a group", "it has no dataset rows/cuts", _edited("ratings.h5", _deleted("rows"), False)),
        ("floats for cuts", "rows/cuts is float64", _edited("ratings.h5", _set("rows/cuts", np.zeros(5)), False)),
        (
            "doubles for values",
            "train/values is float64",
            _edited("ratings.h5", lambda f: _set("train/values", f["train/values"][()].astype(float))(f), False),
        ),
        (
            "signed indices",
            "train/rows is int16",
            _edited("ratings.h5", lambda f: _set("train/rows", f["train/rows"][()].astype(np.int16))(f), False),
        ),
        ("too few ids", "expected int64 or S (8)", _edited("ratings.h5", _set("rows/ids", np.arange(7)), False)),
        (
            "cuts in two dimensions",
            "rows/cuts is int64",
            _edited("ratings.h5", _set("rows/cuts", np.zeros((2, 2), int)), False),
        ),
        ("a number for a dataset", "rows/cuts is int64 ()", _edited("ratings.h5", _set("rows/cuts", 7), False)),
        ("offsets that descend", "train/offsets does not ascend from 0 to 64", _edited("ratings.h5", _descending)),
        (
            "cuts that do not ascend",
            "rows/cuts does not ascend from 0 to 8",
            _edited("ratings.h5", lambda f: f["rows/cuts"].__setitem__(1, 1 << 60)),
        ),
        (
            "cuts of 2^50 blocks",
            "bad.h5: is damaged: rows/cuts is to be",
            _edited("ratings.h5", _huge("rows/cuts", "i8"), False),
        ),
        (
            "values of 2^50 ratings",
            "train/values is float32",
            _edited("ratings.h5", _huge("train/values", "f4"), False),
        ),
        (
            "2^50 ratings and a header that agrees",
            "train/rows is uint16",
            _edited(
                "ratings.h5", lambda f: (_huge("train/values", "f4")(f), f.attrs.__setitem__("ratings", 1 << 50)), False
            ),
        ),
        ("a header of 2^50 rows", "rows/ids is int64", _edited("ratings.h5", _attribute("rows", 1 << 50), False)),
        (
            "without version",
            "its header can't be read",
            _edited("ratings.h5", lambda f: f.attrs.__delitem__("version"), False),
        ),
        ("another version", "has format version 99", _edited("ratings.h5", _attribute("version", 99), False)),
        ("a word for a version", "has format version two", _edited("ratings.h5", _attribute("version", "two"), False)),
        (
            "another format",
            "is a file of kind 'mfpar soup'",
            _edited("ratings.h5", _attribute("format", "mfpar soup"), False),
        ),
        (
            "no format",
            "is HDF5, not a blocked ratings file",
            _edited("ratings.h5", lambda f: f.attrs.__delitem__("format"), False),
        ),
        ("a number for a format", "not a blocked ratings file", _edited("ratings.h5", _attribute("format", 7), False)),
        ("a word for rows", "its header can't be read", _edited("ratings.h5", _attribute("rows", "many"), False)),
        ("an array for rows", "its header can't be read", _edited("ratings.h5", _attribute("rows", [1, 2]), False)),
        (
            "without mean",
            "its header can't be read",
            _edited("ratings.h5", lambda f: f.attrs.__delitem__("mean"), False),
        ),
        (
            "a number for a checksum",
            "do not match their checksum",
            _edited("ratings.h5", _attribute("checksum", 7), False),
        ),
        ("another checksum", "do not match their checksum", _edited("ratings.h5", _attribute("checksum", "ab"), False)),
        (
            "weights promised",
            "it has no dataset train/weights",
            _edited("ratings.h5", _attribute("weighted", 1), False),
        ),
        ("a missing shard", "gone.shards/1.h5: this shard of the blocked file", _edited("ratings.h5", _shard_gone)),
        ("the old HDF5 format", "is in HDF5's old format", _old_format),
        ("an empty file", "is not an HDF5 file", _written("", "bad.h5")),
        ("text", "is not an HDF5 file", _written(GOOD, "bad.h5")),
        ("the signature alone", "bad.h5: ", _written(b"\x89HDF\r\n\x1a\n", "bad.h5")),
        ("the signature and garbage", "bad.h5: is damaged", _written(b"\x89HDF\r\n\x1a\n\3" + b"\xff" * 99, "bad.h5")),
        ("half of it", "bad.h5: is ", lambda: (shutil.copy("ratings.h5", "bad.h5"), _cut("bad.h5", 3000))),
    )
]
BLOCKED += [
    Case(
        f"training on: {name}",
        ("train", "bad.h5", "-o", "new.h5", "--epochs", "1", "--factors", "4"),
        sentence,
        1,
        make,
    )
    for name, sentence, make in (
        (
            "other ratings",
            "is damaged in the train ratings of row-block 0",
            _edited("ratings.h5", lambda f: f["train/values"].__setitem__(0, 77)),
        ),
        (
            "other ids",
            "is damaged in the ids of the rows, block 0",
            _edited("ratings.h5", lambda f: f["rows/ids"].__setitem__(0, 77)),
        ),
        (
            "indices outside their blocks",
            "has train ratings with indices outside their blocks",
            _edited("ratings.h5", _outside),
        ),
        ("a missing dataset", "it has no dataset cols/counts", _edited("ratings.h5", _deleted("cols/counts"))),
        ("a missing shard", "gone.shards/1.h5: this shard", _edited("ratings.h5", _shard_gone)),
        ("a model", "is a file of kind 'mfpar model'", lambda: shutil.copy("model.h5", "bad.h5")),
    )
]

MODELS = [
    Case(f"model: {name}", ("evaluate", "bad.h5", "ratings.csv"), sentence, 1, make)
    for name, sentence, make in (
        *(
            (f"without {name}", f"has no dataset {name}", _edited("model.h5", _deleted(name), False))
            for name in ("row_cuts", "col_checksums", "row_id_checksums")
        ),
        *(
            (f"without {name}", f"has no dataset {name}", _edited("model.h5", _deleted(name)))
            for name in ("P", "col_ids")
        ),
        ("doubles for factors", "P is float64", _edited("model.h5", lambda f: _set("P", f["P"][()].astype(float))(f))),
        (
            "too few biases",
            "row_bias is float32 (3,), expected (8,)",
            _edited("model.h5", _set("row_bias", np.zeros(3, np.float32))),
        ),
        ("cuts of 2^50 blocks", "row_cuts is to be", _edited("model.h5", _huge("row_cuts", "i8"), False)),
        (
            "cuts that do not ascend",
            "row_cuts does not ascend from 0",
            _edited("model.h5", lambda f: f["row_cuts"].__setitem__(1, 1 << 60)),
        ),
        ("another version", "has format version 1", _edited("model.h5", _attribute("version", 1))),
        (
            "another header",
            "header and cuts do not match their checksum",
            _edited("model.h5", _attribute("base", 9.0), False),
        ),
        ("config that is no JSON", "its header can't be read", _edited("model.h5", _attribute("config", "{"))),
        ("without base", "its header can't be read", _edited("model.h5", lambda f: f.attrs.__delitem__("base"), False)),
        ("packed factors", "P was never written, or not in one piece", _edited("model.h5", _packed)),
        ("ratings", "is a file of kind 'mfpar blocked ratings'", lambda: shutil.copy("ratings.h5", "bad.h5")),
        ("text", "is not an HDF5 file", _written(GOOD, "bad.h5")),
        ("half of it", "bad.h5: is ", lambda: (shutil.copy("model.h5", "bad.h5"), _cut("bad.h5", 3000))),
    )
]

CHECKPOINT = "saved/epoch-00000002-step-00000003-01234567"
ROW = ["now/rows/0", "0.blocks", 0, 40, hashlib.sha256(bytes(40)).hexdigest()]


def _checkpoint(edit: Callable[[dict], object], after: Callable[[Path], object] = lambda path: None) -> Maker:
    """A checkpoint of two blocks in a file each, changed under a checksum that says that all is well."""

    def make() -> None:
        path = Path(CHECKPOINT)
        path.mkdir(parents=True)
        content = {
            "format": "mfpar checkpoint",
            "version": 1,
            "identity": {"data_checksum": "ab", "model": {"factors": 4}, "train": {"seed": 0}},
            "cut": {"epoch": 2, "step": 3},
            "blocks": [[*ROW], ["now/cols/0", "1.blocks", *ROW[2:]]],
        }
        for name in ("0.blocks", "1.blocks"):
            (path / name).write_bytes(bytes(40))
        text = json.dumps(edit(content) or content).encode()
        (path / "manifest.json").write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        after(path)

    return make


def _entry(place: int, value: object) -> Maker:
    return _checkpoint(lambda content: content["blocks"][0].__setitem__(place, value))


def _item(*where: object) -> Maker:
    *keys, last, value = where

    def edit(content: dict) -> None:
        for key in keys:
            content = content[key]
        content[last] = value

    return _checkpoint(edit)


def _manifest(content: bytes, sums: bool = True) -> Maker:
    text = hashlib.sha256(content).hexdigest().encode() + b"\n" + content if sums else content
    return _checkpoint(dict, lambda path: (path / "manifest.json").write_bytes(text))


def _nothing(content: dict) -> None:
    pass


def _instead(name: str, replace: Callable[[Path], object]) -> Maker:
    return _checkpoint(_nothing, lambda path: ((path / name).unlink(), replace(path / name)))


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


MANIFESTS = [
    ("without manifest", "has no manifest.json", _instead("manifest.json", lambda path: None)),
    ("empty manifest", "does not match its checksum", _manifest(b"", False)),
    ("manifest without checksum", "does not match its checksum", _manifest(b"{}", False)),
    ("manifest of a terabyte", "more than any manifest", _instead("manifest.json", _sparse)),
    ("manifest that is a folder", "manifest.json: is no regular file", _instead("manifest.json", Path.mkdir)),
    ("manifest that is a pipe", "manifest.json: is no regular file", _instead("manifest.json", os.mkfifo)),
    ("manifest that is a link", "is a link", _instead("manifest.json", lambda path: path.symlink_to("/dev/zero"))),
    ("manifest that is no JSON", "manifest.json: is foreign: it is no JSON", _manifest(b"{")),
    ("manifest not UTF-8", "manifest.json: is foreign: it is no JSON", _manifest(b'"\xff"')),
    ("manifest of brackets", "manifest.json: is foreign: it is no JSON", _manifest(b"[" * 10**6)),
    ("manifest of digits", "manifest.json: is foreign: it is no JSON", _manifest(b"9" * 10**6)),
    ("manifest that is a list", "it is no manifest of a checkpoint", _manifest(b"[]")),
    ("another format", "it is no manifest of a checkpoint", _item("format", "mfpar soup")),
    ("another version", "it has version 2, this mfpar reads 1", _item("version", 2)),
    ("true for a version", "it has version True", _item("version", True)),
    ("no identity", "it does not say which run it is of", _item("identity", None)),
    ("a number for the data", "it does not say which data it is of", _item("identity", "data_checksum", 7)),
    ("a list for the model", "it has no settings of model", _item("identity", "model", [])),
    ("no settings", "it has no settings of train", _item("identity", "train", None)),
    ("a word for a cut", "it has no cut", _item("cut", "here")),
    ("epoch 0", "its epoch is 0", _item("cut", "epoch", 0)),
    ("epoch 1.5", "its epoch is 1.5", _item("cut", "epoch", 1.5)),
    ("a step that is missing", "its step is None", _item("cut", {"epoch": 1})),
    ("a huge step", "its step is 9999", _item("cut", "step", 10**4000 - 1)),
    ("no blocks", "it has no list of blocks", _item("blocks", {})),
    ("a number for a block", "block 0 '' has other parts", _item("blocks", 0, 7)),
    ("a block of four", "block 0 '' has other parts", _item("blocks", 0, ROW[:4])),
    ("a float for bytes", "block 0 '' has other parts", _entry(3, 40.0)),
    ("a path for a file", "lies in a file '../0.blocks'", _entry(1, "../0.blocks")),
    ("an absolute path", "lies in a file '/etc/passwd'", _entry(1, "/etc/passwd")),
    ("a file of a line more", "lies in a file '0.blocks\\n'", _entry(1, "0.blocks\n")),
    ("negative bytes", "has -4 bytes", _entry(3, -4)),
    ("half a number", "has 39 bytes", _entry(3, 39)),
    ("a block of 10^4000 bytes", "bytes", _entry(3, 4 * 10**4000)),
    ("a block behind nothing", "begins at byte 8 instead of 0", _entry(2, 8)),
    ("two blocks of a key", "block 1 'now/rows/0' occurs twice", _item("blocks", [ROW, ROW])),
    ("no SHA-256", "has the SHA-256 'ab'", _entry(4, "ab")),
]
SHARDS = [
    ("a larger block", "0.blocks: is damaged: it has 40 bytes instead of 44", _entry(3, 44)),
    ("a block of 2^60 bytes", "0.blocks: is damaged: it has 40 bytes instead of 115", _entry(3, 1 << 60)),
    ("a missing file", "1.blocks: is missing", _instead("1.blocks", lambda path: None)),
    ("a file that is a pipe", "1.blocks: is no regular file", _instead("1.blocks", os.mkfifo)),
    ("a link to zeros", "is a link", _instead("1.blocks", lambda path: path.symlink_to("/dev/zero"))),
    ("half a file", "it has 20 bytes", _instead("1.blocks", lambda path: path.write_bytes(bytes(20)))),
    ("a file and a half", "it has 60 bytes", _instead("1.blocks", lambda path: path.write_bytes(bytes(60)))),
]
OTHER = ("other data", "is of other data", _checkpoint(_nothing))
CHECKPOINTS = [Case(f"checkpoint: {name}", ("info", "saved"), sentence, 1, make) for name, sentence, make in MANIFESTS]
CHECKPOINTS[0] = Case(CHECKPOINTS[0].name, ("info", CHECKPOINT), *MANIFESTS[0][1:2], 1, MANIFESTS[0][2])
CHECKPOINTS += [
    Case(f"checkpoint: {name}", ("verify", "saved"), f"not sound: {CHECKPOINT}", 1, make)
    for name, make in (
        *((name, make) for name, _, make in SHARDS),
        ("other content", _instead("1.blocks", lambda path: path.write_bytes(b"x" * 40))),
    )
]
CHECKPOINTS += [
    Case("checkpoint: an empty folder", ("verify", "folder"), "not sound: folder", 1),
    Case("checkpoint: an empty folder for info", ("info", "folder"), "folder: is a folder without a checkpoint", 1),
]
RESUMED = [
    Case(f"resuming: {name}", ("train", "ratings.h5", "-o", "new.h5", "--resume", CHECKPOINT), sentence, code, make)
    for code, cases in ((1, MANIFESTS), (1, SHARDS), (2, [OTHER]))
    for name, sentence, make in cases
]

TRAIN = ("train", "ratings.h5", "-o", "new.h5")
SETTINGS = [
    Case(f"configuration: {name}", (*TRAIN, "--config", "bad.toml"), sentence, 2, _written(content, "bad.toml"))
    for name, content, sentence in (
        ("no TOML", "[model\n", "bad.toml: is no TOML file"),
        ("not UTF-8", b"a = '\xff'", "bad.toml: is no TOML file"),
        ("a setting that there is not", "[model]\nfactor = 3\n", "bad.toml: [model] has no setting 'factor'"),
        ("a table that there is not", "[modell]\n", "bad.toml: has 'modell'"),
        ("a number for a table", "model = 3\n", "bad.toml: [model] "),
        ("a word for a number", "[model]\nfactors = 'many'\n", "factors='many': expected an integer"),
        ("a float for an integer", "[model]\nfactors = 3.5\n", "factors=3.5: expected an integer"),
        ("a number for a word", "[model]\ninit = 3\n", "init=3: expected one of"),
        ("a list for a flag", "[model]\nbiases = [1]\n", "biases=(1.0,): expected true or false"),
        ("a list of words", "[train]\nlr = ['a']\n", "lr=('a',): expected a number > 0"),
        ("a table for a number", "[train]\nepochs = {a = 1}\n", "epochs={'a': 1}: expected an integer"),
        ("a table for a word", "[train]\noptimizer = {a = 1}\n", "optimizer={'a': 1}: expected one of"),
        ("a loss that is a list", "[model]\nloss = [1]\n", "loss=(1.0,): expected one of"),
        ("infinity", "[model]\nreg = inf\n", "reg=inf: expected a number"),
        ("a date", "[train]\nseed = 2020-01-01\n", "seed=datetime.date(2020, 1, 1): expected an integer"),
    )
]


def _option(name: str, *options: str, sentence: str, code: int = 2) -> Case:
    return Case(f"option: {name}", (*TRAIN, *options), sentence, code)


OPTIONS = [
    _option("unknown loss", "--loss", "dance", sentence="loss='dance': expected one of"),
    _option("a loss of no module", "--loss", "nope:loss", sentence="loss='nope:loss': can't be imported"),
    _option("a loss that is a module", "--loss", "json:decoder", sentence="loss='json:decoder': is a module"),
    _option("no factors", "--factors", "0", sentence="factors=0: expected an integer from 1 to 4096"),
    _option("5,000 factors", "--factors", "5000", sentence="factors=5000: expected"),
    _option("no epochs", "--epochs", "0", sentence="epochs=0: expected"),
    _option("negative reg", "--reg", "-1", sentence="reg=-1.0: expected"),
    _option("reg is NaN", "--reg", "nan", sentence="reg=nan: expected"),
    _option("no rate", "--lr", "0", sentence="lr=0.0: expected"),
    _option("a rate of words", "--lr", "fast", sentence="argument --lr: invalid"),
    _option("negative seed", "--seed", "-1", sentence="seed=-1: expected"),
    _option("no size", "--memory", "much", sentence="argument --memory: invalid"),
    _option("hardly any memory", "--memory", "1K", sentence="memory"),
    _option("patience without validation", "--patience", "3", sentence="early stopping needs a validation part"),
    _option("folds and a fraction", "--folds", "3", "--validation-fraction", "0.1", sentence="exclude each other"),
    _option("fold 9 of 3", "--folds", "3", "--fold", "9", sentence="fold=9: expected one from 1 to folds=3"),
    _option("no threads", "--threads", "0", sentence="threads=0: expected"),
    _option("no ranks", "--ranks", "0", sentence="ranks=0: expected"),
    _option("more ranks than blocks", "--ranks", "99", sentence="99 ranks for a grid of"),
    _option("a host without ranks", "--hosts", "alpha:0", sentence="hosts='alpha:0': 'alpha:0' is no host"),
    _option("a host that is an option", "--hosts=-oProxyCommand=x", sentence="hosts='-oProxyCommand=x': '-oProxy"),
    _option("a host twice", "--hosts", "alpha,alpha:2", sentence="hosts='alpha,alpha:2': alpha is named twice"),
    _option("restarts of nothing", "--restarts", "2", sentence="restarts=2: only of ranks that it has started"),
    _option(
        "fewer restarts than none", "--ranks", "2", "--restarts", "-1", sentence="restarts=-1: expected an integer"
    ),
    _option("missing configuration", "--config", "none.toml", sentence="none.toml: can't be read: No such file"),
    _option("a folder for a configuration", "--config", "folder", sentence="folder: can't be read: Is a directory"),
    _option("a folder for a log", "--log", "folder", sentence="folder: could not be written: Is a directory", code=1),
    _option("checkpoints in place of the model", "--checkpoint", "new.h5", sentence="new.h5: is wanted for the model"),
    _option("a file for checkpoints", "--checkpoint", "ratings.csv", sentence="ratings.csv: is no folder", code=1),
    _option("the ratings for a log", "--log", "ratings.h5", sentence="ratings.h5: is also an input"),
    *(
        Case(f"arguments: {' '.join(arguments)}", arguments, sentence, code)
        for arguments, sentence, code in (
            (("train", "none.h5", "-o", "new.h5"), "none.h5: no such file", 1),
            (("train", "folder", "-o", "new.h5"), "folder: ", 1),
            (("train", "ratings.h5", "-o", "folder"), "folder: is a folder; name a file to write", 1),
            (("train", "ratings.h5", "-o", "model.h5"), "model.h5: exists already", 2),
            (("train", "ratings.h5", "-o", "ratings.h5", "--force"), "ratings.h5: is also an input", 2),
            (("train", "ratings.h5", "-o", "none/new.h5"), "none/new.h5: the folder", 1),
            (("train", "ratings.h5", "-o", "ratings.csv/new.h5"), "ratings.csv/new.h5: the folder", 1),
            *(
                ((*verb, "-o", "/proc/mfpar"), "error: /proc", 1)
                for verb in (("convert", "ratings.csv"), ("train", "ratings.h5"), ("export", "model.h5"))
            ),
            (("convert", "none.csv", "-o", "new.h5"), "none.csv: no such file", 1),
            (("convert", "none*.csv", "-o", "new.h5"), "no file matches this pattern", 1),
            (("convert", "folder", "-o", "new.h5"), "folder: is a folder; name files", 1),
            (("convert", "ratings.csv", "-o", "ratings.csv"), "ratings.csv: ", 2),
            (("convert", "ratings.csv", "-o", "ratings.h5"), "ratings.h5: exists already", 2),
            (("convert", "ratings.csv", "-o", "new.h5", "--grid", "0"), "grid=0", 2),
            (("convert", "ratings.csv", "-o", "new.h5", "--grid", "99"), "grid=99", 2),
            (("convert", "ratings.csv", "-o", "new.h5", "--test-fraction", "2"), "test_fraction=2.0", 2),
            (("convert", "ratings.csv", "-o", "new.h5", "--test-fraction", "nan"), "test_fraction=nan", 2),
            (("convert", "ratings.csv", "-o", "new.h5", "--seed", "-1"), "seed=-1", 2),
            (("convert", "ratings.csv", "-o", "new.h5", "--memory", "1M"), "memory", 2),
            (("convert", "ratings.csv", "-o", "new.h5", "--test", "none.csv"), "none.csv: no such file", 1),
            (("convert", "ratings.csv", "-o", "new.h5", "--duplicates", "none"), "invalid choice", 2),
            (("info", "none.h5"), "none.h5: no such file", 1),
            (("info", "folder"), "folder: ", 1),
            (("evaluate", "model.h5", "none.csv"), "none.csv: no such file", 1),
            (("evaluate", "model.h5", "ratings.csv", "--metrics", "beauty"), "beauty", 2),
            (("evaluate", "model.h5", "ratings.csv", "--metrics", "mpr"), "mpr", 2),
            (("evaluate", "folder"), "folder: ", 1),
            (("predict", "model.h5", "none.csv"), "none.csv: no such file", 1),
            (("predict", "model.h5", "ratings.csv", "-o", "model.h5", "--force"), "model.h5: is also an input", 2),
            (("predict", "model.h5", "ratings.csv", "--columns", "a,b"), "has no column 'a'", 1),
            (("recommend", "model.h5", "--user", "99"), "does not know user '99'", 1),
            (("recommend", "model.h5", "--user", "1", "--top", "0"), "n=0: expected", 2),
            (("recommend", "model.h5", "--user", "1", "--seen", "none.h5"), "none.h5: no such file", 1),
            (("recommend", "model.h5", "--user", "1", "--seen", "model.h5"), "is a file of kind 'mfpar model'", 1),
            (("recommend", "model.h5", "--user", "1", "--names", "none.csv"), "none.csv", 2),
            (("recommend", "model.h5", "--all"), "--all needs -o", 2),
            (("recommend", "model.h5", "--all", "-o", "new.txt"), "has to end in .csv or .parquet", 2),
            (("recommend", "model.h5", "--user", "1", "-o", "new.csv"), "-o and --memory go with --all", 2),
            (("export", "model.h5", "-o", "ratings.csv"), "ratings.csv: exists already", 2),
            (("export", "ratings.h5", "-o", "new.npz"), "is a file of kind 'mfpar blocked ratings'", 1),
            (("export", "none.h5", "-o", "new.npz"), "none.h5: no such file", 1),
        )
    ),
]

# What can't be read twice, or never ends: nobody waits for a pipe that nobody writes to.
PIPES = [
    Case(f"pipe: {' '.join(arguments)}", arguments, sentence, 1, lambda: os.mkfifo("bad"))
    for arguments, sentence in (
        (CONVERT, "bad: is no regular file, and can't be read more than once"),
        (("convert", "ratings.csv", "--test", "bad", "-o", "new.h5"), "bad: is no regular file"),
        (("convert", "ba*", "-o", "new.h5"), "ba*: no file matches this pattern"),
        (("train", "bad", "-o", "new.h5"), "bad: no such file"),
        (("info", "bad"), "bad: no such file"),
        (("info", "model.h5/bad"), "model.h5/bad: no such file"),
        (("verify", "bad"), "not sound: bad"),
        (("evaluate", "model.h5", "bad"), "bad: is no regular file"),
        (("evaluate", "bad"), "bad: no such file"),
        (("predict", "model.h5", "bad"), "bad: is no regular file"),
        (("recommend", "model.h5", "--user", "1", "--seen", "bad"), "bad: no such file"),
        (("recommend", "model.h5", "--user", "1", "--names", "bad:1,2"), "bad: is no regular file"),
        (("train", "ratings.h5", "-o", "new.h5", "--resume", "bad"), "bad: can't be read: Not a directory"),
        (("tune", "bad", "-o", "new.toml"), "bad: no such file"),
        (("plan", "bad", "--rate", "1e6"), "bad: no such file"),
        (("export", "bad", "-o", "new.npz"), "bad: no such file"),
    )
]

CASES = [*TEXT, *PIPES, *PARQUET, *MATRICES, *BLOCKED, *MODELS, *CHECKPOINTS, *RESUMED, *SETTINGS, *OPTIONS]
