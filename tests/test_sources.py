"""Sources: every kind and layout gives the same ratings, every bad input one sentence with its place."""

import functools
import gzip
import os
import random

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from mfpar.errors import ConfigError, RatingsError, StorageError
from mfpar.ratings import reading, text
from mfpar.ratings.columns import Wanted, known
from mfpar.ratings.database import Database
from mfpar.ratings.reading import Ratings, read_chunks

duckdb = pytest.importorskip("duckdb")


def read(sources, **options):
    """Lists of users, items and ratings of all chunks."""
    chunks = list(read_chunks(sources, **options))
    return tuple(None if parts[0] is None else np.concatenate(parts).tolist() for parts in zip(*chunks, strict=True))


@pytest.fixture
def write(tmp_path):
    """Write a file, text or bytes, and return its path."""

    def write(content, name="ratings.txt"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


EXPECTED = ([7, 8, 7], ["a b", "é", "x"], [3.0, 4.5, 0.25])


@pytest.mark.parametrize(
    "content",
    [
        "userId,movieId,rating,timestamp\n7,a b,3,1\n8,é,4.5,2\n7,x,0.25,3\n",
        "7,a b,3\n8,é,4.5\n7,x,.25\n",
        "\ufeff7,a b,3\n8,é,4.5\n7,x,.25",
        "\ufeffuser,item,rating\r\n7,a b,3\r\n8,é,4.5\r\n7,x,.25\r\n",
        "rating;junk;ITEM_ID;User\n3;;a b;7\n4.5;1;é;8\n0.25;;x;7\n",
        "foo,bar,baz\n7,a b,3\n8,é,4.5\n7,x,.25\n",
        "7\ta b\t3\t881250949\n8\té\t4.5\t1\n7\tx\t.25\t2\n",
        "7::a b::3::978300760\n8::é::4.5::1\n7::x::2.5e-1::2\n",
        "7|a b|3\n8|é|4.5\n7|x|.25\n",
        '"7","a b","3"\n8,"é",4.5\n7,x,.25\n',
        "\n7,a b,3\n\n8,é,4.5\n7,x,.25\n\n\n",
    ],
    ids=["header", "plain", "bom", "crlf", "order", "unknown", "tab", "dat", "pipe", "quoted", "blank"],
)
@pytest.mark.parametrize("gzipped", [False, True])
def test_layouts(write, content, gzipped):
    data = content.encode()
    assert read(write(gzip.compress(data) if gzipped else data)) == EXPECTED


def test_space_separated(write):
    assert read(write("1 10 3.5\n2 20 4\n")) == ([1, 2], [10, 20], [3.5, 4.0])


def test_quotes_mean_nothing_where_they_are_not_usual(write):
    assert read(write('1::"a::3\n2::b"::4\n'))[1] == ['"a', 'b"']


@pytest.mark.parametrize(
    ("columns", "content"),
    [
        (["who", "what", "how"], "how,x,what,who\n3,9,10,7\n"),
        (["4", "3", "1"], "how,x,what,who\n3,9,10,7\n"),
        (["4", "3", "1"], "3,9,10,7\n"),
        (["2", "3", "1"], "3 7 10\n"),
    ],
)
def test_columns_asked_for(write, columns, content):
    assert read(write(content), columns=columns) == ([7], [10], [3.0])


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["7", "-7", "0", "9223372036854775807"], [7, -7, 0, 2**63 - 1]),
        *((["7", odd],) * 2 for odd in ("007", "+5", "1.5", " 7", "7 ", "1e3", "-0", "9223372036854775808", "1_0")),
    ],
)
def test_ids_are_integers_only_if_all_are_written_so(write, ids, expected):
    content = "user,item,rating\n" + "".join(f"{name},1,1\n" for name in ids)
    assert read(write(content))[0] == expected


