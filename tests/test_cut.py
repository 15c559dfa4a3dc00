"""Cuts: a run that is interrupted at any of them, and goes on elsewhere, ends with the bits of one that was not."""

import json
import re

import numpy as np
import pytest
import simulated
from planted import Planted, plant

from mfpar.blockfile import BlockedFile
from mfpar.budget import RUNTIME
from mfpar.config import ModelConfig, TrainConfig
from mfpar.engine import course, rates
from mfpar.engine.course import Course
from mfpar.engine.cut import StopRun
from mfpar.engine.training import Training

GRID = 6
CASES = {
    "adagrad": {"optimizer": "adagrad"},
    "auto": {"lr": "auto"},
    "bold": {"lr": 0.1, "lr_rule": "bold-driver"},
    "late": {"lr": [0.02] * 3 + [40.0] * 3},
    "spoilt": {"lr": [0.02, 0.02, 0.02, 1e3, 1e3, 1e3]},
    "patience": {"lr": 0.3, "validation_fraction": 0.2, "patience": 2, "epochs": 12},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Planted:
    return plant(tmp_path_factory.mktemp("data") / "ratings.h5", grid=GRID)


class Interrupting:
    """Breaks after every `every` steps; the `last` of them ends the run, and its cut is kept as text and arrays."""

    def __init__(self, every: int, last: int | None = None):
        self._every, self._last, self._count = every, last, 0
        self.content: str | None = None
        self.blocks: dict[str, np.ndarray] = {}

    def steps(self, epoch: int, step: int, pace: float | None) -> int:
        return self._every

    def take(self, cut) -> None:
        self._count += 1
        if self._count == self._last:
            self.content = json.dumps(cut.content())
            self.blocks = {name: array.copy() for name, array in cut.blocks()}
            raise StopRun


def train(data, folder, comm, breaks=None, resumed=None, memory=None, **given):
    """The model's tables, base and reports; None where the breaks have ended the run."""
    model, loss = ModelConfig(factors=3).resolved()
    train = TrainConfig(**{"epochs": 6, "memory": memory, **given}).resolved(loss)
    reports, said = [], []
    with BlockedFile(data.path) as file:
        training = Training(file, model, loss, train, comm)
        output = folder / f"{comm.rank}of{comm.size}"
        with Course(
            training, output, reports.append, lambda kind, content: said.append(content["message"]), breaks
        ) as running:
            if resumed:
                content, blocks = resumed

                for name, array in running.lay_out(json.loads(content)):
                    array[:] = blocks[name]
                running.resume(json.loads(content))
            ended = running.run()
        tables = {("rows", i): np.copy(training.row_block(i)[0]) for i in range(training.first, training.last)}
        tables |= {("cols", j): np.copy(training.col_block(j)[0]) for j in range(training.first, training.last)}
    told = [(report.epoch, report.train_loss, report.test_rmse, report.lr) for report in reports]
    return (tables, training.base, told, said) if ended else None


def whole(outcomes):
    """The tables of all ranks, and what all agree on."""
    tables = {key: table for part, *_ in outcomes for key, table in part.items()}
    assert len({base for _, base, *_ in outcomes}) == 1
    return tables, *outcomes[0][1:]


def interrupted(data, folder, ranks, team, every, last, **given):
    """The cut that is the `last` one of a run on some ranks: content, and the blocks of all of them; None: too late."""
    breaks = [Interrupting(every, last) for _ in range(ranks)]
    outcomes = simulated.run(
        ranks, lambda comm: train(data, folder, comm, breaks[comm.rank], **given), seed=last, team=team
    )
    if outcomes[0] is not None:
        return None
    assert len({one.content for one in breaks}) == 1
    names = [name for one in breaks for name in one.blocks]
    assert len(names) == len(set(names))
    return breaks[0].content, {name: array for one in breaks for name, array in one.blocks.items()}


SAID = {  # of what else happens in the run
    "bold": "did not lower the loss",
    "late": "back to the end of epoch 3",
    "spoilt": "no rate helps in epoch 4, so the one before did harm: back to the end of epoch 2",
}


@pytest.mark.parametrize("name", CASES)
def test_the_plan_knows_how_many_states_a_cut_has(data, tmp_path, name):
    """Not more than those, and all of them where it is made in the midst of an epoch."""
    found = [interrupted(data, tmp_path, 1, 1, 4, last, **CASES[name]) for last in range(1, 8)]
    states = {len({key.partition("/")[0] for key in cut[1]}) for cut in found if cut}
    assert max(states) == 1 + TrainConfig(**CASES[name]).ways_back


@pytest.mark.parametrize("name", CASES)
def test_goes_on_from_any_cut_on_any_ranks(data, tmp_path, monkeypatch, name):
    given = CASES[name]
    monkeypatch.setattr(rates, "GROWTH", 4.0)  # so that the bold driver goes too far
    monkeypatch.setattr(course, "ENOUGH", 3 if name == "spoilt" else 6)
    expected, base, told, said = whole(simulated.run(1, lambda comm: train(data, tmp_path, comm, **given)))
    assert any(SAID.get(name, "") in message for message in said) or name not in SAID
    cuts = 0
    for last in range(1, 60, 2):
        ranks, team = [(1, 1), (3, 1), (2, 2), (4, 2)][last % 4]
        others, their_team = [(2, 1), (1, 1), (3, 3), (5, 1)][last // 2 % 4]
        cut = interrupted(data, tmp_path, ranks, team, 2 + last % 4, last, **given)
        if cut is None:
            break
        cuts += 1
        with_breaks = [Interrupting(3) for _ in range(others)]
        outcomes = simulated.run(
            others,
            lambda comm, cut=cut, breaks=with_breaks, threads=1 + last % 2: train(
                data, tmp_path, comm, breaks[comm.rank], resumed=cut, **{"threads": threads, **given}
            ),
            seed=last,
            team=their_team,
        )
        tables, other_base, other_told, _ = whole(outcomes)
        assert other_base == base
        assert other_told == told[len(told) - len(other_told) :]
        for key, table in expected.items():
            np.testing.assert_array_equal(tables[key], table)
    assert cuts >= 4


@pytest.mark.parametrize("spill", [False, True])
def test_a_streamed_run_is_cut_like_any_other(data, tmp_path, spill):
    expected, base, *_ = whole(simulated.run(1, lambda comm: train(data, tmp_path, comm)))
    short = {"memory": RUNTIME + 30_000, "spill": str(tmp_path)} if spill else {"memory": RUNTIME + 90_000}
    cut = interrupted(data, tmp_path, 2, 2, 4, 7, **short)
    assert re.search(r'"step": [1-5]', cut[0])
    tables, other_base, *_ = whole(
        simulated.run(3, lambda comm: train(data, tmp_path, comm, Interrupting(1), resumed=cut, **short))
    )
    assert other_base == base
    for key, table in expected.items():
        np.testing.assert_array_equal(tables[key], table)
