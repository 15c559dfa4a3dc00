"""A stand-in for mpirun, whose ranks are Python processes that do as a test says, and know no MPI."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PERIOD = 0.1  # seconds between beats, for all that a test starts


class FakeMpi:
    """In the folder of a test, an mpirun and an agent in place of ssh.

    Parameters
    ----------
    folder : Path
    attempts : dictionaries with Python code for each start in turn, the last for all that follow: "rank", what each
        rank runs (with `rank`, `size`, `start()`, `say(kind, …)`, `output`); "mpirun", what that runs once ranks are
        started (with `ranks`, `wait()`; default: "wait()")
    """

    def __init__(self, folder: Path, *attempts: dict[str, str]):
        self.folder = folder
        self.output = folder / "model.h5"
        (folder / "plan.json").write_text(json.dumps(attempts))
        self.mpirun = self._script("mpirun", f"fakempi.mpirun(Path({str(folder)!r}))")
        self.agent = self._script("agent", f"fakempi.agent(Path({str(folder)!r}))")

    def _script(self, name: str, call: str) -> Path:
        path = self.folder / name
        lines = [f"#!{sys.executable}", "import sys", "from pathlib import Path", f"sys.path.insert(0, {HERE!r})"]
        path.write_text("\n".join([*lines, "import fakempi", call, ""]))
        path.chmod(0o755)
        return path

    @property
    def starts(self) -> list[list[str]]:
        """The arguments of each start so far."""
        path = self.folder / "starts"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def pids(self) -> list[int]:
        """Of all processes that were started so far."""
        return [int(path.name) for path in (self.folder / "pids").iterdir()]

    def silence(self, name: str, how: str = "exit 1") -> None:
        """A host does not answer any more; 'how' is what the agent does instead, in sh."""
        (self.folder / f"silent-{name}").write_text(how)


HERE = str(Path(__file__).parent)


def mpirun(folder: Path) -> None:
    """Start ranks, and do as the plan says."""
    arguments = sys.argv[1:]
    if "--version" in arguments:
        sys.stdout.write("mpirun (Open MPI) 5.0.0\n")
        return
    count = int(arguments[arguments.index("-n") + 1])
    with (folder / "starts").open("a") as file:
        print(json.dumps(arguments), file=file)
    plan = json.loads((folder / "plan.json").read_text())
    number = len((folder / "starts").read_text().splitlines()) - 1
    plan = plan[min(number, len(plan) - 1)]
    _note(folder)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {HERE!r}); import fakempi; fakempi.rank()"]
    ranks = []
    for rank in range(count):
        told = {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": str(count), "FAKE": str(folder)}
        ranks.append(subprocess.Popen(command, env={**os.environ, **told, "FAKE_CODE": plan["rank"]}))

    def end(*_: object) -> None:
        for process in ranks:
            process.kill()
        sys.exit(1)

    def wait() -> None:
        """For the end of all ranks; the first that fails ends them all, as with a real one."""
        while any(process.poll() is None for process in ranks):
            if any(process.poll() for process in ranks):
                sys.stderr.write("a rank has failed\n")
                end()
            time.sleep(0.02)
        sys.exit(max(process.returncode for process in ranks))

    signal.signal(signal.SIGTERM, end)
    exec(plan.get("mpirun", "wait()"), {"ranks": ranks, "wait": wait, "time": time, "os": os, "sys": sys})  # noqa: S102


def rank() -> None:
    """Be a rank."""
    folder = Path(os.environ["FAKE"])
    _note(folder)
    from mfpar.supervise import heartbeat

    heartbeat.PERIOD = PERIOD

    def say(kind: str, **content: object) -> None:
        sys.stdout.write(json.dumps({"kind": kind, **content}) + "\n")
        sys.stdout.flush()

    names = {"rank": int(os.environ["OMPI_COMM_WORLD_RANK"]), "size": int(os.environ["OMPI_COMM_WORLD_SIZE"])}
    names |= {"say": say, "output": folder / "model.h5", "os": os, "signal": signal, "time": time, "sys": sys}
    names["start"] = heartbeat.start
    exec(os.environ["FAKE_CODE"], names)  # noqa: S102


def agent(folder: Path) -> None:
    """Run a command on a host, which is this one."""
    host, command = sys.argv[1], sys.argv[2]
    silent = folder / f"silent-{host}"
    if silent.exists():
        command = silent.read_text()
    os.execvp("sh", ["sh", "-c", command])


def _note(folder: Path) -> None:
    (folder / "pids").mkdir(exist_ok=True)
    (folder / "pids" / str(os.getpid())).touch()
