"""RoPE as checkpoints declare it: what is read, and what is refused by name."""

import math

import numpy as np
import pytest

from kamera_jax import rope
from kamera_jax.rope import UnsupportedRopeError, spec_from_config


def read(parameters, *, head_dim=16, max_positions=4096, **fields):
    return spec_from_config(parameters, head_dim=head_dim, max_positions=max_positions, **fields)


def test_plain():
    spec = read({"rope_theta": 1e6})
    assert (spec.axes, spec.rotary_dim, spec.layout, spec.scale) == (1, 16, "half", 1.0)
    assert spec.inv_freq == tuple(rope.inverse_frequencies(16, 1e6).tolist())
    assert read({}) == read({"type": "default", "rope_type": "default", "rope_theta": 10000.0, "factor": None})


@pytest.mark.parametrize("name", ["type", "rope_type"])
def test_mrope(name):
    spec = read({name: "mrope", "mrope_section": [2, 3, 3]})
    assert (spec.sections, spec.axes, spec.section_layout) == ((2, 3, 3), 3, "contiguous")
    interleaved = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    assert read(interleaved, section_layout="interleaved").section_layout == "interleaved"
    with pytest.raises(UnsupportedRopeError, match="mrope_interleaved"):
        read(interleaved)


def test_partial():
    spec = read({"partial_rotary_factor": 0.5}, layout="interleaved")
    assert (spec.rotary_dim, spec.head_dim, spec.layout) == (8, 16, "interleaved")
    assert spec.inv_freq == tuple(rope.inverse_frequencies(8, 1e4).tolist())


def test_linear_stretches_every_frequency():
    np.testing.assert_allclose(
        read({"rope_type": "linear", "factor": 4.0}).inv_freq, [1e4 ** (-i / 8) / 4 for i in range(8)], rtol=2e-6
    )


@pytest.mark.parametrize(
    "fields, scale",
    [
        ({}, 0.1 * math.log(40) + 1),
        ({"attention_factor": 1.25}, 1.25),
        ({"attention_factor": 1.25, "mscale": 1.0, "mscale_all_dim": 1.0}, 1.25),
        ({"mscale": 1, "mscale_all_dim": 1}, 1.0),
        ({"mscale": 0.707, "mscale_all_dim": 0.5}, (0.0707 * math.log(40) + 1) / (0.05 * math.log(40) + 1)),
        ({"mscale": 0.707}, 0.1 * math.log(40) + 1),
    ],
)
def test_yarn_scale(fields, scale):
    yarn = {"rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
    assert read({**yarn, **fields}).scale == pytest.approx(scale, rel=1e-12)


def test_yarn_fields_reach_the_frequencies():
    spec = read({"rope_type": "yarn", "factor": 4, "beta_fast": 16, "beta_slow": 2, "truncate": False}, head_dim=64)
    expected = rope.yarn_frequencies(
        64, 1e4, factor=4.0, original_length=4096, beta_fast=16.0, beta_slow=2.0, truncate=False
    )
    assert spec.inv_freq == tuple(expected.tolist())
    assert read({"rope_type": "yarn", "factor": 1}).scale == 1.0


def test_longrope_within_its_original_length():
    longrope = {"rope_type": "longrope", "short_factor": [2.0] * 8, "long_factor": [9.0] * 8}
    spec = read({**longrope, "original_max_position_embeddings": 4096})
    np.testing.assert_allclose(spec.inv_freq, rope.inverse_frequencies(16, 1e4) / 2)
    assert spec.scale == 1.0


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "dynamic NTK"),
        (
            {"rope_type": "longrope", "short_factor": [1.0] * 8, "original_max_position_embeddings": 2048},
            "LongRoPE past its original length.*4096 > 2048",
        ),
        ({"rope_type": "proportional"}, "unknown rope_type 'proportional'"),
        ({"rope_type": "llama3", "factor": 8.0}, "unknown rope_type 'llama3'"),
        ({"rope_type": "default", "twist": 3}, "unknown fields.*twist"),
        ({"rope_type": "default", "attention_factor": 2.0}, "unknown fields.*attention_factor"),
        ({"rope_type": "yarn", "factor": 2.0, "twist": 3}, "unknown fields.*twist"),
        ({"rope_type": "yarn"}, "'yarn' needs 'factor'"),
        ({"rope_type": "yarn", "factor": None}, "'yarn' needs 'factor'"),
        ({"rope_type": "linear"}, "'linear' needs 'factor'"),
        ({"rope_type": "longrope"}, "'longrope' needs 'short_factor'"),
    ],
)
def test_refusals_are_named(parameters, message):
    with pytest.raises(UnsupportedRopeError, match=message):
        read(parameters)


def test_sections_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="sum to 24; expected 8"):
        read({"mrope_section": [8, 8, 8]})
