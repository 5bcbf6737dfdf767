"""Patches that serve their antecedents in any order."""

from itertools import permutations

import jax
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.chunk import Match
from kamera_jax.inference.orders import mean_of, orders_of


def change(chunk, patch):
    """What a patch adds to the KV, in float64."""
    added = kj.patch.apply(chunk.kv, patch.factors)
    return np.asarray(added.features, np.float64) - np.asarray(chunk.kv.features, np.float64)


def test_orders():
    assert orders_of("a") == [("a",)] and orders_of("") == [()]
    for letters in ("ab", "abc"):
        assert sorted(orders_of(letters)) == sorted(permutations(letters))
    four = orders_of("abcd")
    assert four[0] == tuple("abcd") and len(four) == len(set(four)) == 8
    assert {order.index("a") for order in four} == {0, 1, 2, 3}


def test_the_change_is_the_mean_over_all_orders(random_vlm, chunks):
    first, second, third = chunks
    rank = third.length
    both = kj.form_patch(random_vlm, third, antecedents=[first, second], rank=rank, any_order=True)
    apart = [
        kj.form_patch(random_vlm, third, antecedents=order, rank=rank) for order in ([first, second], [second, first])
    ]
    wanted = np.mean([change(third, each) for each in apart], axis=0)
    found = change(third, both)
    scale = np.abs(wanted).max()
    assert np.abs(found - wanted).max() <= 1e-5 * scale
    assert np.abs(found - change(third, apart[0])).max() > 1e-2 * scale
    np.testing.assert_array_equal(both.mass, apart[0].mass)


def test_it_is_a_patch_of_its_own(random_vlm, chunks):
    """Not the one of the order given, nor as formed in any: no lineage, and so the guard asks before it is used."""
    first, second, third = chunks
    both, again, other, plain = (
        kj.form_patch(random_vlm, third, antecedents=behind, rank=2, any_order=any_order)
        for behind, any_order in (
            ([first, second], True),
            ([first, second], True),
            ([second, first], True),
            ([first, second], False),
        )
    )
    assert both.key == again.key and len({both.key, other.key, plain.key}) == 3 and both.key
    assert both.lineage == "" != plain.lineage
    assert both.match((first.key, second.key)) is Match.EXACT and both.match((second.key, first.key)) is Match.PERMUTED


def test_behind_one_chunk_it_is_the_same_patch(random_vlm, chunks):
    first, _, third = chunks
    either, plain = (
        kj.form_patch(random_vlm, third, antecedents=[first], rank=2, any_order=value) for value in (True, False)
    )
    assert either.key == plain.key and either.lineage == plain.lineage
    jax.tree.map(np.testing.assert_array_equal, either, plain)


def test_a_window_stands_in_one_order(random_vlm, chunks):
    with pytest.raises(ValueError, match="any_order=True puts antecedents= in several orders"):
        kj.form_patch(random_vlm, chunks[2], context=kj.prefill(random_vlm, chunks[:2]), any_order=True)


def test_a_mean_keeps_the_dtype(chunks):
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), chunks[0].kv)
    mean = mean_of([half, jax.tree.map(lambda leaf: 3 * leaf, half)])
    assert mean.rot.dtype == "bfloat16" and mean_of([half]) is half
    np.testing.assert_array_equal(mean.free, 2 * half.free)
