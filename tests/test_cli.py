"""The command line from ratings to recommendations, its exit codes and what it says."""

import csv
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

import mfpar
from mfpar.cli import main as cli
from mfpar.cli.main import main
from mfpar.ratings.database import Database

ROWS, COLS = 40, 25


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with ratings.csv, ratings.h5, model.h5 and what was said on the way, by commands in order."""
    folder = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(3)
    cells = rng.permutation(ROWS * COLS)[:700]
    with (folder / "ratings.csv").open("w") as file:
        print("userId,movieId,rating", file=file)
        for i, j in zip(*np.divmod(cells, COLS), strict=True):
            print(f"{i + 100},m{j},{np.clip(3 + np.sin(i) + np.cos(3 * j) + rng.normal(0, 0.1), 1, 5):.2f}", file=file)
    (folder / "movies.csv").write_text("movieId,title\n" + "".join(f"m{j},Film {j}\n" for j in range(1, COLS)))
    said = {}
    for arguments in (
        ["convert", "ratings.csv", "-o", "ratings.h5", "--test-fraction", "0.1"],
        ["train", "ratings.h5", "-o", "model.h5", "--epochs", "40", "--log", "run.jsonl", "--factors", "8"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "mfpar", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stderr == ""
        said[arguments[0]] = done.stdout
    return folder, said


@pytest.fixture
def folder(work, monkeypatch):
    """The folder, as the current one."""
    monkeypatch.chdir(work[0])
    return work[0]


def output(capsys, *arguments) -> str:
    """What a command line that succeeds prints."""
    assert main([str(argument) for argument in arguments]) == 0
    captured = capsys.readouterr()
    assert "error" not in captured.err
    return captured.out


def test_what_is_said_on_the_way(work):
    said = work[1]
    assert re.fullmatch(
        r"ratings\.h5: 40 × 25, \d+ ratings, mean \d\.\d{4}, \d+ held out, [\d.]+ s\n(\d+ held-out ratings have .*\n)?",
        said["convert"],
    )
    first, *epochs = said["train"].splitlines()
    assert re.fullmatch(r"\d+ ratings of 40 × 25, grid 16, 8 factors \+ biases, sgd, 1 rank × 1 thread", first)
    assert len(epochs) == 40
    for number, line in enumerate(epochs, 1):
        pattern = rf"epoch +{number}/40  train \d\.\d{{4}}  test \d\.\d{{4}}  speed \d+\.\d M updates/s  \d+ s left"
        assert re.fullmatch(pattern, line), line
    log = [json.loads(line) for line in (work[0] / "run.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in log] == ["run", *["epoch"] * 40, "saved"]
    assert f"test {log[-2]['test_rmse']:.4f}" in epochs[-1]
    assert log[-2]["test_rmse"] < 0.3 < log[1]["test_rmse"]


def test_info_of_a_blocked_file(folder, capsys):
    facts = json.loads(output(capsys, "info", "ratings.h5", "--json"))
    assert (facts["kind"], facts["shape"], facts["grid"]) == ("blocked ratings", [40, 25], 16)
    assert facts["nnz"] + facts["test_nnz"] == 700
    assert (facts["duplicates"], facts["seed"], len(facts["checksum"])) == (0, 0, 64)
    assert 1 <= facts["minimum"] < facts["mean"] < facts["maximum"] <= 5
    assert facts["deviation"] > 0.5
    assert 1 < facts["balance"]["row_blocks"] < facts["balance"]["blocks"]
    plain = output(capsys, "info", "ratings.h5")
    assert "shape:          40 × 25\n" in plain
    assert facts["checksum"] in plain


def test_info_of_a_model(folder, capsys):
    facts = json.loads(output(capsys, "info", "model.h5", "--json"))
    assert (facts["kind"], facts["shape"], facts["factors"], facts["biases"]) == ("model", [40, 25], 8, True)
    assert facts["fingerprint"] == mfpar.load("model.h5").fingerprint
    assert facts["data_checksum"] == json.loads(output(capsys, "info", "ratings.h5", "--json"))["checksum"]
    assert (facts["config"]["train"]["epochs"], facts["config"]["model"]["factors"]) == (40, 8)
    assert [epoch["epoch"] for epoch in facts["curve"]] == list(range(1, 41))
    plain = output(capsys, "info", "model.h5")
    assert facts["fingerprint"] in plain
    assert "(best)" in plain
    assert "epoch 40:" in plain


def test_evaluate(folder, capsys):
    curve = mfpar.load("model.h5").curve
    scores = json.loads(output(capsys, "evaluate", "model.h5", "--json"))
    facts = json.loads(output(capsys, "info", "ratings.h5", "--json"))
    assert {"rmse", "mae", "count"} <= set(scores)
    assert scores["rmse"] == pytest.approx(curve[-1]["test_rmse"], abs=1e-6)
    assert scores["mae"] == pytest.approx(curve[-1]["test_mae"], abs=1e-6)
    assert (scores["count"], scores["unknown"]) == (facts["test_nnz"], facts["test_unknown"])
    assert output(capsys, "evaluate", "model.h5", "ratings.h5").startswith(
        f"RMSE {scores['rmse']:.4f}  MAE {scores['mae']:.4f}"
    )
    (folder / "other.csv").write_text("a,b,c\n3.5,m1,100\n2.5,m2,101\n1,m3,999\n")
    given = json.loads(output(capsys, "evaluate", "model.h5", "other.csv", "--columns", "c,b,a", "--json"))
    assert (given["count"], given["unknown"]) == (3, 1)
    assert given["rmse"] == pytest.approx(
        np.sqrt(np.mean((mfpar.load("model.h5").predict([100, 101, 999], ["m1", "m2", "m3"]) - [3.5, 2.5, 1]) ** 2)),
        rel=1e-5,
    )


def test_predict(folder, capsys):
    (folder / "pairs.csv").write_text("user,item\n105,m3\n100,m24\n7,m3\n105,unheard\n7,unheard\n")
    users, items = [105, 100, 7, 105, 7], ["m3", "m24", "m3", "unheard", "unheard"]
    expected = [f"{value:.6g}" for value in mfpar.load("model.h5").predict(users, items)]
    assert main(["predict", "model.h5", "pairs.csv", "-o", "out.csv", "--force"]) == 0
    assert capsys.readouterr() == ("", "5 predictions, 3 with an unknown user or item\n")
    with open("out.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["user", "item", "prediction"],
            *map(list, zip(map(str, users), items, expected, strict=True)),
        ]
    assert output(capsys, "predict", "model.h5", "pairs.csv") == (folder / "out.csv").read_text()
    assert main(["predict", "model.h5", "pairs.csv", "-o", "out.csv"]) == 2
    assert "out.csv: exists already" in capsys.readouterr().err


def test_recommend(folder, capsys):
    model = mfpar.load("model.h5")
    text = output(
        capsys,
        "recommend",
        "model.h5",
        "--user",
        105,
        "--user",
        100,
        "--top",
        4,
        "--names",
        "movies.csv:movieId,title",
        "--json",
    )
    rows = json.loads(text)
    for user in (105, 100):
        items, scores = model.recommend(user, 4)
        mine = [row for row in rows if str(row["user"]) == str(user)]
        assert [row["item"] for row in mine] == items.tolist()
        assert [row["score"] for row in mine] == pytest.approx(scores.tolist())
        assert [row["place"] for row in mine] == [1, 2, 3, 4]
        assert [row["name"] for row in mine] == [
            None if item == "m0" else f"Film {item[1:]}" for item in items.tolist()
        ]
    with open("ratings.csv", newline="") as file:
        rated = {row["movieId"] for row in csv.DictReader(file) if row["userId"] == "105"}
    header, *lines = output(
        capsys, "recommend", "model.h5", "--user", 105, "--top", 25, "--seen", "ratings.h5"
    ).splitlines()
    assert header.split("\t") == ["user", "place", "item", "score"]
    recommended = {line.split("\t")[2] for line in lines}
    # What was held out has not been seen.
    assert len(rated - recommended) >= 10 > len(rated & recommended)
    assert recommended | rated == {f"m{j}" for j in range(COLS)}
    assert main(["recommend", "model.h5", "--user", "7"]) == 1
    assert re.fullmatch(r"mfpar: error: model\.h5: does not know user .?7.?; .*\n", capsys.readouterr().err)


def test_export(folder, capsys):
    assert output(capsys, "export", "model.h5", "-o", "factors.npz", "--force") == "factors.npz: written\n"
    model = mfpar.load("model.h5")
    with np.load("factors.npz") as archive:
        np.testing.assert_array_equal(archive["P"], np.asarray(model.P))
        z = archive["mean"] + archive["row_bias"][:, None] + archive["col_bias"] + archive["P"] @ archive["Q"].T
        at = archive["row_ids"].tolist().index(105)
        np.testing.assert_allclose(z[at], model.predict(105, archive["col_ids"]), rtol=1e-5)


def test_exit_codes(folder, capsys, monkeypatch):
    def ended(*arguments) -> tuple[int, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        return code, captured.err

    said = {  # what was asked for can't be: 2
        ("train", "ratings.h5", "-o", "model.h5"): "mfpar: error: model.h5: exists already; ",
        ("train", "ratings.h5", "-o", "new.h5", "--factors", 0): "mfpar: error: factors=0: expected ",
        ("train", "ratings.h5", "-o", "new.h5", "--ranks", 0): "mfpar: error: ranks=0: expected ",
        ("convert", "ratings.csv", "-o", "new.h5", "--grid", 99): "mfpar: error: grid=99 ",
    }
    for arguments, start in said.items():
        code, text = ended(*arguments)
        assert (code, text.count("\n")) == (2, 1)
        assert text.startswith(start)
    for arguments in (
        (),
        ("dance",),
        ("train",),
        ("train", "ratings.h5"),
        ("recommend", "model.h5"),
        ("info", "x", "--jsn"),
    ):
        code, text = ended(*arguments)
        assert code == 2
        assert len(re.findall("error: ", text)) == 1
    said = {  # it failed: 1
        ("info", "missing.h5"): "mfpar: error: missing.h5: no such file",
        ("evaluate", "missing.h5"): "mfpar: error: missing.h5: no such file",
        ("info", "ratings.csv"): "mfpar: error: ratings.csv: is not an HDF5 file; ",
        ("evaluate", "ratings.h5"): "mfpar: error: ratings.h5: is a file of kind 'mfpar blocked ratings', not a model ",
        ("train", "model.h5", "-o", "new.h5"): "mfpar: error: model.h5: is a file of kind 'mfpar model', not a ",
        ("train", "ratings.h5", "-o", "no/new.h5"): "mfpar: error: no/new.h5: the folder ",
        ("export", "model.h5", "-o", "no/new.npz"): "mfpar: error: no/new.npz: the folder ",
    }
    for arguments, start in said.items():
        code, text = ended(*arguments)
        assert (code, text.count("\n")) == (1, 1)
        assert text.startswith(start)
    for error, code, sentence in (
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError("of 9 TB"), 1, "out of memory: of 9 TB"),
        (ZeroDivisionError("oh"), 1, "internal error, ZeroDivisionError: oh (run again with --debug and report it)"),
        (PermissionError(13, "Permission denied", "ratings.h5"), 1, "ratings.h5: Permission denied"),
    ):

        def fail(*arguments, error=error, **options):
            raise error

        monkeypatch.setattr("mfpar.api.train_enduringly", fail)
        assert ended("train", "ratings.h5", "-o", "new.h5") == (code, f"mfpar: error: {sentence}\n")
    assert not (folder / "new.h5").exists()


def test_debug_shows_the_traceback(folder, capsys):
    assert main(["info", "missing.h5", "--debug"]) == 1
    text = capsys.readouterr().err
    assert text.startswith("Traceback (most recent call last)")
    assert text.endswith("mfpar: error: missing.h5: no such file\n")


@pytest.mark.parametrize("kind", ["bar", "plain", "json", "none"])
def test_kinds_of_progress(folder, tmp_path, capsys, kind):
    text = output(
        capsys, "train", "ratings.h5", "-o", tmp_path / "m.h5", "--epochs", 2, "--factors", 8, "--progress", kind
    )
    if kind == "json":
        assert [json.loads(line)["kind"] for line in text.splitlines()] == ["run", "epoch", "epoch", "saved"]
    elif kind == "none":
        assert text == ""
    elif kind == "plain":
        assert len(text.splitlines()) == 3
    else:
        assert "grid 16" in text
        assert "2/2" in text


def test_ranks_of_its_own_and_those_of_a_launcher(folder, run_cli, tmp_path):
    train = ["train", folder / "ratings.h5", "--epochs", 2, "--factors", 8]
    done = [
        run_cli(*train, "-o", "a.h5"),
        run_cli(*train, "-o", "b.h5", "--ranks", 2, "--log", "b.jsonl"),
        run_cli(*train, "-o", "c.h5", "--threads", 2, ranks=3),
        run_cli("info", "c.h5", "--json", ranks=2),
    ]
    assert [(d.returncode, d.stderr) for d in done] == [(0, "")] * 4
    assert "sgd, 2 ranks × 1 thread\n" in done[1].stdout
    assert "sgd, 3 ranks × 2 threads\n" in done[2].stdout
    curves = [re.findall(r"train [\d.]+  test [\d.]+", d.stdout) for d in done[:3]]
    assert len(curves[0]) == 2
    assert curves[0] == curves[1] == curves[2]
    fingerprints = {mfpar.load(tmp_path / name).fingerprint for name in ("a.h5", "b.h5", "c.h5")}
    assert fingerprints == {json.loads(done[3].stdout)["fingerprint"]}  # one line: the first rank alone speaks
    log = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert ([event["kind"] for event in log], log[0]["ranks"]) == (["run", "epoch", "epoch", "saved"], 2)


def test_ranks_with_one_row_block_are_warned_of(folder, run_cli, tmp_path):
    mfpar.convert(folder / "ratings.csv", tmp_path / "ratings.h5", grid=2)
    done = run_cli("train", "ratings.h5", "-o", "m.h5", "--epochs", 1, "--factors", 8, "--ranks", 2)
    assert done.returncode == 0
    assert done.stderr.startswith("mfpar: warning: 2 ranks for a grid of 2: ")
    assert done.stderr.count("\n") == 1


def test_a_second_process_finds_every_kernel_in_the_cache(folder, run_cli, tmp_path):
    def state() -> dict[str, tuple[int, int]]:
        found = [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".nbi", ".nbc")]
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in found}

    states = []
    for ranks in (None, None, 2):
        arguments = ["train", folder / "ratings.h5", "-o", "m.h5", "--epochs", 1, "--factors", 5, "--force"]
        done = run_cli(*arguments, ranks=ranks, environment={"NUMBA_CACHE_DIR": str(tmp_path / "cache")})
        assert done.returncode == 0
        states.append(state())
    assert len(states[0]) == 10  # two kernels and the board's three functions, each an index and its code
    assert states[0] == states[1] == states[2]


def test_a_reader_that_has_seen_enough_is_no_error(folder):
    command = f"{sys.executable} -m mfpar info model.h5 --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    for _ in range(2):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, cwd=folder)
        assert (done.returncode, done.stdout, done.stderr) == (0, "{", "")


def test_terminated_in_the_midst_of_a_query(folder, tmp_path, capsys, monkeypatch):
    """DuckDB makes an exception of its own of what a signal's handler raises."""

    def result(self, statement):
        with self._failing():
            try:
                signal.raise_signal(signal.SIGTERM)
            except BaseException:
                raise RuntimeError("Query interrupted") from None

    monkeypatch.setattr(Database, "_result", result)
    assert main(["convert", "ratings.csv", "-o", str(tmp_path / "new.h5")]) == 143
    assert capsys.readouterr().err == "mfpar: error: terminated\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("progress", ["plain", "json"])
