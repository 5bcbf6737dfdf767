"""What crashes, flipped bits and crowds do to a library: nothing. `make soak` has the long forms."""

import pytest

from tests.kamera_jax.library import soak
from tests.kamera_jax.library.crashes import kills
from tests.kamera_jax.library.crowd import crowd
from tests.kamera_jax.library.flips import flips


def test_killed_writers(tmp_path):
    done = kills(tmp_path / "lib", 20)
    assert done["kills"] == sum(done["during"].values()) == 20 and done["rows_read_back"] > 100


def test_flipped_bits(tmp_path):
    found = flips(tmp_path / "lib", 60)
    assert found["data"] == {"detected": 12} and found["flips"] == 60


def test_a_crowd(tmp_path):
    done = crowd(tmp_path / "lib", processes=4, threads=4, seconds=5)
    assert done["operations"] > 16 and done["left"]["chunks"] > 0


@pytest.mark.soak
def test_long(tmp_path):
    result = soak.measure(tmp_path)
    assert result["kills"]["kills"] == soak.KILLS and result["flips"]["flips"] == soak.FLIPS
    assert result["kills"]["during"]["gc"] > 0 and result["kills"]["during"]["delete"] > 0
