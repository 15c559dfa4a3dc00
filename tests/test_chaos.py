"""A short form of tests/chaos.py, and what it stands on."""

import sys

import aftermath
import chaos
import numpy as np
import pytest
from mishaps import PHASES, SIGNALS, WAYS, plan_of
from victims import Job

NUMBERS = (4, 12, 13, 16, 21, 24, 25, 31, 32)  # of each way to start, of deaths and of requests


@pytest.fixture(scope="module")
def going():
    pytest.importorskip("mpi4py")
    with chaos.campaign(7, None) as one:
        yield one


@pytest.mark.parametrize("number", NUMBERS)
def test_whatever_happens_the_model_is_that_of_an_undisturbed_run(going, number):
    outcome = going.run(plan_of(7, number, going.ways, ["often"]))
    assert outcome.wrong == [], str(outcome)


def test_plans_are_a_function_of_seed_and_number_and_leave_nothing_out():
    plans = [plan_of(3, number) for number in range(98)]
    assert plans == [plan_of(3, number) for number in range(98)]
    assert plans != [plan_of(4, number) for number in range(98)]
    happens = {(plan.fault, plan.phase) for plan in plans[:49]}
    assert happens == {
        (fault, phase) for fault in SIGNALS for phase in PHASES if "twice" not in fault or phase == "step"
    }
    assert {plan.way for plan in plans} == set(WAYS)
    assert {plan.target for plan in plans} == {"rank", "mpirun", "launcher"}


def test_what_a_job_leaves_behind_is_found_and_ended(tmp_path):
    script = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    line = [sys.executable, "-c", script + """; print('{"kind": "epoch", "epoch": 3}'); sys.exit(7)"""]
    with Job(line, tmp_path, "one", "test-chaos", {}) as job:
        assert job.wait(20) == 7
        assert job.epoch == 3
        assert [one.role for one in job.strays(0.1)] == ["other"]
        again = job
    assert again.processes() == []


def test_lost_and_changed_checkpoints_are_noticed(tmp_path):
    def write(step):
        path = tmp_path / f"epoch-00000002-step-{step:08d}-0123abcd"
        path.mkdir()
        (path / "0.blocks").write_bytes(bytes(100))
        (path / "manifest.json").write_text("{}")
        return path

    saved = aftermath.Saved(tmp_path, 2)
    first, second = write(1), write(2)
    (tmp_path / "epoch-00000002-step-00000003-0123abcd").mkdir()
    assert saved.under_way()
    saved.remember()
    assert saved.newest() == (2, 2)
    assert saved.lost() == []
    (first / "manifest.json").unlink()  # to make room for another, as it is done
    third = write(4)
    assert saved.lost() == []
    assert saved.damage(np.random.default_rng(0)).endswith((f"{third.name}/0.blocks", f"{third.name}/manifest.json"))
    assert saved.newest() == (2, 2)
    (second / "0.blocks").write_bytes(b"1" + bytes(99))
    assert saved.lost() == [f"checkpoint {second.name} was changed"]
    (second / "manifest.json").unlink()
    assert [text.partition(" were")[0] for text in saved.lost()] == [f"checkpoints {second.name}"]
