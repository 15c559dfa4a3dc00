"""The trace of a run, and the balance of its steps."""

import collections
import itertools
import json

import numpy as np
import pytest
import simulated
from planted import Planted, plant

from mfpar.api.runs import train_file
from mfpar.config import ModelConfig, TrainConfig
from mfpar.engine.balance import step_balance
from mfpar.errors import StorageError
from mfpar.grid import span
from mfpar.schedule import meetings, ring

EPOCHS = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Planted:
    return plant(tmp_path_factory.mktemp("data") / "ratings.h5")


def named(events, name):
    return [event for event in events if event["name"] == name and event["ph"] == "X"]


def test_a_trace_tells_what_each_rank_and_thread_did(data, run_cli, tmp_path):
    command = ["train", data.path, "-o", "m.h5", "--epochs", EPOCHS, "--factors", 3, "--ranks", 2, "--threads", 2]
    done = run_cli(*command, "--trace", "t.json", "--log", "run.jsonl")
    assert done.returncode == 0, done.stderr
    events = json.loads((tmp_path / "t.json").read_text())
    assert {event["args"]["name"] for event in events if event["name"] == "process_name"} == {"rank 0", "rank 1"}
    size = data.grid.size
    met = collections.Counter(
        (event["args"]["row-block"], event["args"]["column-block"]) for event in named(events, "compute")
    )
    assert met == dict.fromkeys(itertools.product(range(size), range(size)), EPOCHS)
    assert len(named(events, "evaluate")) == EPOCHS * size**2
    for name in ("start", "read", "save", "inspect"):
        assert {event["pid"] for event in named(events, name)} == {0, 1}
    assert {event["tid"] for event in named(events, "compute")} == {1, 2}
    by_thread = collections.defaultdict(list)
    for event in events:
        if event["ph"] == "X" and event["tid"]:
            by_thread[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert len(by_thread) == 4
    for spans in by_thread.values():
        spans.sort()
        assert all(end <= begin + 1e-3 for (_, end), (begin, _) in itertools.pairwise(spans))
    # Whoever meets a column-block comes after the one before.
    for j in range(size):
        visits = sorted(
            (event["ts"], event["ts"] + event["dur"])
            for event in named(events, "compute")
            if event["args"]["column-block"] == j
        )
        assert all(end <= begin + 1e-3 for (_, end), (begin, _) in itertools.pairwise(visits))
    epoch = json.loads((tmp_path / "run.jsonl").read_text().splitlines()[1])
    assert len(epoch["step_balance"]) == size
    assert all(0 < share <= 1 for share in epoch["step_balance"])
    assert 0 < epoch["seconds_working"] <= epoch["seconds"]
    # It replaces nothing unasked, and no other output.
    for options, told in (
        (("-o", "other.h5", "--trace", "t.json"), "t.json: exists already"),
        (("-o", "m.h5", "--force", "--trace", "m.h5"), "m.h5: is wanted for the model and for the trace"),
    ):
        done = run_cli("train", data.path, *options)
        assert done.returncode == 2
        assert told in done.stderr


def test_messages_between_nodes_are_shown(data, tmp_path):
    def train(comm):
        return train_file(
            data.path, tmp_path / "m.h5", ModelConfig(factors=3), TrainConfig(epochs=EPOCHS), comm, lambda event: None,
            trace=tmp_path / "t.json",
        )  # fmt: skip

    assert len(set(simulated.run(3, train, team=2))) == 1
    events = json.loads((tmp_path / "t.json").read_text())
    begun = collections.Counter(event["id"] for event in events if event["ph"] == "b")
    assert begun == collections.Counter(event["id"] for event in events if event["ph"] == "e")
    messages = collections.Counter((event["name"], event["pid"]) for event in events if event["ph"] == "b")
    # Each node hands on a block at every step, and some more in between.
    assert set(messages) == {(name, leader) for name in ("send", "receive") for leader in (0, 2)}
    assert min(messages.values()) >= EPOCHS * data.grid.size


def test_a_run_that_fails_leaves_no_trace(data, tmp_path):
    def train(comm):
        def fail(event):
            if event["kind"] == "epoch":
                raise StorageError("no more")

        model, run = ModelConfig(factors=3), TrainConfig(epochs=EPOCHS)
        train_file(data.path, tmp_path / "m.h5", model, run, comm, fail, trace=tmp_path / "t.json")

    outcomes = simulated.run_all(2, train, team=2)
    assert [str(outcome) for outcome in outcomes] == ["no more"] * 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_the_balance_of_steps_is_what_loops_find(ranks):
    counts = np.random.default_rng(ranks).integers(0, 50, (7, 7))
    counts[:, 3] = 0
    order = ring(7, 5, 1)
    found = step_balance(counts, order, ranks)
    owners = [next(rank for rank in range(ranks) if i in range(*span(7, ranks, rank))) for i in range(7)]
    for step, share in enumerate(found):
        loads = [0] * ranks
        for i, j in enumerate(meetings(order, step)):
            loads[owners[i]] += int(counts[i, j])
        assert share == pytest.approx(sum(loads) / ranks / max(loads) if max(loads) else 1.0, abs=1e-3)
    if ranks == 1:
        assert set(found) == {1.0}
