"""A short form of tests/chaos.py."""

import chaos
import pytest
from mishaps import plan_of


@pytest.fixture(scope="module")
def going(tmp_path_factory):
    pytest.importorskip("mpi4py")
    with chaos.campaign(7, None) as one:
        yield one


@pytest.mark.parametrize("number", range(12))
def test_whatever_happens_the_model_is_that_of_an_undisturbed_run(going, number):
    outcome = going.run(plan_of(7, number, going.ways, ["often"]))
    assert outcome.wrong == [], str(outcome)
