import pytest

from models import load
from tests.parity.pairs import CONFIGS, FAR, MORE


@pytest.fixture(scope="session", params=CONFIGS)
def pair(request, tmp_path_factory):
    """A random model in both libraries; one for the session, so that files share what it compiles."""
    kind, config = (CONFIGS | MORE)[request.param]
    return kind(config, tmp_path_factory.mktemp("hub"), seed=len(request.param.partition(": ")[2]))


@pytest.fixture(scope="session")
def low(pair):
    """The port of the same files in bf16."""
    return load(pair.folder, dtype="bfloat16")


@pytest.fixture(scope="session", params=FAR)
def far_pair(request, tmp_path_factory):
    """One whose angles are exact far from 0."""
    kind, config = FAR[request.param]
    return kind(config, tmp_path_factory.mktemp("hub"), seed=7)
