"""What the tests of sessions share."""

import pytest

from tests.kamera_jax.toy import Toy


@pytest.fixture(params=("materialise", "in_place"))
def mode(request):
    return request.param


@pytest.fixture(scope="module")
def toy():
    return Toy()
