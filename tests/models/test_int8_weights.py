"""Weights in int8: the model of the dequantised weights, in half the memory, near the model that it is made of."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import ModelMismatchError
from kamera_jax.forward import run
from models import load
from models.blocks.int8 import Int8Weight, floats
from models.blocks.sharding import MeshError
from tests.models.wide_ports import write

TEXTS = ("the star is on the first page", "what is on the second page is blue")
IMAGE = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)


def dequantised(vlm):
    return jax.tree.map(floats, vlm.params, is_leaf=lambda leaf: isinstance(leaf, Int8Weight))


def nbytes(params):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def logits(vlm, item):
    segment = vlm.prepare(item)
    out = run(vlm.params, segment, None, np.arange(int(segment.length)), forward=vlm.forward)
    return np.asarray(out.logits, np.float64), out.kv


def kl(wanted, given):
    wanted = wanted - np.logaddexp.reduce(wanted, axis=-1, keepdims=True)
    given = given - np.logaddexp.reduce(given, axis=-1, keepdims=True)
    return float((np.exp(wanted) * (wanted - given)).sum(-1).mean())


def close(given, wanted, bound=1e-5):
    given = np.asarray(given, np.float64)
    wanted = np.asarray(wanted, np.float64)
    assert np.linalg.norm(given - wanted) <= bound * np.linalg.norm(wanted)


@pytest.fixture(scope="module", params=["gqa", "mla", "mha"])
def pair(request):
    name = f"kamera-tiny-{request.param}"
    return load(name), load(name, weights="int8")


def test_it_computes_what_the_dequantised_weights_do(pair):
    _, small = pair
    whole = small.with_params(dequantised(small), revision="dequantised")
    for item in (TEXTS[0], IMAGE):
        given, kv = logits(small, item)
        wanted, expected = logits(whole, item)
        close(given, wanted)
        close(kv.rot, expected.rot)
        close(kv.free, expected.free)


def test_it_is_near_the_model_that_it_is_made_of(pair):
    """A relative error of the logits of at most 3 %, and of 0.02 nats in the mean over tokens."""
    whole, small = pair
    for item in (*TEXTS, IMAGE):
        given, _ = logits(small, item)
        wanted, _ = logits(whole, item)
        close(given, wanted, 0.03)
        assert 0 < kl(wanted, given) < 0.02


def test_every_matrix_of_the_language_model_takes_half_of_bfloat16(pair):
    whole, small = pair
    text = whole.params["text"]
    own = small.params["text"]
    assert nbytes(own) <= 0.55 * nbytes(text) / 2  # of float32
    matrices = [leaf for leaf in jax.tree.leaves(own, is_leaf=lambda x: isinstance(x, Int8Weight))]
    kept = [leaf for leaf in matrices if not isinstance(leaf, Int8Weight)]
    assert sum(leaf.size for leaf in kept) < 0.02 * sum(leaf.size for leaf in jax.tree.leaves(text))
    assert isinstance(own["embed"]["w"], Int8Weight) and own["embed"]["w"].scale.shape == (len(text["embed"]["w"]), 1)
    query = own["layers"]["attn"]["q"]["w"]
    assert query.codes.dtype == jnp.int8 and query.scale.shape == (query.shape[0], 1, query.shape[2])
    for name in small.params:
        if name != "text":
            jax.tree.map(np.testing.assert_array_equal, small.params[name], whole.params[name])


def test_its_chunks_have_keys_of_their_own(pair):
    whole, small = pair
    assert small.fingerprint != whole.fingerprint and small.spec.dtype == whole.spec.dtype
    chunk = kj.encode(whole, TEXTS[0])
    assert kj.encode(small, TEXTS[0]).key != chunk.key
    with pytest.raises(ModelMismatchError, match="weights"):
        kj.append(kj.Window.empty(small, 256), chunk)
    again = load(whole.name, weights="int8")
    assert again.fingerprint == small.fingerprint


@pytest.mark.parametrize(("kind", "mode"), [("gqa", "materialise"), ("mla", "in_place")])
def test_windows_are_reused_and_answer(kind, mode):
    small = load(f"kamera-tiny-{kind}", weights="int8")
    a, b = (kj.encode(small, text) for text in TEXTS)
    patch = kj.form_patch(small, b, antecedents=[a])
    window = kj.append(kj.append(kj.Window.empty(small, 256, mode=mode), a), b, patch)
    full = kj.prefill(small, TEXTS)
    answer = kj.generate(small, window, "what is blue?", max_new_tokens=2)
    assert answer.window.entries[-1].chunk.turn
    blind = kj.append(kj.append(kj.Window.empty(small, 256, mode=mode), a), b)
    asked = [np.asarray(kj.query(small, each, "what?"), np.float64) for each in (full, window, blind)]
    assert kl(asked[0], asked[1]) <= kl(asked[0], asked[2]) + 1e-6


def test_it_is_moved_cut_and_pickled_as_any_model(pair):
    _, small = pair
    wanted, _ = logits(small, TEXTS[0])
    close(logits(pickle.loads(pickle.dumps(small)), TEXTS[0])[0], wanted, 1e-7)
    close(logits(small.to(jax.devices()[0]), TEXTS[0])[0], wanted, 1e-7)
    assert logits(small.leading(2), TEXTS[0])[1].rot.shape[0] == 2
    assert "int8" in repr(small)


def test_experts_of_a_softmax_and_a_head_of_its_own(tmp_path):
    folder = write(tmp_path / "model", "qwen3_vl_moe")
    small = load(folder, weights="int8")
    assert isinstance(small.params["text"]["head"]["w"], Int8Weight)
    assert isinstance(small.params["text"]["moe_layers"]["mlp"]["experts"]["gate"], Int8Weight)
    assert not isinstance(small.params["text"]["moe_layers"]["mlp"]["router"]["w"], Int8Weight)
    whole = small.with_params(dequantised(small), revision="dequantised")
    close(logits(small, IMAGE)[0], logits(whole, IMAGE)[0])


def test_in_bfloat16_the_products_are_those_of_the_codes():
    """Codes are exact in bfloat16: an error is that of bfloat16 activations, not of the weights."""
    small = load("kamera-tiny-gqa", weights="int8", dtype="bfloat16")
    assert small.spec.dtype == "bfloat16"
    exact = small.with_params(jax.tree.map(lambda x: x.astype(jnp.float32), dequantised(small)), revision="f32")
    close(logits(small, TEXTS[0])[0], logits(exact, TEXTS[0])[0], 0.03)


@pytest.mark.parametrize("wrong", ["int4", "INT8", "", "float16"])
def test_another_name_is_refused(wrong):
    with pytest.raises(ValueError, match="weights is .*; expected one of"):
        load("kamera-tiny-gqa", weights=wrong)


def test_a_mesh_is_refused():
    with pytest.raises(MeshError, match="int8 is for one device"):
        load("kamera-tiny-gqa", weights="int8", mesh=jax.make_mesh((1,), ("model",)))


SAID = (
    "The lighthouse keeper wrote in his diary every evening. On clear nights he counted the ships that passed, and "
    "when a storm came he stayed awake until the morning to keep the lamp burning."
)


@pytest.mark.soak
def test_on_a_language_model():
    """SmolLM2-135M: at most 0.02 nats from its own weights in the mean over the tokens of a text."""
    whole = load("smollm2-135m")
    small = load("smollm2-135m", weights="int8")
    wanted, _ = logits(whole, SAID)
    given, _ = logits(small, SAID)
    nats = kl(wanted, given)
    agreed = float((wanted.argmax(-1) == given.argmax(-1)).mean())
    print(f"{nats:.5f} nats, {agreed:.3f} of the next tokens the same, {nbytes(small.params) / 1e6:.0f} MB")
    assert nats < 0.02
    assert nbytes(small.params) < 0.52 * nbytes(whole.params) / 2
