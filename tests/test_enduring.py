"""Runs that lose ranks, are stopped, or killed: they go on, or are gone on with, and end as if nothing had happened."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types

import h5py
import pytest
import simulated
from planted import Planted, plant

from mfpar.api import runs
from mfpar.api.enduring import train_enduringly
from mfpar.config import ModelConfig, SafetyConfig, TrainConfig
from mfpar.engine import course, history, rates
from mfpar.engine.copies import Copies
from mfpar.errors import ConfigError, FormatError, OutputExistsError, PreemptedError, RankError, RankLostError
from mfpar.integrity.verify import verify
from mfpar.model.opening import open_model
from mfpar.parallel import respawn
from mfpar.parallel.comm import Serial
from mfpar.recovery import keeper
from mfpar.recovery.manifest import checkpoints_in, position
from mfpar.recovery.replicas import Replicas
from mfpar.sharded import shards_shown

EPOCHS = 8


@pytest.fixture(autouse=True)
def break_at_every_end(monkeypatch):
    """Ranks meet after every epoch, however short."""
    monkeypatch.setattr(keeper, "SHORTEST", 0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Planted:
    return plant(tmp_path_factory.mktemp("data") / "ratings.h5", grid=6)


def trainer(data, folder, events=None, stop_at=None, factors=3, safety=None, log=None, force=True, **given):
    """A function of a communicator that trains on it; asked to stop when an epoch of this number ends."""
    asked = []

    def listen(event):
        if events is not None:
            events.append(event)
        if event["kind"] == "epoch" and event["epoch"] == stop_at:
            asked.append(True)

    def body(comm):
        return train_enduringly(
            data.path,
            folder / "m.h5",
            ModelConfig(factors=factors),
            TrainConfig(**{"epochs": EPOCHS, **given}),
            comm,
            listen,
            safety=SafetyConfig(**{"checkpoint": str(folder / "saved"), "checkpoint_every": "1ep", **(safety or {})}),
            stop=lambda: bool(asked),
            log=log,
            force=force,
        )

    return body


def undisturbed(data, folder, **given) -> str:
    return trainer(data, folder, safety={"checkpoint": None}, **given)(Serial())


def kinds(events, kind):
    return [event for event in events if event["kind"] == kind]


# A rank that dies.


@pytest.mark.parametrize(("every", "replicas"), [("1ep", 0), ("5steps", 1), ("1h", 1), (None, 1), (None, 0)])
@pytest.mark.parametrize("team", [1, 2, 4])
def test_those_that_are_left_end_with_the_same_bits(data, tmp_path, monkeypatch, every, replicas, team):
    monkeypatch.setattr(Replicas, "due", True)
    expected = undisturbed(data, tmp_path)
    numbers = random.Random(team)
    for after in [1, 4, *(numbers.randrange(5, 90) for _ in range(6))]:
        victims = numbers.sample(range(4), numbers.choice([1, 1, 2, 3]))
        events = []
        saved = {"checkpoint_every": every} if every else {"checkpoint": None}
        body = trainer(data, tmp_path, events, safety=saved | {"replicas": replicas})

        def run(comm, body=body, victims=victims, after=after):
            if comm.rank in victims:
                comm.hub.kill(comm.rank, after=after + 7 * victims.index(comm.rank))
            return body(comm)

        outcomes = simulated.run_all(4, run, seed=after, team=team, tolerant=True)
        survived = [outcome for outcome in outcomes if not isinstance(outcome, simulated.Death)]
        assert survived == [expected] * len(survived)
        assert len(survived) >= 4 - len(victims)
        if len(survived) < 4:
            assert kinds(events, "lost")
            assert kinds(events, "resume")
        assert open_model(tmp_path / "m.h5", None).fingerprint == expected
        shutil.rmtree(tmp_path / "saved", ignore_errors=True)


@pytest.mark.parametrize("after", [1, 3, 4, 5])
def test_of_what_was_saved_with_the_dead_nothing_stays(data, tmp_path, monkeypatch, after):
    real = runs.save_model

    def save(output, training, file, record, comm):
        if comm.rank == 2:
            comm.hub.kill(2, after)
        return real(output, training, file, record, comm)

    assert simulated.run(3, trainer(data, tmp_path, epochs=1, safety={"checkpoint": None}))  # what is to be replaced
    monkeypatch.setattr(runs, "save_model", save)
    simulated.run_all(3, trainer(data, tmp_path, safety={"checkpoint": None}), seed=after, tolerant=True)
    with h5py.File(tmp_path / "m.h5") as model:
        assert {path.name for path in (tmp_path / "m.shards").iterdir()} == {
            name.rpartition("/")[2] for name in shards_shown(model)
        }


def test_who_is_lost_before_the_run_has_begun_saves_nobody_from_being_refused(data, tmp_path):
    """Whoever of those that are left is the first now has to look again at what must not be replaced."""
    expected = undisturbed(data, tmp_path)
    model = (tmp_path / "m.h5").read_bytes()
    refusing = trainer(data, tmp_path, force=False)
    for after in range(12):
        events = []
        refusing = trainer(data, tmp_path, events, force=False)

        def run(comm, body=refusing, after=after):
            if comm.rank == 0:
                comm.hub.kill(0, after)
            return body(comm)

        outcomes = simulated.run_all(3, run, seed=after, tolerant=True)
        assert not set(outcomes) & {expected}
        assert {type(outcome) for outcome in outcomes} <= {OutputExistsError, RankError, simulated.Death}
        assert (tmp_path / "m.h5").read_bytes() == model
        assert not kinds(events, "run")


@pytest.mark.parametrize("replicas", [0, 1])
def test_nobody_goes_on_with_other_data_than_the_run_began_with(tmp_path, monkeypatch, replicas):
    """A file of the same shape takes the place of the ratings; then a rank is lost, and those that are left read it."""
    monkeypatch.setattr(Replicas, "due", True)
    data, other = (plant(tmp_path / f"{noise}.h5", grid=6, noise=noise) for noise in (0.1, 0.2))

    def run(comm):
        def listen(event):
            if event["kind"] == "epoch" and event["epoch"] == 3 and other.path.exists():
                other.path.rename(data.path)
                comm.hub.kill(2)

        given = ModelConfig(factors=3), TrainConfig(epochs=EPOCHS)
        kept = {"safety": SafetyConfig(replicas=replicas), "stop": bool}
        return train_enduringly(data.path, tmp_path / "m.h5", *given, comm, listen, **kept)

    lost, *left = reversed(simulated.run_all(3, run, tolerant=True))
    assert isinstance(lost, simulated.Death)
    assert {type(outcome) for outcome in left} == {ConfigError}
    assert str(left[0]) == f"{data.path}: is of other data than it was when this run began; start it anew"
    assert not (tmp_path / "m.h5").exists()


def test_all_ranks_have_the_same_data(tmp_path):
    """Not files of their own under the same name."""
    data = [plant(tmp_path / f"{noise}.h5", grid=6, noise=noise) for noise in (0.1, 0.2)]

    def run(comm):
        given = ModelConfig(factors=3), TrainConfig(epochs=EPOCHS)
        kept = {"safety": SafetyConfig(), "stop": bool}
        return train_enduringly(data[comm.rank > 1].path, tmp_path / "m.h5", *given, comm, lambda _: None, **kept)

    outcomes = simulated.run_all(3, run)
    assert {type(outcome) for outcome in outcomes} == {ConfigError}
    assert str(outcomes[0]).endswith("is not the same file on rank 0 and on rank 2; all need the same ratings")


@pytest.mark.parametrize("own", [True, False])
def test_a_run_goes_on_beside_checkpoints_of_a_longer_one(data, tmp_path, own):
    """What it goes back to is the newest one within its epochs, or, where there is none, the start."""
    expected = undisturbed(data, tmp_path)
    trainer(data, tmp_path, safety={"keep": 2}, epochs=EPOCHS + 6)(Serial())
    events = []
    body = trainer(data, tmp_path, events, safety={"checkpoint_every": "1ep" if own else "1h"})

    def run(comm):
        if comm.rank == 2:
            comm.hub.kill(2, 150)
        return body(comm)

    outcomes = simulated.run_all(3, run, tolerant=True)
    assert outcomes[:2] == [expected] * 2
    assert isinstance(outcomes[2], simulated.Death)
    assert (kinds(events, "resume")[0]["epoch"] > 1) == own
    assert not kinds(events, "warning")


def test_what_was_named_may_be_lost_once_the_run_has_begun(data, tmp_path):
    expected = undisturbed(data, tmp_path)
    trainer(data, tmp_path, safety={"keep": 1})(Serial())
    (path,) = (path for path in (tmp_path / "saved").iterdir() if path.is_dir())
    events = []

    def run(comm):
        def lose(event):
            events.append(event)
            if event["kind"] == "resume" and path.exists():
                shutil.rmtree(path)
                comm.hub.kill(1)

        given = data.path, tmp_path / "m.h5", ModelConfig(factors=3), TrainConfig(epochs=EPOCHS)
        return train_enduringly(*given, comm, lose, safety=SafetyConfig(resume=str(path)), stop=bool, force=True)

    assert simulated.run_all(2, run, tolerant=True)[0] == expected
    assert [event["epoch"] for event in kinds(events, "resume")] == [EPOCHS, 1]
    assert "is no whole checkpoint" in kinds(events, "warning")[0]["message"]


class Losing(Serial):
    """Ranks that lose others at once; `asked` notes how many are to be started anew, of which none is."""

    size, tolerant = 3, True

    def __init__(self, asked):
        super().__init__()
        self._asked = asked

    def guard(self):
        raise RankLostError("a rank has died")

    def survivors(self, respawn=0):
        self._asked.append(respawn)
        left = Serial() if respawn else Losing(self._asked)
        left.size -= not respawn
        return left


def test_a_rank_started_anew_knows_how_many_there_were(data, tmp_path, monkeypatch):
    """It came as the fourth, but one more was lost before it was there; those from the start want four again, too."""
    monkeypatch.setenv(respawn.JOINS, "3 0")
    asked = []
    safety = {"respawn": True, "checkpoint": None}
    assert trainer(data, tmp_path, safety=safety)(Losing(asked)) == undisturbed(data, tmp_path)
    assert asked == [0, 2]


def test_what_lies_on_the_disk_to_go_back_to_is_restored_from_memory_too(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Replicas, "due", True)
    monkeypatch.setattr(keeper, "LONGEST", 0.0)
    monkeypatch.setattr(rates, "GROWTH", 4.0)  # so that the bold driver goes too far
    monkeypatch.setattr(history, "Copies", lambda beside, in_memory: Copies(beside, False))
    given = {"lr": 0.1, "lr_rule": "bold-driver"}
    expected = undisturbed(data, tmp_path, **given)
    for after in range(300, 1200, 150):
        events = []
        body = trainer(data, tmp_path, events, safety={"checkpoint": None, "replicas": 1}, **given)

        def run(comm, body=body, after=after):
            if comm.rank == 2:
                comm.hub.kill(comm.rank, after)
            return body(comm)

        assert simulated.run_all(3, run, seed=after, tolerant=True)[:2] == [expected] * 2
        assert "from the neighbours' memory" in kinds(events, "resume")[0]["message"]


# A run that is asked to stop.


@pytest.mark.parametrize("every", ["1h", "2ep"])
@pytest.mark.parametrize(("ranks", "others"), [(1, 3), (3, 2), (4, 1)])
def test_stopped_as_asked_and_resumed(data, tmp_path, every, ranks, others):
    expected = undisturbed(data, tmp_path)
    events = []
    log = tmp_path / "run.jsonl"
    body = trainer(data, tmp_path, events, stop_at=3, safety={"checkpoint_every": every}, log=log)
    outcomes = simulated.run_all(ranks, body, tolerant=ranks > 2)
    assert {type(outcome) for outcome in outcomes} == {PreemptedError}
    assert "after epoch 3" in str(outcomes[0])
    assert PreemptedError.exit_code == 75
    assert [event["epoch"] for event in kinds(events, "stopped")] == [4]
    events.clear()
    outcomes = simulated.run_all(others, trainer(data, tmp_path, events, safety={"resume": "auto"}, log=log))
    assert outcomes == [expected] * others
    assert [(event["epoch"], event["ranks"]) for event in kinds(events, "resume")] == [(4, others)]
    assert [event["epoch"] for event in kinds(events, "epoch")] == [4, 5, 6, 7, 8]
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["epoch"] for event in kinds(logged, "epoch")] == list(range(1, EPOCHS + 1))
    assert [event["epoch"] for event in open_model(tmp_path / "m.h5", None).curve] == list(range(1, EPOCHS + 1))


def test_half_a_line_at_the_end_of_the_log_goes(data, tmp_path):
    """As a process leaves it that is killed, or whose disk is full."""
    log = tmp_path / "run.jsonl"
    for end in ("", '{"kind": "ep' * 9999):
        log.write_text('{"kind": "run"}\n' + end)
        trainer(data, tmp_path, safety={"resume": "auto"}, log=log)(Serial())
        said = [json.loads(line)["kind"] for line in log.read_text().splitlines()]
        assert said[:2] == ["run", "run"]
        assert said[-1] == "saved"
    log.write_text("half")
    trainer(data, tmp_path, safety={"resume": "auto"}, log=log)(Serial())
    assert json.loads(log.read_text().splitlines()[0])["kind"] == "run"


def test_ranks_meet_in_time_where_little_of_it_is_training(data, tmp_path, monkeypatch):
    """By a clock that goes on a second at the end of an epoch, as if the held-out part were a large one."""
    now, epochs = [0.0], []
    monkeypatch.setattr(keeper, "SHORTEST", 5.0)
    monkeypatch.setattr(keeper, "time", types.SimpleNamespace(monotonic=lambda: now[0]))

    def listen(event):
        now[0] += event["kind"] == "epoch"
        epochs.extend([event["epoch"]] if event["kind"] == "epoch" else [])

    safety = SafetyConfig(checkpoint=str(tmp_path / "saved"), checkpoint_every="1h")
    stopped = {"safety": safety, "stop": lambda: len(epochs) >= 40}
    with pytest.raises(PreemptedError):
        train_enduringly(
            data.path, tmp_path / "m.h5", ModelConfig(factors=3), TrainConfig(epochs=200), Serial(), listen, **stopped
        )
    assert 40 <= len(epochs) <= 50


def test_of_resuming(data, tmp_path):
    expected = undisturbed(data, tmp_path)
    train = trainer(data, tmp_path, safety={"keep": 3})
    assert train(Serial()) == expected
    saved = sorted(path for path in (tmp_path / "saved").iterdir() if path.is_dir())
    assert [path.name[:25] for path in saved] == [f"epoch-{epoch:08d}-step-00000" for epoch in (6, 7, 8)]
    # Every one of them, by its name; a damaged one is refused if it is named, and passed over if it is not.
    for path in saved:
        events = []
        named = {"resume": str(path), "checkpoint": None}
        assert trainer(data, tmp_path, events, safety=named)(Serial()) == expected
        assert kinds(events, "epoch")[0]["epoch"] == int(path.name[6:14])
    blocks = next(saved[-1].glob("*.blocks"))
    blocks.write_bytes(blocks.read_bytes()[:-1] + b"x")
    with pytest.raises(FormatError, match="damaged"):
        trainer(data, tmp_path, safety=named)(Serial())
    events = []
    assert trainer(data, tmp_path, events, safety={"resume": "auto"})(Serial()) == expected
    assert kinds(events, "epoch")[0]["epoch"] == 7
    assert "damaged" in kinds(events, "warning")[0]["message"]
    # More epochs go on from where the fewer ended; other settings are another run.
    more = undisturbed(data, tmp_path, epochs=EPOCHS + 3)
    assert trainer(data, tmp_path, safety={"resume": "auto"}, epochs=EPOCHS + 3, threads=2)(Serial()) == more
    for other in ({"seed": 5}, {"factors": 4}, {"lr": 0.5}):
        with pytest.raises(ConfigError, match=f"{next(iter(other))}="):
            trainer(data, tmp_path, safety={"resume": "auto"}, **other)(Serial())
    with pytest.raises(FormatError, match="nothing-here"):
        trainer(data, tmp_path, safety={"resume": str(tmp_path / "nothing-here")})(Serial())
    with pytest.raises(ConfigError, match="checkpoint"):
        SafetyConfig(resume="auto")


def test_a_damaged_checkpoint_stays_in_place_of_no_whole_one(data, tmp_path):
    trainer(data, tmp_path, safety={"keep": 2})(Serial())
    _, last = sorted(path for path in (tmp_path / "saved").iterdir() if path.is_dir())
    last = last.rename(last.with_name(f"{last.name[:-8]}{'0' * 8}"))  # older than what takes its place
    blocks = next(last.glob("*.blocks"))
    blocks.write_bytes(blocks.read_bytes()[:-1] + b"x")
    events = []
    simulated.run(2, trainer(data, tmp_path, events, safety={"keep": 2, "resume": "auto"}))
    assert "is damaged" in kinds(events, "warning")[0]["message"]
    left = checkpoints_in(tmp_path / "saved")
    assert [position(path)[0] for path in left] == [8, 7]
    assert all(verify(path).sound for path in left)


def test_nothing_of_a_damaged_checkpoint_is_in_those_that_follow(data, tmp_path):
    given, steps = {"validation_fraction": 0.2, "patience": EPOCHS}, {"checkpoint_every": "1steps", "keep": 1000}
    expected = undisturbed(data, tmp_path, **given)
    assert trainer(data, tmp_path, safety=steps, **given)(Serial()) == expected
    *others, last = sorted(path for path in (tmp_path / "saved").iterdir() if path.is_dir())
    for path in others:
        shutil.rmtree(path)
    blocks = json.loads((last / "manifest.json").read_text().partition("\n")[2])["blocks"]
    file, begin = next((block[1], block[2]) for block in blocks if block[0] == "now/rows/3")
    with open(last / file, "r+b") as damaged:  # the second of two ranks comes upon that before it gets a copy
        damaged.seek(begin)
        damaged.write(b"\xff")
    outcomes = simulated.run_all(2, trainer(data, tmp_path, safety=steps | {"resume": "auto"}, **given))
    assert outcomes == [expected] * 2
    begun = sorted((tmp_path / "saved").glob("epoch-00000001-*"))
    assert begun
    for path in begun:
        named = {"resume": str(path), "checkpoint": None}
        assert trainer(data, tmp_path, safety=named, **given)(Serial()) == expected


def test_the_best_state_may_be_of_an_epoch_that_was_made_anew(data, tmp_path, monkeypatch):
    """The third epoch was best, then the fourth was spoilt, and the third, made anew at another rate, was worse."""
    sound_pass = course.Course._sound_pass

    def spoilt_once(self, at):
        if at.epoch == 4 and not at.retreats:
            self._rates.cut()
            return None
        return sound_pass(self, at)

    def improves(self, validation, at):
        if (at.epoch, at.retreats) != (3, 0):
            return False
        at.best, at.best_epoch = 1.0, 3
        return True

    monkeypatch.setattr(course.Course, "_sound_pass", spoilt_once)
    monkeypatch.setattr(course.Course, "_improves", improves)
    monkeypatch.setattr(keeper.Keeper, "_is_due", lambda self, cut: True)
    given = {"validation_fraction": 0.2, "patience": EPOCHS}
    expected = trainer(data, tmp_path, safety={"keep": 1000}, **given)(Serial())
    saved = checkpoints_in(tmp_path / "saved")
    assert [position(path)[:2] for path in saved].count((4, 0)) == 2
    for path in saved:
        named = {"resume": str(path), "checkpoint": None}
        assert trainer(data, tmp_path, safety=named, **given)(Serial()) == expected


@pytest.mark.parametrize(
    ("where", "value", "sentence"),
    [
        (("now",), None, "has no order of the column-blocks now"),
        (("now", 0), [0] * 6, "has no order of the column-blocks now"),
        (("now", 1), "far", "has no order of the column-blocks now"),
        (("copies",), {"worst": []}, "does not say which copies it has"),
        (("copies",), {"best": [[1], 0.0]}, "has no order of the column-blocks best"),
        (("course",), {}, "does not say how far the run was"),
        (("course", "standing", "epoch"), "two", "has something else than numbers"),
        (("course", "standing"), {"loss": 1.0}, "does not say where the run stood"),
        (("course", "rates"), [1.0], "has no rates"),
        (("course", "history", "kept"), {"last": None}, "has no history"),
        (("course", "history", "used"), [[1, 2.0]], "has no rates of the epochs before"),
        (("step",), 6, "is after step 6 of 6"),
        (("step",), 2, "does not say what the steps of its epoch amount to"),
        (("totals",), {"sums": [[0.0]]}, "does not say what the steps of its epoch amount to"),
        (("epoch",), 2, "is of epoch 2, but the run stood in epoch 8"),
        (("course", "standing", "epoch"), 8.0, "is of epoch 8, but the run stood in epoch 8.0"),
        (("course", "history", "used"), [[1, [0.1, 1.0]]], "has no rates of the epochs before"),
        (("course", "history", "kept"), {"last": 3, "worst": 2}, "has no history"),
        (("copies",), {"best": [[0, 1, 2, 3, 4, 5], 0.0]}, "has a copy of which its history knows nothing"),
        (("curve",), [1.0], "has no curve"),
        (("curve",), None, "has no curve"),
    ],
)
def test_a_foreign_cut_is_not_gone_on_from(data, tmp_path, where, value, sentence):
    """Under a checksum that says that all is well."""
    expected = undisturbed(data, tmp_path)
    assert trainer(data, tmp_path, safety={"keep": 1})(Serial()) == expected
    (path,) = (path for path in (tmp_path / "saved").iterdir() if path.is_dir())
    content = json.loads((path / "manifest.json").read_text().partition("\n")[2])
    part = content["cut"]
    for name in where[:-1]:
        part = part[name]
    part[where[-1]] = value
    text = json.dumps(content).encode()
    (path / "manifest.json").write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
    with pytest.raises(FormatError, match=f"is foreign: the cut {sentence}"):
        trainer(data, tmp_path, safety={"resume": str(path), "checkpoint": None})(Serial())
    events = []
    assert simulated.run(2, trainer(data, tmp_path, events, safety={"resume": "auto"})) == [expected] * 2
    assert sentence in kinds(events, "warning")[0]["message"]


def test_with_none_to_go_on_from_a_run_begins(data, tmp_path):
    events = []
    assert trainer(data, tmp_path, events, safety={"resume": "auto"})(Serial()) == undisturbed(data, tmp_path)
    assert kinds(events, "resume") == []


# Processes.


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_process_that_gets_a_signal(data, tmp_path, number):
    given = {"epochs": 400, "lr_decay": 1.0}
    expected = undisturbed(data, tmp_path, **given)
    (tmp_path / "m.h5").unlink()
    command = [sys.executable, "-m", "mfpar", "train", str(data.path), "-o", str(tmp_path / "m.h5"), "--factors", "3"]
    command += ["--epochs", "400", "--lr-decay", "1", "--checkpoint", str(tmp_path / "saved")]
    command += ["--checkpoint-every", "2ep", "--progress", "none"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while time.monotonic() < until and not list(tmp_path.glob("saved/*/manifest.json")):
            time.sleep(0.01)
        process.send_signal(number)
        complaints = process.communicate(timeout=60)[1]
    assert process.returncode == (75 if number != signal.SIGKILL else -number)
    assert ("--resume auto" in complaints) == (number != signal.SIGKILL)
    assert not (tmp_path / "m.h5").exists()
    events = []
    assert trainer(data, tmp_path, events, safety={"resume": "auto"}, **given)(Serial()) == expected
    assert kinds(events, "resume")[0]["epoch"] > 1


# A signal that comes while a module is looked for.
EARLY = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == {name!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(
    ("name", "number", "code"),
    [
        ("mfpar.cli.main", signal.SIGINT, -signal.SIGINT),
        ("mfpar.cli.train", signal.SIGINT, -signal.SIGINT),
        ("mfpar.api", signal.SIGINT, 75),
        ("mfpar.api", signal.SIGTERM, 75),
    ],
)
def test_a_signal_at_the_start(data, tmp_path, name, number, code):
    """Nothing but imports is under way, or it is noted, so that none is lost in code that lets no exception through."""
    (tmp_path / "sitecustomize.py").write_text(EARLY.format(name=name, number=int(number)))
    command = [sys.executable, "-m", "mfpar", "train", str(data.path), "-o", "m.h5", "--checkpoint", "saved"]
    paths = f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}"
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("mfpar: stopped as asked") if code == 75 else done.stderr == ""


# From Python.


def test_factorize_goes_on_from_a_checkpoint(data, tmp_path):
    import mfpar

    class StopError(Exception):
        pass

    def stop(report):
        if report.epoch == 5:
            raise StopError

    given = {"factors": 3, "epochs": EPOCHS, "checkpoint": tmp_path / "saved", "checkpoint_every": "2ep"}
    with pytest.raises(StopError):
        mfpar.factorize(data.path, output=tmp_path / "m.h5", callback=stop, **given)
    epochs = []
    model = mfpar.factorize(
        data.path, output=tmp_path / "m.h5", callback=lambda r: epochs.append(r.epoch), resume="auto", **given
    )
    assert model.fingerprint == undisturbed(data, tmp_path)
    assert epochs in ([3, 4, 5, 6, 7, 8], [5, 6, 7, 8])  # the last checkpoint was perhaps not whole yet


def test_a_loss_of_ones_own_is_known_by_what_it_computes(data, tmp_path):
    import mfpar

    def loss(slope):
        return mfpar.Loss(lambda r, z: slope * (z - r), lambda r, z: slope * (r - z) ** 2 / 2, name="own")

    given = {"factors": 3, "checkpoint": str(tmp_path / "saved"), "checkpoint_every": "2ep", "force": True}
    given["output"] = tmp_path / "m.h5"
    mfpar.factorize(data.path, epochs=3, loss=loss(1.0), **given)
    again = mfpar.factorize(data.path, epochs=6, loss=loss(1.0), resume="auto", **given)
    assert again.fingerprint == mfpar.factorize(data.path, factors=3, epochs=6, loss=loss(1.0)).fingerprint
    with pytest.raises(ConfigError, match="loss"):
        mfpar.factorize(data.path, epochs=6, loss=loss(0.9), resume="auto", **given)
