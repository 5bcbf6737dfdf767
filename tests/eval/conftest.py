import pytest

from models import load


@pytest.fixture(scope="session")
def tiny():
    """The embedded model, as shipped."""
    return load("kamera-tiny-gqa")