def test_text_among_integers_is_found_anywhere(write, monkeypatch):
    """In the first slice, in a later one, in another source, on both sides; what is wrong is still told by its line."""
    monkeypatch.setattr("mfpar.ratings.scans.SLICE", 2)
    numbers = (np.arange(5), np.arange(5), np.ones(5))
    expected = [str(k) for k in range(5)]
    for at in (0, 2, 4):
        texts = expected.copy()
        texts[at] = "x"
        assert read((np.array(texts), *numbers[1:]))[:2] == (texts, [*range(5)])
        assert read([numbers, (np.array(texts), np.array(texts), numbers[2])])[:2] == (expected + texts,) * 2
    path = write("1,1,1\n2,2,2\n,3,3\n4,x,4\n")
    with pytest.raises(RatingsError, match=r"ratings.txt, line 3: the user id is missing"):
        read([numbers, path])


def test_pairs(write):
    for head in ("user,item\n", "", "foo,bar\n", "movie,user\n"):
        content = head + ("x,7\ny,8\n" if head.startswith("movie") else "7,x\n8,y\n")
        assert read(write(content), need_rating=False) == ([7, 8], ["x", "y"], None)
    content = "user,item,rating\n7,x,nonsense\n8,y,\n"
    assert read(write(content), need_rating=False) == ([7, 8], ["x", "y"], None)
    assert read(write("u1,i1\nu2,i2\n"), need_rating=False)[0] == ["u1", "u2"]
    assert read(write("9,7,x\n"), columns=["2", "3"], need_rating=False) == ([7], ["x"], None)


def test_chunks_keep_the_order_and_the_bound(write):
    values = np.random.default_rng(0).integers(0, 1000, (5000, 3))
    path = write("".join(f"{u},{i},{r}\n" for u, i, r in values))
    chunks = list(read_chunks(path, rows=700))
    assert [len(chunk[0]) for chunk in chunks] == [700] * 7 + [100]
    assert all(users.dtype == items.dtype == np.int64 and r.dtype == np.float32 for users, items, r in chunks)
    np.testing.assert_array_equal(np.column_stack([np.concatenate(part) for part in zip(*chunks, strict=True)]), values)


def test_many_files(write, tmp_path):
    paths = [write(f"{k},{k},1\n", f"part-{k}.csv") for k in range(3)]
    write("user\titem\trating\n9\t9\t9\n", "other.tsv")
    assert read(paths[::-1])[0] == [2, 1, 0]
    assert read(str(tmp_path / "part-*.csv"))[0] == [0, 1, 2]
    assert read([tmp_path / "*.tsv", str(paths[1])])[0] == [9, 1]
    assert read((paths[0], paths[2]))[0] == [0, 2]


def test_names_that_look_like_patterns(write):
    assert read(write("1,2,3\n", "it's [1]*.csv"))[0] == [1]
    path = write(b"", "a[1].parquet")
    duckdb.execute(f"COPY (SELECT 1 AS u, 2 AS i, 3 AS r) TO '{path}' (FORMAT parquet)")
    assert read(path) == ([1], [2], [3.0])


def test_tables_by_type_and_name(tmp_path):
    path = tmp_path / "t.parquet"
    duckdb.execute(
        "COPY (SELECT 4.0::FLOAT AS stars, 'é' AS productId, 3.0::DOUBLE AS user_id UNION ALL SELECT 0.1, 'b', 12) "
        f"TO '{path}' (FORMAT parquet)"
    )
    assert read(path) == ([3, 12], ["é", "b"], [4.0, np.float32(0.1)])
    packed = tmp_path / "t.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed) == read(path)


def test_matrices(tmp_path):
    matrix = scipy.sparse.coo_matrix(([5.0, 4.0, 0.0], ([2, 0, 1], [0, 1, 3])), (3, 4))
    assert read(matrix) == ([2, 0, 1], [0, 1, 3], [5.0, 4.0, 0.0])  # a stored zero is a rating
    scipy.sparse.save_npz(tmp_path / "m.npz", matrix)
    assert read(tmp_path / "m.npz") == read(matrix)
    assert read(scipy.sparse.csr_array(matrix))[0] == [0, 1, 2]
    scipy.io.mmwrite(tmp_path / "m.mtx", matrix)
    assert read(tmp_path / "m.mtx") == ([3, 1, 2], [1, 2, 4], [5.0, 4.0, 0.0])
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress((tmp_path / "m.mtx").read_bytes()))
    assert read(packed) == read(tmp_path / "m.mtx")


