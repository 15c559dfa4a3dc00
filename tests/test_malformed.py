"""Whatever is malformed ends in one sentence that says what and where, with the right exit code, and leaves nothing."""

from pathlib import Path

import malformed
import pytest
from malformed import CASES, Case

from mfpar.cli.main import main


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A folder with a good ratings.csv, ratings.h5 and model.h5."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "ratings.csv").write_text(malformed.GOOD)
    source, blocked = str(folder / "ratings.csv"), str(folder / "ratings.h5")
    assert main(["convert", source, "-o", blocked, "--grid", "4"]) == 0
    assert main(["train", blocked, "-o", str(folder / "model.h5"), "--epochs", "1", "--factors", "4"]) == 0
    (folder / "folder").mkdir()
    return folder


def content(folder: Path) -> dict[str, bytes]:
    read = {
        path: path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 30 for path in folder.rglob("*")
    }
    return {str(path): path.read_bytes() if small else b"" for path, small in read.items()}


def test_the_corpus_is_large_and_each_case_has_a_name():
    assert len({case.name for case in CASES}) == len(CASES) >= 100


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_malformed(good, tmp_path, monkeypatch, capsys, case: Case):
    folder = tmp_path / "work"
    folder.mkdir()
    for path in good.iterdir():
        if path.is_file():
            (folder / path.name).hardlink_to(path)
    (folder / "folder").mkdir()
    monkeypatch.chdir(folder)
    case.make()
    before = content(folder)
    try:
        code = main(case.arguments)
    except SystemExit as end:  # of what argparse refuses
        code = end.code
    said = capsys.readouterr()
    assert "internal error" not in said.err
    assert said.err.count("error: ") == 1, said.err
    complaint = said.err[said.err.index("error: ") :]
    assert case.sentence in complaint
    assert complaint.count("\n") == 1, complaint
    assert len(complaint) < 700, complaint
    assert code == case.code, complaint
    assert content(folder) == before


# One for each place where a rank alone may meet it, or all of them at once.
TOGETHER = [
    case
    for case in CASES
    if case.name.startswith("training on: ")
    or case.name.removeprefix("text: ")
    in ("empty", "too few fields", "rating is NaN", "truncated gzip", "no gzip", "Latin-1")
    or case.name in ("parquet: truncated", "parquet: null user", "matrix: mtx truncated", "matrix: npz of pickles")
]


@pytest.mark.parallel(nprocs=3)
def test_ranks_say_the_same_and_go_on(tmp_path, monkeypatch):
    from mpi4py import MPI

    from mfpar import api
    from mfpar.config import ModelConfig, TrainConfig
    from mfpar.errors import MfparError
    from mfpar.parallel.mpi import Mpi

    world = MPI.COMM_WORLD
    monkeypatch.chdir(world.bcast(str(tmp_path)))

    def attempt(verb: str) -> None:
        comm = Mpi(world)  # one that has failed once is of no more use
        with comm.guard():
            if verb == "train":
                model, train = ModelConfig(factors=4), TrainConfig(epochs=1)
                api.train_file("bad.h5", "new.h5", model, train, comm, lambda event: None)
            else:
                api.convert_file("bad", "new.h5", comm)

    if world.rank == 0:
        Path("ratings.csv").write_text(malformed.GOOD)
        api.convert("ratings.csv", "ratings.h5", grid=4)
        api.factorize("ratings.h5", factors=4, epochs=1, output="model.h5")
    for case in TOGETHER:
        if world.rank == 0:
            case.make()
        world.barrier()
        before = content(Path())
        world.barrier()
        with pytest.raises(MfparError) as caught:
            attempt(case.arguments[0])
        world.barrier()
        assert case.sentence in str(caught.value), case.name
        assert set(world.allgather(str(caught.value))) == {str(caught.value)}, case.name
        assert content(Path()) == before
        world.barrier()


def test_a_job_ends_with_one_sentence(run_cli, tmp_path):
    (tmp_path / "bad.csv").write_text(malformed.GOOD + "9,9,nan\n")
    done = run_cli("convert", "bad.csv", "-o", "new.h5", ranks=3, timeout=40)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).count("mfpar: error: bad.csv, line 66: the rating 'nan' is not ") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]
