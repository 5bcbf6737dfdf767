"""Chips and meshes by name."""

import jax
import pytest

from eval.ahead import chips
from eval.ahead.chips import CHIPS, ChipError, Target, parse, target


def test_the_published_peaks():
    table = {name: (chip.flops / 1e12, chip.bandwidth / 1e9, chip.memory / 1e9) for name, chip in CHIPS.items()}
    assert table == {
        "v5e": (197, 819, 16),
        "v5p": (459, 2765, 95),
        "v6e": (918, 1640, 32),
        "tpu7x": (2307, 7380, 192),
        "h200": (989, 4800, 141),
    }
    assert all(chip.source.startswith("https://") for chip in CHIPS.values())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("v5e-8", ("v5e", 8)), ("V6E-1", ("v6e", 1)), ("h200", ("h200", 1)), ("v5p", ("v5p", 1)), ("h200-1", ("h200", 1))],
)
def test_a_mesh_by_its_name(name, expected):
    assert parse(name) == expected


@pytest.mark.parametrize("name", ["", "v5e-", "v5e-3", "v9-8", "h200-8", "v5e-0", "v5e-8-2", "-8", "v5e 8", "v5e-٨"])
def test_what_is_no_mesh_is_named_with_what_there_is(name):
    with pytest.raises(ChipError, match="v5e-N for N in 1, 4, 8") as error:
        parse(name)
    assert repr(name) in str(error.value) and "h200" in str(error.value)


@pytest.mark.parametrize(
    ("name", "module", "command"),
    [
        ("v5e-1", "libtpu", "pip install libtpu"),
        ("h200", "jax_cuda13_plugin", "pip install --no-deps jax-cuda13-plugin"),
    ],
)
def test_a_missing_compiler_is_named_with_what_installs_it(monkeypatch, name, module, command):
    monkeypatch.setattr(chips, "find_spec", lambda wanted: None if wanted == module else object())
    with pytest.raises(ChipError, match="not installed") as error:
        target(name)
    assert command in str(error.value)


def test_the_roofline_is_the_slower_of_the_two():
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("model",))
    of = Target("v5e-1", CHIPS["v5e"], mesh, 1.0)
    assert of.seconds(197e12, 0.0) == pytest.approx(1.0) and of.seconds(1.0, 819e9) == pytest.approx(1.0)
    half = Target("half", CHIPS["v5e"], mesh, 0.5)
    assert half.seconds(197e12, 0.0) == pytest.approx(2.0) and half.memory == 8e9
