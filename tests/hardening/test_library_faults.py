"""Processes that die, and files that are damaged: nothing stored is lost, nothing deleted comes back, by class."""

import pytest

from tests.hardening import faults


@pytest.mark.parametrize(("name", "count"), [("crash_points", 15), ("damaged_files", 21), ("kills", 5)])
def test_faults(name, count):
    found = faults.run(f"tests.hardening.{name}", count)
    assert found.tried == count and not found.failures