@pytest.mark.parametrize("dtype", ["u1", "<i4", ">i4", "u8", "f4", "f2"])
def test_arrays_of_any_integer_dtype(dtype, monkeypatch, tmp_path):
    monkeypatch.setattr("mfpar.ratings.scans.SLICE", 2)
    users = np.array([3, 1, 2, 3, 9], dtype)[::-1]
    expected = ([9, 3, 2, 1, 3], ["a", "é", "", "d", "e"], [1, 2, 3, 4, 5])
    items = np.array(["a", "é", "c", "d", "e"])
    expected[1][2] = "c"
    given = (users, items, np.arange(1, 6, dtype=">f8"))
    assert read(given) == expected
    assert read((users, items.astype(object), given[2])) == expected
    assert read((users, np.char.encode(items, "utf-8"), given[2])) == expected
    assert read({"rating": given[2], "item": items, "user": users}) == expected
    np.savez(tmp_path / "a.npz", item=items, rating=given[2], user=users)
    assert read(tmp_path / "a.npz") == expected


def test_pandas_and_arrow():
    pandas = pytest.importorskip("pandas")
    users = pandas.Series([7, 8], dtype="Int64")
    frame = pandas.DataFrame({"movieId": ["a", "b"], "userId": users, "rating": [1, 2.5]})
    expected = ([7, 8], ["a", "b"], [1.0, 2.5])
    assert read(frame) == expected
    assert read(frame.astype({"movieId": "category", "userId": "float64"})) == expected
    assert read(frame.assign(movieId=pandas.Series([1, "b"], dtype=object)))[1] == ["1", "b"]
    pyarrow = pytest.importorskip("pyarrow")
    assert read([pyarrow.table({"user": [7], "item": ["a"], "rating": [1.0]}), frame.iloc[1:]]) == expected


def test_real_ratings(shared_data):
    path = shared_data / "ml-100k" / "u.data"
    users, items, ratings = next(iter(read_chunks(path)))
    np.testing.assert_array_equal(np.column_stack([users, items, ratings]), np.loadtxt(path)[:, :3])


def test_known_names():
    assert [known(name) for name in ("userId", "User ID", "movie_id", "RATING", "timestamp", "genres")] == [
        "user", "user", "item", "rating", "time", None
    ]  # fmt: skip


