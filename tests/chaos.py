"""Runs that are killed, stopped, signalled and gone on with, many of them: each has to end as if nothing had happened.

    python tests/chaos.py --runs 120 --seed 0

trains on real ratings of the folder that MFPAR_SHARED names (or else on planted ones), in one process, under mpirun,
under mpirun with ULFM, or by `mfpar train --ranks`; strikes a rank, mpirun or the launcher at a moment of a certain
kind; and does what docs/operations.md tells the user to do then: nothing, where the run must go on by itself, else
`--resume auto`, on another number of ranks. At last model, checkpoints, exit codes, and what is left behind are looked
at (tests/aftermath.py). Prints a table of faults and phases, and whatever should not be: exit code 1 if there is any.
Run number I of a seed depends on both alone, but for the moment that it happens to be in: `--seed S --only I` shows it
again, `--keep FOLDER` leaves there what it wrote. `--minutes` bounds the whole.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aftermath
import numpy as np
from mishaps import MIDST, SETTINGS, SIGNALS, SOFT, WAYS, Outcome, Plan, Setting, plan_of, table
from planted import plant
from victims import Job, Process

import mfpar
from mfpar.budget import RUNTIME
from mfpar.parallel.installed import about_mpi
from mfpar.parallel.launch import FORGIVING, ONE_NODE, SHARED_FOLDER

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
LIMIT = 90.0  # seconds of one command, ten times what it takes: whatever runs longer hangs
HANG_TIMEOUT = 6  # seconds; of runs that compile first, more
GRACE = 20.0  # seconds after which nothing of a job that has ended may be left: ranks without an mpirun take 15
SOON = 10.0  # seconds that it may take until a rank hears that it is to stop
PAUSE = 3.0  # seconds that something stays stopped of which nobody can know
ATTEMPTS = 6  # commands until the run has to be through
AGAIN = (("process", 1), ("mpirun", 2), ("mpirun", 3), ("launcher", 4))  # ways and ranks to go on with


class Campaign:
    """A folder with ratings, and what comes of them undisturbed.

    Parameters
    ----------
    folder : Path
    seed : int
    real : Path, optional
        Folder with real ratings; without it they are planted.
    keep : Path, optional
        Folder that gets what each run has written.
    """

    def __init__(self, folder: Path, seed: int, real: Path | None = None, keep: Path | None = None):
        self.folder, self.seed, self._keep = folder, seed, keep
        self.data = {name: folder / f"{name}.h5" for name in ("large", "small")}
        self._apart = folder / "apart"
        self._apart.mkdir()
        # What Python imports at its start: a system without memory that has no name, which ranks would share.
        (self._apart / "sitecustomize.py").write_text("import os\n\ndel os.memfd_create\n")
        self._right: dict[str, tuple[str, int]] = {}
        library = about_mpi()["library"] or ""
        self.ways = {way: weight for way, weight in WAYS.items() if way != "ulfm" or library.startswith("Open MPI v5")}
        self._convert(real)

    def _convert(self, real: Path | None) -> None:
        if real is None:
            plant(self.data["large"], 3000, 2000, 400_000, grid=12, noise=0.8)
            plant(self.data["small"], 900, 1200, 90_000, grid=16, noise=0.8)
            return
        ml = np.load(real / "ml-1m.npz")
        given = ml["user"].astype(int), ml["item"].astype(int), ml["rating"].astype(np.float32)
        mfpar.convert(given, self.data["large"], grid=12, test_fraction=0.1)
        mfpar.convert(real / "ml-100k" / "u.data", self.data["small"], grid=16, test_fraction=0.1)

    def environment(self, home: Path, plan: Plan | None) -> dict[str, str]:
        """Variables of a run."""
        paths = [str(self._apart)] * bool(plan and plan.apart) + [str(ROOT)]
        found = {
            **os.environ,
            **ONE_NODE,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "TMPDIR": str(home / "tmp"),
            SHARED_FOLDER: str(home / "tmp"),  # where ranks are killed, nobody but Open MPI could tidy up after it
        }
        if plan and plan.way == "ulfm" and plan.phase == "recovery":
            found |= FORGIVING  # a rank that was started anew may die, too
        if plan and plan.phase == "compile":
            found["NUMBA_CACHE_DIR"] = str(home / "cache")
        return {**found, "PYTHONPATH": os.pathsep.join(paths)}

    def training(self, setting: Setting, threads: int = 1) -> list[str]:
        """The command line of mfpar, but for what keeps it safe."""
        memory = ["--memory", str(RUNTIME + setting.memory)] if setting.memory else []
        options = [*setting.options, *memory, "--threads", str(threads)]
        return ["train", str(self.data[setting.data]), "-o", "model.h5", "--force", "--progress", "json", *options]

    def command(self, plan: Plan, way: str, ranks: int, resume: bool) -> list[str]:
        """The command line of a run."""
        patience = HANG_TIMEOUT * (2 if plan.phase == "compile" else 1)
        mine = [*self.training(SETTINGS[plan.setting], plan.threads), "--checkpoint", "saved", "--keep", str(plan.keep)]
        mine += ["--checkpoint-every", plan.every, "--hang-timeout", str(patience)]
        mine += ["--replicas", "1"] * plan.replicas + ["--respawn"] * plan.respawn + ["--resume", "auto"] * resume
        python = [sys.executable, "-m", "mfpar", *mine]
        if way == "launcher":
            return [*python, "--ranks", str(ranks), "--restarts", str(plan.restarts)]
        if way == "process":
            return python
        return [str(BIN / "mpirun"), *["--with-ft", "ulfm"] * (way == "ulfm"), "-n", str(ranks), *python]

    def undisturbed(self, name: str) -> tuple[str, int]:
        """Fingerprint and number of epochs of a run of this setting to which nothing happens."""
        if name not in self._right:
            with tempfile.TemporaryDirectory(prefix="right-", dir=self.folder) as home:
                (Path(home) / "tmp").mkdir()
                line = [sys.executable, "-m", "mfpar", *self.training(SETTINGS[name])]
                environment = self.environment(Path(home), None)
                with Job(line, Path(home), "right", f"{os.getpid()}-{name}", environment) as job:
                    if job.wait(LIMIT) != 0:
                        said = (Path(home) / "right.err").read_text()
                        raise RuntimeError(f"{name}: undisturbed, it ends with {job.code}: {said} {job.events[-1:]}")
                    epochs = [event["epoch"] for _, event in job.after(0, "epoch")]
                    self._right[name] = aftermath.fingerprint(Path(home) / "model.h5"), epochs[-1]
        return self._right[name]

    def run(self, plan: Plan) -> Outcome:
        """Do as planned, and look at what is there in the end."""
        right, epochs = self.undisturbed(plan.setting)
        home = self.folder / f"{plan.number}"
        (home / "tmp").mkdir(parents=True)
        outcome = Outcome(plan)
        run = Run(self, plan, outcome, home, epochs)
        run.go()
        if outcome.codes[-1] == 0:
            outcome.wrong += aftermath.wrong_model(home / "model.h5", right)
            outcome.wrong += aftermath.left_beside(home)
        outcome.wrong += aftermath.left_in_memory(run.shared)
        if self._keep:
            shutil.copytree(home, self._keep / f"{plan.number}", symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(home)
        return outcome


@dataclass(frozen=True)
class Strike:
    """A signal that hit."""

    moment: float  # of `time.monotonic`
    victim: Process
    attempt: int  # which command it was, from 0
    early: bool  # no epoch had been done by that


class Run:
    """One run, from the first command to the last."""

    def __init__(self, campaign: Campaign, plan: Plan, outcome: Outcome, home: Path, epochs: int):
        self.campaign, self.plan, self.outcome, self.home = campaign, plan, outcome, home
        self.epochs, self.saved = epochs, aftermath.Saved(home / "saved", plan.keep)
        self.rng = np.random.default_rng([campaign.seed, plan.number, 1])
        self.strikes: list[Strike] = []
        self.shared: set[str] = set()

    def go(self) -> None:
        """All commands that it takes."""
        plan, outcome = self.plan, self.outcome
        way, ranks = plan.way, plan.ranks
        wanted: tuple[int, int] | None = None  # epoch and step to go on from
        for attempt in range(ATTEMPTS):
            line = self.campaign.command(plan, way, ranks, resume=attempt > 0)
            outcome.commands.append(" ".join(line))
            mark = f"{os.getpid()}-{plan.number}-{attempt}"
            environment = self.campaign.environment(self.home, plan)
            with Job(line, self.home, f"attempt-{attempt}", mark, environment) as job:
                if attempt == 0:
                    self._strike_in_phase(job)
                elif attempt == 1 and plan.phase == "recovery" and len(self.strikes) == 1:
                    time.sleep(plan.delay)
                    self._strike(job, attempt, "rank")
                code = job.wait(LIMIT)
                outcome.codes.append(code)
                self._look_at(job, attempt, way, wanted)
                wanted = self._to_go_on_from(job, wanted)
            self.shared |= job.shared
            # If nobody is left, mpirun may end with 0: only a model is the proof of success.
            nobody = way == "ulfm" and len(self.strikes) >= ranks and not (self.home / "model.h5").exists()
            if code == 0 and not nobody:
                break
            if plan.damage and attempt == 0 and (name := self.saved.damage(self.rng)):
                wanted = None
                outcome.struck.append(f"damage of {name}")
            others = [one for one in AGAIN if one[1] != ranks]
            way, ranks = others[int(self.rng.integers(len(others)))]
        else:
            outcome.wrong.append(f"not through after {ATTEMPTS} commands")

    # -- faults

    def _strike_in_phase(self, job: Job) -> None:
        """Wait for the moment that is planned, and strike; in a recovery a second time."""
        plan = self.plan
        if not self._phase_begins(job):
            return
        end = time.monotonic() + plan.delay
        while time.monotonic() < end:
            time.sleep(0.0005)
        if plan.damage and plan.way in ("ulfm", "launcher") and (name := self.saved.damage(self.rng)):
            self.outcome.struck.append(f"damage of {name}")
        self._strike(job, 0, plan.target)
        if plan.phase == "recovery" and self.strikes:
            first = self.strikes[0].moment
            job.until(lambda: any(job.after(first, "lost", "resume")), plan.delay)
            time.sleep(float(self.rng.uniform(0, 0.3)))
            if job.code is None:
                self._strike(job, 0, "rank")

    def _phase_begins(self, job: Job) -> bool:
        """Wait until the phase has begun; whether it has."""
        phase = self.plan.phase
        if phase == "start":
            return job.until(lambda: any(one.role != "other" for one in job.processes()), LIMIT)
        if phase == "compile":
            return job.until(lambda: any((self.home / "cache").glob("*/*")), LIMIT)
        if phase == "save":
            return job.until(lambda: aftermath.saving(self.home), LIMIT)
        done = max(1, round(self.plan.share * self.epochs))
        if not job.until(lambda: job.epoch >= done, LIMIT):
            return False
        return phase != "checkpoint" or job.until(self.saved.under_way, LIMIT)

    def _strike(self, job: Job, attempt: int, role: str) -> None:
        """Send the signal to one of this role, or to whoever there is."""
        fault = self.plan.fault
        everybody = [one for one in job.processes() if one.role != "other" and one.state != "T"]
        some = [one for one in everybody if one.role == role] or everybody
        if not some:
            return
        victim = some[int(self.rng.integers(len(some)))]
        early = job.epoch == 0
        self.saved.remember()
        moment = time.monotonic()
        if not job.signal(victim, SIGNALS[fault]):
            return
        self.strikes.append(Strike(moment, victim, attempt, early))
        self.outcome.struck.append(f"{fault} {victim.role}")
        if fault == "interrupt twice":
            time.sleep(float(self.rng.uniform(0, 0.05)))
            job.signal(victim, signal.SIGINT)
        unseen = victim.role == "launcher" or (victim.role == "mpirun" and self.plan.way != "launcher")
        unborn = early and self.plan.way == "ulfm"  # what has not begun can't be found, and holds up mpirun
        if fault == "stop" and (unseen or unborn):
            job.wait(PAUSE if unseen else 5 * HANG_TIMEOUT)
            job.signal(victim, signal.SIGCONT)

    # -- what came of them

    def _look_at(self, job: Job, attempt: int, way: str, wanted: tuple[int, int] | None) -> None:
        """Note what a command that has ended, or hangs, has done wrong, and how it went on."""
        wrong, code, said = self.outcome.wrong, job.code, self._said(attempt)
        strikes = [one for one in self.strikes if one.attempt == attempt]
        if code is None:
            states = ", ".join(map(str, job.processes()))
            wrong.append(f"command {attempt} hangs after {LIMIT:g} s: {states}; last came {_brief(job)}; {said}")
            job.end()
        elif left := job.strays(GRACE):
            wrong.append(f"command {attempt} ended with {code} and left {', '.join(map(str, left))}")
            job.end()
        allowed = self._allowed(job, strikes, way)
        if code is not None and code not in allowed:
            wrong.append(f"command {attempt} ended with {code}, expected {sorted(allowed)}; {said}")
        early = any(one.early for one in strikes)
        if not early and ("Traceback" in said or "internal error" in said):
            wrong.append(f"command {attempt}: a traceback; {said}")
        wrong += [f"command {attempt}: {one}" for one in self.saved.lost()]
        if wanted and attempt and job.epoch:
            cuts = [(event["epoch"], event["step"]) for _, event in job.after(job.started, "resume")]
            if not cuts or cuts[0] < wanted:
                begun = cuts[0] if cuts else "the start"
                wrong.append(f"command {attempt} went on from {begun} instead of epoch and step {wanted}")
        if not self.strikes:
            self.outcome.how = "too late"
        elif code == 0:
            self.outcome.how = self._how(job)
            self.outcome.seconds = self._seconds(job, attempt)

    def _allowed(self, job: Job, strikes: list[Strike], way: str) -> set[int]:
        """Exit codes that a command may have that was struck so."""
        plan = self.plan
        if not strikes:
            return {0}
        found: set[int] = set()
        if any(when < strikes[-1].moment + SOON for when, _ in job.after(0, "saved")):
            found |= {0}  # it was nearly done
        for one in strikes:
            bare = way != "launcher" and one.victim.role == "mpirun"
            if plan.fault in SOFT:
                found |= {75} | ({0} if plan.phase not in MIDST else set())
                if bare and plan.fault != "user":
                    found |= {0, 1, 130, 137, 143}  # mpirun kills the ranks before they are done
                if plan.fault == "interrupt twice" or (plan.fault == "interrupt" and len(strikes) > 1):
                    found |= {130}
                if one.early:
                    found |= {1, 130, 138, 143}  # before anybody listens to signals
                if way == "launcher" and one.victim.role == "mpirun":
                    found |= {0} if plan.restarts else {0, 1}
            elif plan.fault == "stop" and one.victim.role in ("launcher", "mpirun"):
                found |= {0}
            elif one.victim.role == "launcher" or bare:
                found |= {137}
            elif way == "launcher":
                found |= {0} if plan.restarts else {0, 1, 137}
            elif way == "mpirun":
                found |= {1, 137}
            else:
                # There may be no MPI yet to survive in, or nobody may be left.
                found |= {0, 1, 137} if one.early or len(strikes) >= plan.ranks else {0}
        return found

    def _to_go_on_from(self, job: Job, wanted: tuple[int, int] | None) -> tuple[int, int] | None:
        """The least epoch and step that the next command has to begin at."""
        stopped = [(event["epoch"], event["step"]) for _, event in job.after(job.started, "stopped")]
        return stopped[-1] if job.code == 75 and stopped else self.saved.newest() or wanted

    def _seconds(self, job: Job, attempt: int) -> float | None:
        """From the last strike until the run went on: an epoch was done, or at least the model was saved."""
        last = self.strikes[-1]
        again = [when for when, _ in job.after(last.moment, "lost", "resume", "run")] if attempt == last.attempt else []
        back = again[-1] if again else max(last.moment, job.started)
        found = [when for when, _ in job.after(back, "epoch")] or [when for when, _ in job.after(back, "saved")]
        return min(found) - last.moment if found else None

    def _how(self, job: Job) -> str:
        first = self.strikes[0].moment
        if len(self.outcome.codes) > 1:
            return "stopped" if self.outcome.codes[0] == 75 else "resumed"
        if any(job.after(first, "restart")):
            return "restarted"
        return "survived" if any(job.after(first, "lost", "resume")) else "unharmed"

    def _said(self, attempt: int) -> str:
        """The end of what a command wrote to standard error, and its last events."""
        lines = (self.home / f"attempt-{attempt}.out").read_text(errors="replace").splitlines()
        last = [line[:300] for line in lines if not line.startswith('{"kind": "epoch"')][-4:]
        complaints = (self.home / f"attempt-{attempt}.err").read_text(errors="replace")
        return " / ".join(last) + " | " + " / ".join(complaints[-1500:].splitlines()[-12:])


def _brief(job: Job) -> str:
    """The last event of a job, in a few words."""
    event = job.events[-1][1] if job.events else {"kind": "nothing"}
    return ", ".join(str(event[name]) for name in ("kind", "epoch", "step", "message") if name in event)


@contextlib.contextmanager
def campaign(seed: int, real: Path | None, keep: Path | None = None) -> Iterator[Campaign]:
    """A campaign in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="mfpar-chaos-") as name:
        yield Campaign(Path(name), seed, real, keep)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="the runs of these numbers")
    parser.add_argument("--ways", help="only runs that are started so, of " + ",".join(WAYS))
    parser.add_argument("--minutes", type=float, default=19.0, help="no run starts later")
    parser.add_argument("--record", type=Path, help="file that gets a line of JSON for each run")
    parser.add_argument("--keep", type=Path, help="leave in this folder what the runs wrote")
    args = parser.parse_args()
    real = (ROOT / os.environ.get("MFPAR_SHARED", "../shared") / "data").resolve()
    begun, outcomes = time.monotonic(), list[Outcome]()
    with campaign(args.seed, real if real.is_dir() else None, args.keep) as going, contextlib.ExitStack() as closing:
        if args.record:
            args.record.parent.mkdir(parents=True, exist_ok=True)
        record = closing.enter_context(args.record.open("w")) if args.record else None
        plans = (plan_of(args.seed, number, going.ways) for number in args.only or range(args.runs))
        for plan in plans:
            if args.ways and plan.way not in args.ways.split(","):
                continue
            if time.monotonic() - begun > 60 * args.minutes:
                print(f"{args.minutes:g} minutes are over: {len(outcomes)} of {args.runs} runs were made")
                break
            outcomes.append(one := going.run(plan))
            print(one, flush=True)
            for wrong in one.wrong:
                print(f"      WRONG: {wrong}\n      again: --seed {args.seed} --only {plan.number}", flush=True)
            if record:
                print(json.dumps({"seed": args.seed, **one.as_dict()}), file=record, flush=True)
    print(table(outcomes))
    print(f"{len(outcomes)} runs in {time.monotonic() - begun:.0f} s, {sum(bool(one.wrong) for one in outcomes)} wrong")
    return min(1, sum(bool(one.wrong) for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
