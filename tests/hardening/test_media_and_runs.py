"""A few faults of each class; `tests.hardening.measure` tries them all."""

import pytest

from tests.hardening import faults


@pytest.mark.parametrize(("module", "count"), [("media", 60), ("eval_folders", 30)])
def test_faults_are_met(module, count):
    found = faults.run(f"tests.hardening.{module}", count, seed=1)
    assert found.failures == [] and found.tried == count
