"""Spans of text and media composed into one segment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.media import spans
from models.media.spans import Features, Span, compose, local_positions

WIDTH = 5


def block(count, value, *, padded=8, deep=None, positions=None, advance=None):
    """A media block whose features are ``value``, with zero rows as towers pad them."""
    rows = np.zeros((padded, WIDTH), np.float32)
    rows[:count] = value + np.arange(count)[:, None]
    levels = None
    if deep is not None:
        levels = np.zeros((padded, deep, WIDTH), np.float32)
        levels[:count] = 10 * value + np.arange(deep)[None, :, None]
        levels = jnp.asarray(levels)
    return Span([7] * count, Features(jnp.asarray(rows), levels), positions, advance)


def test_text_alone_has_no_media_inputs():
    segment = compose([Span([3, 4, 5])], 1, "c")
    assert segment.inputs.keys() == {"tokens"} and segment.content == "c"
    np.testing.assert_array_equal(segment.inputs["tokens"], [3, 4, 5, *[0] * 13])
    np.testing.assert_array_equal(segment.positions, [np.arange(16)])
    assert int(segment.length) == 3 and segment.advance == 3.0


def test_features_stand_in_the_rows_of_their_tokens():
    segment = compose([Span([1, 2]), block(3, 100), Span([4]), block(2, 200), block(4, 300)], 1, "c")
    expected = np.zeros((16, WIDTH))
    expected[2:5] = 100 + np.arange(3)[:, None]
    expected[6:8] = 200 + np.arange(2)[:, None]
    expected[8:12] = 300 + np.arange(4)[:, None]
    np.testing.assert_array_equal(segment.inputs["media"], expected)
    np.testing.assert_array_equal(segment.inputs["is_media"], expected[:, 0] > 0)
    np.testing.assert_array_equal(segment.inputs["tokens"][:12], [1, 2, 7, 7, 7, 4, 7, 7, 7, 7, 7, 7])
    assert int(segment.length) == 12 and segment.advance == 12.0 and "deep" not in segment.inputs


def test_deep_features_stand_beside_those_that_are_embedded():
    """Of a block without them the rows are zero, so that nothing is added there."""
    segment = compose([block(2, 100, deep=3), Span([4]), block(2, 200)], 1, "c")
    deep = np.zeros((16, 3, WIDTH))
    deep[:2] = 1000 + np.arange(3)[None, :, None]
    np.testing.assert_array_equal(segment.inputs["deep"], deep)
    assert segment.inputs["media"].shape == (16, WIDTH)


def test_positions_count_on_from_where_a_block_advances_to():
    grid = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]], np.float32)
    given = [
        Span([1, 2]),
        block(4, 1, positions=grid, advance=2.0),
        Span([3]),
        block(4, 2, positions=grid, advance=2.5),
    ]
    positions, advance = local_positions([*given, Span([9, 9])], 3)
    expected = np.concatenate([[[0, 1]] * 3, 2 + grid, [[4]] * 3, 5 + grid, [[7.5, 8.5]] * 3], axis=1, dtype=np.float32)
    np.testing.assert_array_equal(positions, expected)
    assert positions.dtype == np.float32 and advance == 9.5
    segment = compose(given, 3, "c")
    np.testing.assert_array_equal(segment.positions[:, :11], expected[:, :11])
    assert segment.advance == 7.5 and int(segment.length) == 11


@pytest.mark.parametrize("deep", [None, 2])
def test_blocks_of_one_bucket_share_a_program(monkeypatch, deep):
    traced = []
    place = spans._place.__wrapped__

    def counted(*arguments):
        traced.append(arguments)
        return place(*arguments)

    monkeypatch.setattr(spans, "_place", jax.jit(counted))
    for counts in ([1], [3, 2], [8], [2, 2, 2, 5]):
        compose([Span([1]), *(block(count, 9, deep=deep) for count in counts)], 1, "c")
    assert len(traced) == (1 if deep is None else 2)
    compose([block(8, 9, deep=deep)] * 3, 1, "c")  # a bucket of 32
    assert len(traced) == (2 if deep is None else 4)


def test_a_block_of_half_precision_stays_so():
    rows = jnp.ones((4, WIDTH), jnp.bfloat16)
    assert compose([Span([7] * 4, Features(rows))], 1, "c").inputs["media"].dtype == jnp.bfloat16
