import pytest

from models import load
from tests.parity.oracle import CONFIGS, FAR, Pair


@pytest.fixture(scope="session", params=CONFIGS)
def pair(request, tmp_path_factory):
    """A random model in both libraries; one for the session, so that files share what it compiles."""
    return Pair(CONFIGS[request.param], tmp_path_factory.mktemp("hub"), seed=len(request.param))


@pytest.fixture(scope="session")
def low(pair):
    """The port of the same files in bf16."""
    return load(pair.folder, dtype="bfloat16")


@pytest.fixture(scope="session")
def far_pair(tmp_path_factory):
    """One whose angles are exact far from 0."""
    return Pair(FAR, tmp_path_factory.mktemp("hub"), seed=7)
