"""Wrong arguments are refused by name, and what is known on the host is asked of no device."""

import os
import subprocess
import sys
from copy import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax import transfer
from models import load
from tests.kamera_jax.toy import Toy
from tests.xla_flags import FLAGS


def test_wrong_calls_are_refused():
    command = [sys.executable, "-m", "tests.kamera_jax.bad_arguments"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": ".", "XLA_FLAGS": FLAGS}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def reads(monkeypatch):
    """What is read back from the device: on a CPU no transfer guard sees it."""
    seen = []
    kind = type(jnp.zeros(()))
    value = kind._value

    def counted(array):
        seen.append(array.shape)
        return value.fget(array)

    monkeypatch.setattr(kind, "_value", property(counted))
    return seen


@pytest.mark.parametrize("make", [Toy, lambda: load("kamera-tiny-gqa")], ids=["toy", "gqa"])
def test_nothing_is_read_back(make, reads):
    vlm = make()
    a = kj.encode(vlm, "the sky")
    w = kj.append(kj.Window.empty(vlm, 128), a)
    kj.query(vlm, w, "what")
    int(jnp.int32(3))
    assert len(reads) >= 1  # it counts
    reads.clear()
    b = kj.encode(vlm, "a star")
    kj.query(vlm, kj.append(w, b), "what")
    kj.form_patch(vlm, b, context=w, rank=4)
    kj.prefill(vlm, [b, "the sky"], capacity=128)
    assert not reads


def test_lengths_are_known_on_the_host():
    vlm = load("kamera-tiny-gqa")
    image = np.zeros((56, 56, 3), np.uint8)
    with jax.transfer_guard_device_to_host("disallow"):
        segments = [vlm.prepare("the sky"), vlm.prepare(image), vlm.tail("what"), vlm.preamble]
        segments.append(kj.encode(vlm, "the sky").source)
    assert not any(isinstance(segment.length, jax.Array) for segment in segments)


@pytest.mark.parametrize("make", [Toy, lambda: load("kamera-tiny-gqa")], ids=["toy", "gqa"])
@pytest.mark.parametrize("traced", [False, True], ids=["closed over", "parameters"])
def test_shapes_without_running(make, traced):
    """Of functions of nothing, and of the parameters."""
    vlm = make()
    items = ["the sky", "a star"]
    if hasattr(vlm, "preprocess"):
        items = ["the sky", np.zeros((56, 56, 3), np.uint8)]

    def encoded(*params):
        model = vlm
        if params and isinstance(vlm, Toy):
            model = copy(vlm)
            (model.params,) = params
        elif params:
            model = vlm.with_params(*params, revision="traced")
        a, b = (kj.encode(model, item) for item in items)
        full = kj.prefill(model, [a, b])
        asked = kj.query(model, full, "what")
        return b, kj.form_patch(model, b, antecedents=[a], rank=4), full, asked

    given = (vlm.params,) if traced else ()
    transfer._SENT.arrays.clear()  # whatever was sent before
    shapes = jax.eval_shape(encoded, *given)
    real = encoded()
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(shapes)] == [
        (jnp.shape(x), np.asarray(x).dtype) for x in jax.tree.leaves(real)
    ]
