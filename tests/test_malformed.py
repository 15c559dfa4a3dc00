"""Whatever is malformed ends in one sentence that says what and where, with the right exit code, and leaves nothing."""

import contextlib
from pathlib import Path
from typing import NoReturn

import malformed
import pytest
from malformed import CASES, Case

import mfpar
from mfpar.cli import main as cli
from mfpar.cli.main import main
from mfpar.parallel import launch


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A folder with a good ratings.csv, ratings.h5 and model.h5."""
    return make_good(tmp_path_factory.mktemp("good"))


def make_good(folder: Path) -> Path:
    (folder / "ratings.csv").write_text(malformed.GOOD)
    mfpar.convert(folder / "ratings.csv", folder / "ratings.h5", grid=4)
    mfpar.factorize(folder / "ratings.h5", factors=4, epochs=1, output=folder / "model.h5")
    return folder


def make_folder(folder: Path, good: Path) -> None:
    """A folder with the same files as the good one."""
    folder.mkdir()
    for path in good.iterdir():
        if path.is_file():
            (folder / path.name).hardlink_to(path)
    (folder / "folder").mkdir()


def run(case: Case) -> int:
    try:
        return main(case.arguments)
    except SystemExit as end:  # of what argparse refuses
        return end.code


def check(case: Case, code: int, said: str) -> None:
    assert "internal error" not in said
    assert said.count("error: ") == 1, f"{case.name}: {said}"
    complaint = said[said.index("error: ") :]
    assert case.sentence in complaint, case.name
    assert complaint.count("\n") == 1, complaint
    assert len(complaint) < 700, complaint
    assert code == case.code, complaint


def content(folder: Path) -> dict[str, bytes]:
    read = {
        path: path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 30 for path in folder.rglob("*")
    }
    return {str(path): path.read_bytes() if small else b"" for path, small in read.items()}


def test_the_corpus_is_large_and_each_case_has_a_name():
    assert len({case.name for case in CASES}) == len(CASES) >= 100


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_malformed(good, tmp_path, monkeypatch, capsys, case: Case):
    make_folder(tmp_path / "work", good)
    monkeypatch.chdir(tmp_path / "work")
    case.make()
    before = content(Path())
    code = run(case)
    check(case, code, capsys.readouterr().err)
    assert content(Path()) == before


# Under mpirun nobody may start ranks, which is said before anything else.
STARTING = {"--ranks", "--hosts", "--restarts"}
TOGETHER = [case for case in CASES if not STARTING & {word.partition("=")[0] for word in case.arguments}]


@pytest.mark.parallel(nprocs=3)
def test_malformed_under_ranks(tmp_path, monkeypatch, capsys):
    """All of them in one job, as a start takes seconds: what would end it is heard of instead."""
    from mpi4py import MPI

    def end(code: int) -> NoReturn:
        raise SystemExit(code)

    world = MPI.COMM_WORLD
    monkeypatch.setattr(launch, "abort", end)
    monkeypatch.setattr(cli, "GOODBYE", 0)
    monkeypatch.chdir(world.bcast(tmp_path))
    if world.rank == 0:
        make_good(Path())
    world.barrier()
    assert len(TOGETHER) >= 100
    wrong = [problem for case in TOGETHER for problem in together(world, case, capsys)]
    assert not wrong  # at last and on all ranks alike, as one that leaves earlier would be waited for


def together(world, case: Case, capsys) -> list[str]:
    """What the ranks have done wrong with a case, the same on all of them."""
    folder = Path(case.name.replace("/", " "))
    if world.rank == 0:
        make_folder(folder, Path())
    world.barrier()
    with contextlib.chdir(folder):
        if world.rank == 0:
            case.make()
        world.barrier()
        before = content(Path())
        world.barrier()
        capsys.readouterr()
        code = run(case)
        world.barrier()
        after, said, problem = content(Path()), capsys.readouterr().err, ""
    try:
        if world.rank == 0 or "error: " in said:  # most often the first ends all before another has to say it
            check(case, code, said)
        assert after == before
        assert code == case.code or (world.rank and case.arguments[0] not in ("train", "convert"))
    except AssertionError as error:
        problem = f"{case.name}, rank {world.rank}: {error}"
    return list(filter(None, world.allgather(problem)))


def test_a_job_ends_with_one_sentence(run_cli, tmp_path):
    (tmp_path / "bad.csv").write_text(malformed.GOOD + "9,9,nan\n")
    done = run_cli("convert", "bad.csv", "-o", "new.h5", ranks=3, timeout=40)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).count("mfpar: error: bad.csv, line 66: the rating 'nan' is not ") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]
