"""Some faults of each class of sessions and models; all of them are tried by `tests.hardening.measure`."""

import pytest

from tests.hardening import faults

CLASSES = {"interrupts": 16, "hostile_sessions": 16, "hostile_models": 24, "configs": 24}


@pytest.mark.parametrize("name", CLASSES)
def test_no_fault_goes_wrong(name):
    found = faults.run(f"tests.hardening.{name}", CLASSES[name], seed=1)
    assert found.tried == CLASSES[name]
    assert not any(found.failed.values()), found.failures
