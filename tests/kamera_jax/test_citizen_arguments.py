"""Wrong arguments are refused by name, and what is known on the host is asked of no device."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from models import load
from tests.kamera_jax.toy import Toy


def test_wrong_calls_are_refused():
    command = [sys.executable, "-m", "tests.kamera_jax.bad_arguments"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": "."}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_lengths_are_known_on_the_host():
    vlm = load("kamera-tiny-gqa")
    image = np.zeros((56, 56, 3), np.uint8)
    with jax.transfer_guard_device_to_host("disallow"):
        segments = [vlm.prepare("the sky"), vlm.prepare(image), vlm.tail("what"), vlm.preamble]
        segments.append(kj.encode(vlm, "the sky").source)
    assert not any(isinstance(segment.length, jax.Array) for segment in segments)


@pytest.mark.parametrize("make", [Toy, lambda: load("kamera-tiny-gqa")], ids=["toy", "gqa"])
def test_shapes_without_running(make):
    vlm = make()

    def encoded():
        a, b = (kj.encode(vlm, text) for text in ("the sky", "a star"))
        full = kj.prefill(vlm, [a, b])
        return b, kj.form_patch(vlm, b, antecedents=[a], rank=4), full

    shapes = jax.eval_shape(encoded)
    real = encoded()
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(shapes)] == [
        (jnp.shape(x), np.asarray(x).dtype) for x in jax.tree.leaves(real)
    ]
