"""Items are encoded once for as long as their chunks are kept, and come out the same whenever they are."""

import numpy as np
import pytest

import kamera_jax as kj
from eval.run import encoder
from eval.run.encoder import Encoder
from kamera_jax.inference.encode import encode_segment
from tests.kamera_jax.toy import Toy


@pytest.fixture
def runs(monkeypatch):
    """Contents of what was run, in order."""
    ran = []

    def encoded(vlm, segment):
        ran.append(segment.content)
        return encode_segment(vlm, segment)

    monkeypatch.setattr(encoder, "encode_segment", encoded)
    return ran


def test_an_item_is_encoded_once_for_all_groups(runs):
    vlm = Toy()
    encode = Encoder(vlm)
    first = encode(["a red star", "a blue cell", "a red star"])
    assert first[0] is first[2] and len(runs) == 2
    again = encode(["a blue cell", "one more"])
    assert again[0] is first[1] and len(runs) == 3
    for part in ("rot", "free"):
        wanted = getattr(kj.encode(vlm, "a blue cell").kv, part)
        assert (np.asarray(getattr(again[0].kv, part)) == np.asarray(wanted)).all()


def test_what_was_shown_longest_ago_makes_room(runs):
    texts = ["a red star", "a blue cell", "an old moon", "a new page"]
    vlm = Toy()
    (chunk,) = Encoder(vlm)(texts[:1])
    runs.clear()
    encode = Encoder(vlm, most=2 * encoder.nbytes(chunk))
    kept = encode(texts)  # one call's are kept until the next one
    again = encode(texts[2:])
    assert all(a is b for a, b in zip(again, kept[2:], strict=True)) and len(runs) == 4
    (anew,) = encode(texts[:1])
    assert anew is not kept[0] and len(runs) == 5
    assert (np.asarray(anew.kv.rot) == np.asarray(kept[0].kv.rot)).all()
