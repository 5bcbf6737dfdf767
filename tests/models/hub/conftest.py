"""The ports' tokenizers and chat templates, for the tests of what users write."""

import pytest

from models.hub.chat import ChatTemplate
from tests.models.hub.tokenizers_of_ports import IMAGES, tokenizer_of


@pytest.fixture(scope="module", params=IMAGES)
def port(request, tmp_path_factory):
    return request.param, tokenizer_of(request.param, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def chat(port):
    return ChatTemplate(port[1], [port[1].eos_token_id])
