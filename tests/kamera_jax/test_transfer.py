"""What goes to the device goes at once, and nothing small goes twice in a row."""

import jax
import numpy as np
import pytest

from kamera_jax import transfer
from tests.kamera_jax.programs import transfers


@pytest.fixture(autouse=True)
def nothing_sent(monkeypatch):
    monkeypatch.setattr(transfer, "_SENT", transfer._Sent())


def test_a_tree_is_one_transfer_and_known_arrays_are_none():
    tree = {"a": np.arange(3, dtype=np.int32), "b": [np.float32(2), None, np.zeros((2, 2), np.float32)]}
    with transfers() as sent:
        first = transfer.to_device(tree)
        again = transfer.to_device(tree)
    assert len(sent) == 1
    assert all(a is b and isinstance(a, jax.Array) for a, b in zip(*map(jax.tree.leaves, (first, again)), strict=True))
    assert (first["a"] == tree["a"]).all() and first["b"][1] is None and first["b"][0].dtype == np.float32


def test_arrays_of_one_content_and_another_type_or_shape_are_others():
    zeros = [np.zeros(2, np.int32), np.zeros(2, np.float32), np.zeros((1, 2), np.int32), np.zeros(1, np.int32)]
    given = transfer.to_device(zeros)
    assert [(x.dtype, x.shape) for x in given] == [(x.dtype, x.shape) for x in zeros]


def test_what_is_expected_goes_along():
    later = np.asarray([7, 8], np.int32)
    with transfers() as sent:
        transfer.expect([later])
        assert not sent
        transfer.to_device(np.int32(1))
        assert (transfer.to_device(later) == later).all()
    assert len(sent) == 1


def test_more_arrays_than_are_kept_all_arrive():
    many = [np.int32(number) for number in range(2 * transfer.MOST)]
    transfer.to_device(many[: transfer.MOST])
    assert [int(x) for x in transfer.to_device(many)] == list(range(2 * transfer.MOST))
    assert len(transfer._SENT.arrays) <= transfer.MOST


def test_large_arrays_and_deleted_ones_are_sent_again():
    large = np.zeros(transfer.SMALL, np.int32)
    small = np.arange(5, dtype=np.int32)
    with transfers() as sent:
        for _ in range(2):
            transfer.to_device(large)
        transfer.to_device(small).delete()
        assert (transfer.to_device(small) == small).all()
    assert len(sent) == 4


def test_inside_a_transformation_nothing_is_kept():
    known = np.arange(4, dtype=np.int32)
    out = jax.jit(lambda x: x + transfer.to_device(known))(np.int32(1))
    assert (out == known + 1).all()
    assert isinstance(transfer.to_device(known), jax.Array) and (transfer.to_device(known) == known).all()
