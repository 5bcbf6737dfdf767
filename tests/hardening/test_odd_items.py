"""Odd items are stored and come back equal, or are refused by name; their neighbours are stored."""

from tests.hardening import faults


def test_odd_items():
    found = faults.run("tests.hardening.odd_items", 24, seed=3)
    assert found.tried == 24 and not found.failures
