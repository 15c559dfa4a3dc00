"""What happens in the runs of tests/chaos.py, and what became of them."""

import collections
import dataclasses
import signal
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SIGNALS = {
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
    "terminate": signal.SIGTERM,
    "interrupt": signal.SIGINT,
    "user": signal.SIGUSR1,
    "interrupt twice": signal.SIGINT,
}
SOFT = {"terminate", "interrupt", "user", "interrupt twice"}  # faults that ask for an end
PHASES = ("start", "compile", "step", "exchange", "checkpoint", "replica", "save", "recovery")
MIDST = {"step", "exchange", "checkpoint", "replica"}  # phases after which most of the run is still to come
WAYS = {"process": 1, "mpirun": 3, "ulfm": 5, "launcher": 5}  # how often a run is started so


@dataclass(frozen=True)
class Setting:
    """What is trained; the same fingerprint comes of it however it is run."""

    data: str
    options: Sequence[str]
    every: Sequence[str]  # of these is --checkpoint-every
    memory: int | None = None  # bytes above what every rank needs: ratings are streamed


PATIENT = ("--validation-fraction", "0.1", "--patience", "5", "--no-biases", "--factors", "8", "--lr", "0.003")
PATIENT += ("--lr-rule", "constant", "--epochs", "400")
SETTINGS = {
    "plain": Setting(
        "large", ("--factors", "32", "--epochs", "500", "--lr-decay", "0.995"), ("1s", "50ep", "500steps")
    ),
    "adagrad": Setting("large", ("--optimizer", "adagrad", "--factors", "16", "--epochs", "250"), ("1s", "20ep")),
    "bold": Setting("large", ("--lr-rule", "bold-driver", "--factors", "16", "--epochs", "250"), ("2s", "10ep")),
    "patience": Setting("large", PATIENT, ("1s", "20ep")),
    "streamed": Setting(
        "large", ("--factors", "32", "--epochs", "200", "--lr-decay", "0.99"), ("5ep", "40steps"), 2_300_000
    ),
    "small": Setting("small", ("--factors", "32", "--epochs", "800", "--lr-decay", "0.998"), ("1s", "100ep")),
    "often": Setting("small", ("--factors", "8", "--epochs", "100", "--optimizer", "adagrad"), ("1ep", "5steps")),
}


@dataclass(frozen=True)
class Plan:
    """What happens in a run."""

    number: int
    setting: str
    way: str
    ranks: int
    threads: int
    every: str
    keep: int
    replicas: int
    respawn: bool
    apart: bool  # ranks share no memory, as if each were on a host of its own
    restarts: int
    fault: str
    target: str  # "rank", "mpirun" or "launcher"
    phase: str
    share: float  # of the run's epochs that are done before
    delay: float  # seconds after the phase has begun
    damage: bool  # a byte of the newest checkpoint is flipped

    @property
    def tolerant(self) -> bool:
        """Ranks that are left go on by themselves."""
        return self.way == "ulfm"


def plan_of(seed: int, number: int, ways: Mapping[str, int] = WAYS, settings: Sequence[str] = ()) -> Plan:
    """The plan of this number, with one of these settings (or of all): 49 in a row have each fault in each phase."""
    faults = ["kill", *SIGNALS]  # this one twice
    pairs = [(fault, phase) for fault in faults for phase in PHASES if fault != "interrupt twice" or phase == "step"]
    round_, place = divmod(number, len(pairs))
    order = np.random.default_rng([seed, round_, len(pairs)]).permutation(len(pairs))
    fault, phase = pairs[order[place]]
    rng = np.random.default_rng([seed, number])
    possible = {way: weight for way, weight in ways.items() if phase != "replica" or way in ("ulfm", "launcher")}
    weights = np.array(list(possible.values()), float)
    way = str(rng.choice(list(possible), p=weights / weights.sum()))
    often = phase == "checkpoint" and rng.random() < 0.3
    setting = str(rng.choice(["often"] if often else settings or list(SETTINGS)))
    targets = {"process": ["launcher"], "mpirun": ["rank", "mpirun"], "ulfm": ["rank", "rank", "rank", "mpirun"]}
    tolerant = way in ("ulfm", "launcher")
    delay = {"start": 1.0, "compile": 3.0, "exchange": 0.004, "replica": 0.05, "recovery": 1.0}.get(phase, 0.02)
    return Plan(
        number,
        setting,
        way,
        ranks=1 if way == "process" else int(rng.integers(2, 5)),
        threads=int(rng.integers(1, 3)),
        every=str(rng.choice(SETTINGS[setting].every)),
        keep=int(rng.integers(1, 4)),
        replicas=int((phase == "replica" or (tolerant and rng.random() < 0.5)) and not SETTINGS[setting].memory),
        respawn=bool(tolerant and rng.random() < 0.3),
        apart=bool(rng.random() < (0.7 if phase == "exchange" else 0.2)),
        restarts=3 if rng.random() < 0.8 else 0,
        fault=fault,
        target=str(rng.choice(targets.get(way, ["rank", "rank", "mpirun", "launcher"]))),
        phase=phase,
        share=float(rng.uniform(0.0, 0.6)),
        delay=float(rng.uniform(0, delay)),
        damage=bool(rng.random() < 0.2),
    )


@dataclass
class Outcome:
    """What became of a run."""

    plan: Plan
    struck: list[str] = field(default_factory=list)  # what was hit
    how: str = ""  # "unharmed", "survived", "restarted", "resumed", "stopped", or "too late": it had ended before
    seconds: float | None = None  # from the last fault to the next progress
    commands: list[str] = field(default_factory=list)
    codes: list[int | None] = field(default_factory=list)  # None: hung
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        one = self.plan
        what = f"{one.setting}, {one.way} × {one.ranks}, every {one.every}" + ", replicas" * one.replicas
        what += ", respawn" * one.respawn + ", apart" * one.apart + ", damage" * one.damage
        took = "" if self.seconds is None else f" in {self.seconds:.2f} s"
        hit = " and ".join(self.struck) or "nothing"
        return f"{one.number:>4}  {what}: {one.phase}: {hit}: {self.how}{took}, exit codes {self.codes}"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def table(outcomes: Iterable[Outcome]) -> str:
    """Faults and phases: how many runs, how they went on, seconds until then, and how often something was wrong."""
    ways = ("unharmed", "survived", "restarted", "resumed", "stopped", "too late")
    groups: dict[tuple[str, str], list[Outcome]] = collections.defaultdict(list)
    for one in outcomes:
        groups[one.plan.fault, one.plan.phase].append(one)
    heads = ("runs", *ways, "median s", "longest s", "wrong")
    lines = [f"{'fault':<16}{'phase':<11}" + "".join(f"{head:>10}" for head in heads)]
    order = [(fault, phase) for fault in SIGNALS for phase in PHASES if (fault, phase) in groups]
    for key in [*order, ("all", "")]:
        some = groups[key] if key in groups else [one for group in groups.values() for one in group]
        counts = collections.Counter(one.how for one in some)
        took = [one.seconds for one in some if one.seconds is not None and one.how not in ("unharmed", "too late")]
        seconds = [f"{statistics.median(took):.2f}", f"{max(took):.2f}"] if took else ["", ""]
        cells = [len(some), *(counts[way] or "" for way in ways), *seconds, sum(bool(one.wrong) for one in some)]
        lines.append(f"{key[0]:<16}{key[1]:<11}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)