HEADER = "user,item,rating\n"
# Without a time: these are in the names of tests, of which all workers have to make the same.
zipped = functools.partial(gzip.compress, mtime=0)
BIG_GZIP = zipped(b"".join(b"%d,%d,3\n" % (k, k * k) for k in range(50_000)))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "{path}: is empty"),
        ("\n\n", "{path}: is empty"),
        (zipped(b""), "{path}: is empty"),
        (HEADER, "{path}: no ratings found"),
        ("just\nwords\n", "{path}: its first line 'just' has no delimiter"),
        ("1,2\n3,4\n", "{path}: columns for user, item, rating are needed, but its columns are 2"),
        ("user,item\n3,4\n", "{path}: has no column known as rating: its columns are user, item"),
        ("user,item,time\n3,4,5\n", "{path}: has no column known as rating: its columns are user, item, time"),
        ("a,b,c\nx,y,z\n", "{path}: has no column known as user or item or rating: its columns are a, b, c"),
        (HEADER + "1,2,3\n,2,3\n", "{path}, line 3: the user id is missing"),
        (HEADER + '1,2,3\n1,"",3\n', "{path}, line 3: the item id is missing"),
        (HEADER + "1,2,3\n\n1,7,\n", "{path}, line 4: the rating is missing"),
        (HEADER + '1,"2\n2",3\n1,7,x\n', "{path}, line 4: the rating 'x' is not a finite number"),
        ("1::2::3\n1::7::x\n", "{path}, line 2: the rating 'x' is not a finite number"),
        (zipped(b"1,2,3\n1,7,x\n"), "{path}, line 2: the rating 'x' is not a finite number"),
        ("1,2,3\n1,7,nan\n", "{path}, line 2: the rating 'nan' is not a finite number"),
        ("1,2,3\n1,7,-inf\n", "{path}, line 2: the rating '-inf' is not a finite number"),
        ("1,2,3\n1,7,1e39\n", "{path}, line 2: the rating '1e39' is not a finite number"),
        ("1,2,3\n1,7\n", "{path}, line 2: has too few fields: 2 where 3 are expected"),
        (HEADER + "1,2,3\n1,7,3,4\n", "{path}, line 3: has too many fields: 4 where 3 are expected"),
        (HEADER + '1,"2,3\n1,7,3\n', "{path}, line 2: a quoted field does not end"),
        (HEADER.encode() + b"1,caf\xe9,3\n", "{path}, line 2: is not UTF-8"),
        (b"1,2,3\r\n1,3,4\n1,5,4\r\n", "{path}: its quotes or line ends are mixed up"),
        (HEADER + "1," + "a" * 1025 + ",3\n", "{path}, line 2: the item id 'aaa"),
        (HEADER + "1,2,3\n" * 20_000 + "1,a\0b,3\n", "{path}, line 20002: the item id 'a\\x00b' contains a NUL"),
        (bytes(range(256)) * 4, "{path}: is a binary file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "{path}: is an HDF5 file"),
        (BIG_GZIP[: len(BIG_GZIP) // 2], "{path}: is a truncated or damaged gzip file"),
        (BIG_GZIP[:9], "{path}: is a truncated or damaged gzip file"),
        (b"PAR1" + bytes(99), "{path}: is damaged, truncated or of a kind that can't be read"),
        (zipped(b"PAR1" + bytes(99)), "{path}: is damaged, truncated or of a kind that can't be read"),
        (zipped(b"PAR1" + random.Random(0).randbytes(1 << 17))[:-9], "{path}: is a truncated or damaged gzip file"),
        (b"PK\3\4" + bytes(99), "{path}: is no .npz file"),
        ("%%MatrixMarket matrix coordinate real general\n3 3 2\n1 1 5\n", "{path}: is no sound Matrix Market file"),
        ("%%MatrixMarket matrix coordinate real general\n3 3 1\n1 1 x\n", "{path}: is no sound Matrix Market file: L"),
        ("%%MatrixMarket matrix coordinate real general\n3 3 1\n1 1 nan\n", "{path}, row 1: the rating is missing"),
        ("%%MatrixMarket matrix array real general\n1 1\n1\n", "{path}: is a dense Matrix Market array"),
        ("%%MatrixMarket matrix coordinate complex general\n1 1 1\n1 1 1 1\n", "{path}: holds complex numbers"),
    ],
)
def test_bad_files(write, content, sentence):
    path = write(content)
    with pytest.raises(RatingsError) as caught:
        read(path)
    assert str(caught.value).startswith(sentence.format(path=path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("select", "sentence"),
    [
        ("SELECT 1 AS user, NULL::INT AS item, 3 AS rating", "row 1: the item id is missing"),
        ("FROM (VALUES (1, 'a', 2.0), (1, '', 3.0)) t(user, item, rating)", "row 2: the item id is missing"),
        ("FROM (VALUES (1, 2, 2::DOUBLE), (1, 3, 'nan')) t(user, item, rating)", "row 2: the rating 'nan' is not"),
        ("FROM (VALUES (1, 2, 2::FLOAT), (1, 3, 'inf')) t(user, item, rating)", "row 2: the rating 'inf' is not"),
        ("FROM (VALUES (1, 2, '4'), (1, 3, 'good')) t(user, item, rating)", "row 2: the rating 'good' is not"),
        ("SELECT 1.5::DOUBLE AS user, 1 AS item, 3 AS rating", "row 1: the user id 1.5 is neither"),
        ("SELECT 'nan'::DOUBLE AS user, 1 AS item, 3 AS rating", "row 1: the user id nan is neither"),
        ("SELECT [1] AS user, 1 AS item, 3 AS rating", "the column 'user' has the type INTEGER[]"),
        ("SELECT 1 AS user, 1 AS item, DATE '2020-01-01' AS rating", "the column 'rating' has the type DATE"),
        ("SELECT 1 AS foo, 2 AS bar, 'x' AS baz", "has no column known as user or item or rating"),
        ("SELECT 1 AS user, 2 AS item, 3 AS rating WHERE false", "no ratings found"),
    ],
)
def test_bad_tables(tmp_path, select, sentence):
    path = tmp_path / "bad.parquet"
    duckdb.execute(f"COPY ({select}) TO '{path}' (FORMAT parquet)")
    with pytest.raises(RatingsError) as caught:
        read(path)
    assert str(caught.value).startswith((f"{path}: {sentence}", f"{path}, {sentence}"))


THREE = np.arange(3)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ((THREE, THREE, np.array([1, np.inf, 2])), "the given arrays, row 2: the rating 'inf' is not a finite number"),
        ((THREE, THREE, np.array([1, 2, np.nan])), "the given arrays, row 3: the rating is missing or not a number"),
        ((np.array([1, None], object), THREE[:2], THREE[:2]), "the given arrays, row 2: the user id is missing"),
        ((np.array([1, 2.5]), THREE[:2], THREE[:2]), "the given arrays, row 2: the user id 2.5 is neither"),
        ((THREE, THREE[:2], THREE), "the given arrays: have the shapes (3,), (2,), (3,)"),
        ((THREE, THREE), "the given arrays: are 2; give 3"),
        ((THREE, THREE > 1, THREE), "the given arrays: the item array has dtype bool"),
        ((THREE, THREE, np.array(["a", "b", "c"])), "the given arrays: the rating array has dtype <U1"),
        ((THREE, np.array([b"a", b"\xff", b"c"]), THREE), "the given arrays: the item array holds bytes"),
        ({"user": THREE, "item": THREE}, "the given arrays: has no column known as rating: its columns are user, item"),
        ((THREE[:0], THREE[:0], THREE[:0]), "the given arrays: no ratings found"),
        (scipy.sparse.coo_matrix((2, 2)), "the given matrix: no ratings found"),
        (scipy.sparse.eye(2) * 1j, "the given matrix: holds complex numbers"),
        (np.eye(3), "a source of type ndarray can't be read as ratings"),
        (None, "a source of type NoneType can't be read as ratings"),
        ([], "no source of ratings is given"),
    ],
)
def test_bad_objects(source, sentence):
    with pytest.raises(RatingsError) as caught:
        read(source)
    assert str(caught.value).startswith(sentence)


