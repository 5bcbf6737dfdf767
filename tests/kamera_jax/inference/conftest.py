"""Chunks of two videos, with all their rows and with rows that equal media tokens share."""

import pytest

import kamera_jax as kj
from tests.kamera_jax.inference.repeats import clip


@pytest.fixture(scope="session")
def clips(random_vlm):
    return [kj.encode(random_vlm, clip(seed)) for seed in range(2)]


@pytest.fixture(scope="session")
def shared(random_vlm, clips):
    return [kj.share_rows(random_vlm, chunk, 1.0) for chunk in clips]
