"""RoPE as checkpoints declare it: what is read, and what is refused by name."""

import math

import numpy as np
import pytest

from kamera_jax import rope
from kamera_jax.rope import UnsupportedRopeError, position_limit, spec_from_config


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


def test_longrope_has_its_short_factors_and_its_scale():
    longrope = {"rope_type": "longrope", "short_factor": [2.0] * 8, "long_factor": [9.0] * 8}
    spec = read({**longrope, "original_max_position_embeddings": 4096})
    np.testing.assert_allclose(spec.inv_freq, rope.inverse_frequencies(16, 1e4) / 2)
    assert spec.scale == 1.0
    phi = {**longrope, "type": "su", "rope_type": None, "original_max_position_embeddings": 4096}
    extended = read(phi, max_positions=131072)
    assert extended.inv_freq == spec.inv_freq
    assert extended.scale == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)), rel=1e-12)
    assert read({**phi, "factor": 8}, max_positions=131072).scale == pytest.approx(1.118033988749895, rel=1e-12)
    assert read({**phi, "attention_factor": 1.5}, max_positions=131072).scale == 1.5


def test_dynamic_is_plain_up_to_its_length():
    assert read({"rope_type": "dynamic", "factor": 2.0}) == read({})


def test_llama3_blends_between_its_two_limits():
    """Restated from what it is for: how often a pair turns in the original length says how far it is stretched."""
    given = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "rope_theta": 5e5}
    spec = read({**given, "original_max_position_embeddings": 8192}, head_dim=128)
    plain = [5e5 ** (-i / 64) for i in range(64)]
    turns = [8192 * frequency / (2 * math.pi) for frequency in plain]
    kept = [min(max((each - 1) / 3, 0), 1) for each in turns]
    expected = [f / 8 + (f - f / 8) * share for f, share in zip(plain, kept, strict=True)]
    np.testing.assert_allclose(spec.inv_freq, expected, rtol=1e-5)
    assert any(0 < share < 1 for share in kept) and spec.scale == 1.0


@pytest.mark.parametrize(
    "parameters, limit",
    [
        ({}, 4096),
        ({"rope_type": "dynamic", "factor": 2.0}, 4096),
        ({"rope_type": "linear", "factor": 2.0}, 4096),
        ({"type": "mrope", "mrope_section": [2, 3, 3]}, 4096),
        ({"rope_type": "yarn", "factor": 4.0}, 16384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}, 163840),
        ({"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 512}, 4096),
        ({"rope_type": "longrope", "original_max_position_embeddings": 1024}, 1024),
        ({"type": "su", "original_max_position_embeddings": 1024}, 1024),
        ({"rope_type": "longrope", "original_max_position_embeddings": 8192}, 4096),
        ({"rope_type": "longrope"}, 4096),
    ],
)
def test_the_length_it_holds_to(parameters, limit):
    assert position_limit(parameters, 4096) == limit


NAN = float("nan")
HUGE = 10**400
NO_NUMBERS = [NAN, float("inf"), -float("inf"), -1.0, True, "2", [2.0], HUGE, 1e-320, 1e39]
YARN = {"rope_type": "yarn", "factor": 4.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, 0.0])
@pytest.mark.parametrize(
    "parameters, name",
    [
        ({}, "rope_theta"),
        ({}, "partial_rotary_factor"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "dynamic"}, "factor"),
        ({"rope_type": "yarn"}, "factor"),
        (YARN, "attention_factor"),
        (YARN, "original_max_position_embeddings"),
        (LONG, "factor"),
        (LONG, "attention_factor"),
        (LONG, "original_max_position_embeddings"),
        (LLAMA3, "factor"),
        (LLAMA3, "low_freq_factor"),
        (LLAMA3, "high_freq_factor"),
        (LLAMA3, "original_max_position_embeddings"),
    ],
)
def test_what_is_no_number_above_zero_is_refused_by_name(parameters, name, value):
    with pytest.raises(UnsupportedRopeError, match=f"{name} is "):
        read({**parameters, name: value})


@pytest.mark.parametrize("name", ["beta_fast", "beta_slow", "mscale", "mscale_all_dim"])
def test_of_yarn_s_own_numbers_zero_is_absent(name):
    for value in NO_NUMBERS:
        with pytest.raises(UnsupportedRopeError, match=f"{name} is "):
            read({**YARN, name: value})
    other = {"mscale": {"mscale_all_dim": 1.0}, "mscale_all_dim": {"mscale": 0.7}}.get(name, {})
    for value in (0, 0.0):
        assert read({**YARN, **other, name: value}) == read({**YARN, **other})


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({**LONG, "short_factor": [1.0] * 7}, "short_factor is .*expected 8"),
        ({**LONG, "short_factor": [1.0] * 7 + [0.0]}, "short_factor"),
        ({**LONG, "short_factor": [1.0] * 7 + [NAN]}, "short_factor"),
        ({**LONG, "short_factor": [1.0] * 7 + [True]}, "short_factor"),
        ({**LONG, "short_factor": "1"}, "short_factor"),
        ({**LONG, "long_factor": [1.0] * 7}, "long_factor"),
        ({**YARN, "truncate": 1}, "truncate is 1"),
        ({**YARN, "original_max_position_embeddings": 64.5}, "whole number"),
        ({**YARN, "rope_theta": 1}, "rope_theta is 1"),
        ({"rope_theta": 1e38}, None),
        ({"rope_type": "linear", "factor": 1e38, "rope_theta": 1e38}, "beyond what f32 holds"),
        ({"rope_type": 5}, "unknown rope_type 5"),
        ({"rope_type": ["yarn"]}, "unknown rope_type"),
        ({"mrope_section": [2, 3, 3.0]}, "mrope_section"),
        ({"mrope_section": [2, 3, True]}, "mrope_section"),
        ({"mrope_section": [-2, 5, 5]}, "mrope_section"),
        ({"mrope_section": []}, "mrope_section"),
        ({"mrope_interleaved": "no"}, "mrope_interleaved"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5; expected at most 1"),
        ({"partial_rotary_factor": 0.01}, "a pair at least"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "expected more than low_freq_factor"),
    ],
)
def test_other_things_that_cannot_be_are_refused(parameters, message):
    if message is None:
        assert read(parameters).inv_freq[-1] > 0
        return
    with pytest.raises(UnsupportedRopeError, match=message):
        read(parameters)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"rope_type": "dynamic"}, "'dynamic' needs 'factor'"),
        ({"rope_type": "proportional"}, "unknown rope_type 'proportional'"),
        ({"rope_type": "llama3", "factor": 8.0}, "'llama3' needs 'low_freq_factor'"),
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