def test_standard_output_on_a_full_disk(folder, tmp_path, progress):
    command = [sys.executable, "-m", "mfpar", "train", "ratings.h5", "-o", str(tmp_path / "m.h5"), "--epochs", "1"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*command, "--progress", progress], cwd=folder, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert (done.returncode, done.stderr) == (1, "mfpar: error: No space left on device\n")


@pytest.mark.parametrize(("how", "lines"), [(">&-", 0), ("2>&-", 2), ("<&- >&- 2>&-", 0), ("| cat", 2)])
def test_streams_that_are_closed_or_know_few_letters(folder, tmp_path, how, lines):
    """A multiplication sign is in the first line."""
    command = f"{sys.executable} -m mfpar train ratings.h5 -o {tmp_path}/m.h5 --epochs 1 {how}; exit ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == lines
    assert (tmp_path / "m.h5").exists()


def test_a_debug_log_on_a_full_disk_costs_a_warning(folder, tmp_path, capsys):
    (tmp_path / "rank-0000.log").symlink_to("/dev/full")
    options = ("--epochs", "1", "--progress", "none", "--debug-log", str(tmp_path))
    assert main(["train", "ratings.h5", "-o", str(tmp_path / "m.h5"), *options]) == 0
    told = f"mfpar: warning: {tmp_path}/rank-0000.log: could not be written any more: no space left on the device\n"
    assert capsys.readouterr().err == told


def test_version_and_help(capsys):
    for arguments, start in (
        (["--version"], f"mfpar {mfpar.__version__}\n"),
        (["--help"], "usage: mfpar "),
        (["train", "-h"], "usage: "),
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code in (0, None)
        assert capsys.readouterr().out.startswith(start)
    assert cli.build_parser().parse_args(["info", "x"]).file == "x"


def test_other_ranks_keep_silent(folder, capsys, monkeypatch):
    monkeypatch.setattr(cli, "GOODBYE", 0.0)
    monkeypatch.setitem(os.environ, "PMI_SIZE", "2")
    monkeypatch.setitem(os.environ, "PMI_RANK", "1")
    assert main(["info", "missing.h5"]) == 0
    assert main(["train", "missing.h5", "-o", "new.h5"]) == 2
    with pytest.raises(SystemExit):
        main(["train"])
    assert capsys.readouterr() == ("", "")