def read_weights(source, folder, **wanted):
    """Lists of ratings and weights."""
    with Database(folder) as opened:
        Ratings(opened, weighted=True).read(source, Wanted(**wanted))
        return [list(column) for column in zip(*opened.run("SELECT rating, weight FROM ratings"), strict=True)]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("w,user,item,rating\n.5,7,x,3\n0,8,y,4\n", {"weights": "w"}),
        ("w,user,item,rating\n.5,7,x,3\n0,8,y,4\n", {"weights": "1"}),
        ("a,b,c,d\n7,x,3,.5\n8,y,4,0\n", {"weights": "d"}),
        ("7,x,3,.5\n8,y,4,0\n", {"weights": "4"}),
        ("7 .5 x 3\n8 0 y 4\n", {"weights": "2", "columns": ["1", "3", "4"]}),
        ("7::x::3::1::.5\n8::y::4::1::0\n", {"weights": "5"}),
    ],
)
def test_columns_of_weights(write, tmp_path, content, wanted):
    assert read_weights(write(content), tmp_path, **wanted) == [[3, 4], [0.5, 0]]
    assert read_weights(write(gzip.compress(content.encode())), tmp_path, **wanted) == [[3, 4], [0.5, 0]]
    pair = {**wanted, "rating": False}
    if content.startswith("a"):  # where ratings are not wanted they may be the weights
        pair["weights"] = "c"
    assert read_weights(write(content), tmp_path, **pair) == [[1, 1], [3, 4] if content.startswith("a") else [0.5, 0]]
    assert read_weights(write("7,x,.5\n8,y,0\n"), tmp_path, rating=False, weights="3") == [[1, 1], [0.5, 0]]
    assert read_weights(write("u,i,w\n7,x,.5\n8,y,0\n"), tmp_path, rating=False, weights="w") == [[1, 1], [0.5, 0]]
    assert read_weights(write("7,x,3\n"), tmp_path, weights="w", held=True) == [[3], [1]]


