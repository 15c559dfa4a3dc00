"""What README.md, docs/running.md and the examples show works: Python runs, commands parse, make targets exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mfpar.cli.main import build_parser

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
EXAMPLES = sorted((ROOT / "examples").iterdir())
SHELLS = {"", "bash", "sh", "shell", "console", "text"}

pytestmark = pytest.mark.skipif(not README.exists(), reason="there is no README.md yet")


def blocks(*languages: str, page: Path = README) -> list[str]:
    """The fenced blocks of a page in these languages."""
    if not page.exists():
        return []
    fenced = re.findall(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for language, text in fenced if language in languages]


def commands(text: str) -> list[list[str]]:
    """Each command of a script, in words; continued lines joined, prompts and comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    called = (line.strip().removeprefix("$ ") for line in lines if re.search(r"\b(mfpar|make)\b", line))
    split = (shlex.split(line, comments=True) for line in called if not line.startswith("#"))
    return [words for words in split if words]


def calls_of(program: str, text: str) -> list[list[str]]:
    """The arguments of each call of a program, also behind exec, mpirun, srun, a path or a variable."""
    found = []
    for words in commands(text):
        starts = [place for place, word in enumerate(words) if Path(word).name == program]
        launchers = ("mpirun", "mpiexec", "srun", "exec")
        if starts and (starts[0] == 0 or Path(words[0]).name in launchers or "=" in words[0]):
            found.append(words[starts[0] + 1 :])
    return found


def shown(page: Path = README) -> str:
    """All that a page shows of a shell."""
    return "\n".join(blocks(*SHELLS, page=page))


CALLS = [
    *calls_of("mfpar", shown()),
    *calls_of("mfpar", shown(ROOT / "docs" / "running.md")),
    *(call for example in EXAMPLES for call in calls_of("mfpar", example.read_text(encoding="utf-8"))),
]


@pytest.mark.parametrize("arguments", CALLS, ids=" ".join)
def test_command_parses(arguments: list[str]) -> None:
    """What argparse finds wrong it prints, and exits; `--help` and `--version` exit too, with 0."""
    code: object = 0
    known = [re.sub(r"\$SLURM_CPUS_PER_TASK|\$threads", "8", word) for word in arguments if word != "$@"]
    try:
        build_parser().parse_args(known)
    except SystemExit as end:
        code = end.code
    assert code == 0


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_example_is_sound(example: Path) -> None:
    """It trains, and is what its name says: a script that bash can read, or a job for Kubernetes."""
    text = example.read_text(encoding="utf-8")
    assert [call[0] for call in calls_of("mfpar", text)] == ["train"]
    if example.suffix == ".yaml":
        job = pytest.importorskip("yaml").safe_load(text)
        assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v2beta1", "MPIJob")
        launcher, worker = (job["spec"]["mpiReplicaSpecs"][role] for role in ("Launcher", "Worker"))
        (container,) = launcher["template"]["spec"]["containers"]
        subprocess.run(["bash", "-n", "-c", *container["args"]], check=True, timeout=60)
        # Ranks of a pod, threads of a rank: the cores of a pod.
        (container,) = worker["template"]["spec"]["containers"]
        threads = int(re.search(r"--threads (\d+)", text)[1])
        assert job["spec"]["slotsPerWorker"] * threads == container["resources"]["limits"]["cpu"]
    else:
        subprocess.run(["bash", "-n", str(example)], check=True, timeout=60)


def test_walk_through_runs(tmp_path: Path) -> None:
    """The shell block that begins with a conversion runs as it stands, on a ratings.csv and a pairs.csv."""
    scripts = [text for text in blocks(*SHELLS) if text.startswith("mfpar convert")]
    assert len(scripts) == 1
    pairs = [(user, item) for user in range(1, 51) for item in range(1, 31) if (user + item) % 7]
    lines = [f"{user},{item}" for user, item in pairs]
    (tmp_path / "pairs.csv").write_text("\n".join(["user,item", *lines]), encoding="utf-8")
    rated = [f"{line},{1 + sum(pair) % 5}" for line, pair in zip(lines, pairs, strict=True)]
    (tmp_path / "ratings.csv").write_text("\n".join(["user,item,rating", *rated]), encoding="utf-8")
    bash(scripts[0], tmp_path)


@pytest.mark.parametrize("arguments", calls_of("make", shown()), ids=" ".join)
def test_make_target_exists(arguments: list[str]) -> None:
    done = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_python_runs(tmp_path: Path) -> None:
    """All Python blocks, in order, as one program in an empty folder; `>>>` blocks must also print what they show."""
    pieces = blocks("python", "pycon")
    assert pieces, "README.md shows no Python"
    sessions = [text for text in pieces if text.lstrip().startswith(">>>")]
    (tmp_path / "readme.txt").write_text("\n".join(sessions), encoding="utf-8")
    plain = "\n".join(text for text in pieces if text not in sessions)
    (tmp_path / "readme.py").write_text(plain, encoding="utf-8")
    bash(f"{sys.executable} readme.py; {sys.executable} -m doctest -o ELLIPSIS readme.txt", tmp_path)


def bash(script: str, folder: Path) -> None:
    """Run a script to its end or first failure; `mfpar` in it is this repository's, run by this Python."""
    mfpar = f'mfpar() {{ {sys.executable} -m mfpar "$@"; }}'
    command = ["bash", "-euo", "pipefail", "-c", f"{mfpar}\n{script}"]
    # os.environ by name: MPI, once mpi-pytest has started it here, sets variables behind Python's back.
    done = subprocess.run(command, cwd=folder, env=dict(os.environ), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