@pytest.mark.parametrize(
    ("content", "weights", "sentence"),
    [
        (HEADER[:-1] + ",w\n1,2,3,1\n1,3,3,-.5\n", "w", ", line 3: the weight '-.5' is not a finite number from 0 up"),
        (HEADER[:-1] + ",w\n1,2,3,1\n1,3,3,x\n", "w", ", line 3: the weight 'x' is not a finite number from 0 up"),
        ("1,2,3,1\n1,3,3,nan\n", "4", ", line 2: the weight 'nan' is not a finite"),
        ("1,2,3,1\n1,3,3,inf\n", "4", ", line 2: the weight 'inf' is not a finite"),
        ("1,2,3,1\n1,3,3,1e39\n", "4", ", line 2: the weight '1e39' is not a finite"),
        ("1,2,3,1\n1,3,3,\n", "4", ", line 2: the weight is missing or not a number"),
        ("1,2,3,1\n1,3,x,x\n", "4", ", line 2: the rating 'x' is not a finite number of single precision"),
        (HEADER + "1,2,3\n", "w", ": has no column 'w': its columns are user, item, rating"),
        ("1,2,3\n", "4", ": has no column '4': its columns are 3 without names"),
        ("1,2,3\n", "3", ": the columns for user, item, rating, weight must differ: its columns are 3 without names"),
        (HEADER + "1,2,3\n", "item", ": the columns for user, item, rating, weight must differ"),
        ("user,item,w\n1,2,3\n", "w", ": has no column known as rating: its columns are user, item, w; say"),
        ("%%MatrixMarket matrix coordinate real general\n3 3 1\n1 1 5\n", "w", ": is a matrix, which has no column of"),
    ],
)
def test_bad_weights_of_files(write, tmp_path, content, weights, sentence):
    path = write(content)
    with pytest.raises(RatingsError) as caught:
        read_weights(path, tmp_path, weights=weights)
    assert str(caught.value).startswith(f"{path}{sentence}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ((THREE, THREE, THREE, np.array([1, 0, -2])), "the given arrays, row 3: the weight '-2' is not a finite"),
        ((THREE, THREE, THREE, np.array([1, np.nan, 2])), "the given arrays, row 2: the weight is missing or not a"),
        ((THREE, THREE, THREE, np.array(["a", "b", "c"])), "the given arrays: the weight array has dtype <U1; numbers"),
        ((THREE, THREE, THREE, THREE[:2]), "the given arrays: have the shapes (3,), (3,), (3,), (2,)"),
        ((THREE, THREE, THREE), "the given arrays: are 3; give 4: user, item, rating, weight"),
        ((THREE,) * 5, "the given arrays: are 5; give 4: user, item, rating, weight"),
        ({"user": THREE, "item": THREE, "rating": THREE}, "the given arrays: has no column 'w': its columns are user"),
        (scipy.sparse.eye(2), "the given matrix: is a matrix, which has no column of weights"),
    ],
)
def test_bad_weights_of_objects(tmp_path, source, sentence):
    with pytest.raises(RatingsError) as caught:
        read_weights(source, tmp_path, weights="w")
    assert str(caught.value).startswith(sentence)


def test_bad_weights_of_tables(tmp_path):
    path = tmp_path / "bad.parquet"
    for weight, sentence in (
        ("'nan'::DOUBLE", ", row 2: the weight 'nan' is not"),
        ("'inf'::FLOAT", ", row 2: the weight 'inf' is not"),
        ("-1", ", row 2: the weight '-1"),
        ("NULL", ", row 2: the weight is missing"),
        ("DATE '2020-01-01'", ": the column 'w' has the type DATE; weights are numbers"),
    ):
        first = "DATE '2020-01-01'" if "DATE" in weight else "1"
        rows = f"(1, 2, 3, {first}), (1, 3, 3, {weight})"
        duckdb.execute(f"COPY (FROM (VALUES {rows}) t(user, item, rating, w)) TO '{path}' (FORMAT parquet)")
        with pytest.raises(RatingsError) as caught:
            read_weights(path, tmp_path, weights="w")
        assert str(caught.value).startswith(f"{path}{sentence}")


def test_four_arrays_without_weights(tmp_path):
    with pytest.raises(RatingsError, match="the given arrays: are 4; give 3: user, item, rating"):
        read((THREE,) * 4)


def test_bad_row_of_a_later_slice_and_source(monkeypatch, write):
    monkeypatch.setattr("mfpar.ratings.scans.SLICE", 2)
    with pytest.raises(RatingsError, match=r"the given arrays, row 5: the rating"):
        read([write("1,2,3\n"), (np.arange(6), np.arange(6), np.array([1, 2, 3, 4, np.inf, 6]))])


def test_no_pickles(tmp_path):
    np.savez(tmp_path / "a.npz", user=np.array([{}]), item=THREE[:1], rating=THREE[:1])
    with pytest.raises(RatingsError, match="allow_pickle"):
        read(tmp_path / "a.npz")


def test_paths_that_lead_nowhere(tmp_path):
    for path, sentence in (("no.csv", "no such file"), ("no*.csv", "no file matches"), ("", "is a folder")):
        with pytest.raises(RatingsError, match=sentence):
            read(tmp_path / path)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_file_that_may_not_be_read(write):
    path = write("1,2,3\n")
    path.chmod(0)
    with pytest.raises(StorageError, match="can't be read"):
        read(path)


@pytest.mark.parametrize("columns", [["user", "item"], ["1", "2", "2"], "user,item,rating", []])
def test_columns_that_can_not_be_meant(write, columns):
    with pytest.raises(ConfigError, match="columns="):
        read(write("1,2,3\n"), columns=columns)


def test_columns_that_are_not_there(write):
    path = write("a,b,c\n1,2,3\n")
    for columns, missing in ((["a", "b", "zz"], "zz"), (["1", "2", "4"], "4"), (["0", "1", "2"], "0")):
        with pytest.raises(RatingsError, match=f"has no column '{missing}': its columns are a, b, c"):
            read(path, columns=columns)


def test_line_of_an_error_behind_many_buffers(write, monkeypatch):
    monkeypatch.setattr(text, "BUFFER", text.LONGEST_LINE)
    lines = [f"{k},{k * k},1,{'x' * 100}" for k in range(60_000)]
    lines[59_990] = "1,2"
    with pytest.raises(RatingsError, match=r"line 59991: has too few fields"):
        read(write("\n".join(lines)))
    lines[59_990] = f"1,,2,{'x' * 100}"
    with pytest.raises(RatingsError, match=r"line 59991: the item id is missing"):
        read(write("\n".join(lines)))


def test_nothing_is_left_in_the_temporary_folder(write, monkeypatch, tmp_path):
    monkeypatch.setattr(reading.tempfile, "gettempdir", lambda: str(tmp_path))
    read(write("1,2,3\n"))
    with pytest.raises(RatingsError):
        read(write("1,2,x\n"))
    assert os.listdir(tmp_path) == ["ratings.txt"]
