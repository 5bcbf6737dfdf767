"""What every port shares: reading a folder, and what a forward collects."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

import kamera_jax as kj
from eval.tiny.backbones import BACKBONES
from kamera_jax.forward import run
from models import load
from models.hub.fields import MissingConfigFieldError, MissingConfigFileError
from tests.models import tiny_ports


@pytest.fixture(scope="module", params=BACKBONES)
def folder(request, tmp_path_factory):
    """A tiny model of each attention with random weights."""
    return tiny_ports.write(tmp_path_factory.mktemp("hub") / BACKBONES[request.param].name, request.param)


@pytest.fixture
def vlm(folder):
    return load(folder)


def test_image_settings_may_stand_in_the_processors_file(folder, vlm, tmp_path):
    """transformers 5 writes them there."""
    for path in folder.iterdir():
        if path.name != "preprocessor_config.json":
            (tmp_path / path.name).symlink_to(path)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    with pytest.raises(MissingConfigFileError, match="preprocessor_config.json"):
        load(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "AnyProcessor"}))
    with pytest.raises(MissingConfigFieldError, match="processor_config.json has no 'image_processor'"):
        load(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert load(tmp_path).fingerprint == vlm.fingerprint


def test_what_images_become_is_in_their_key_and_no_fingerprint(vlm, monkeypatch):
    """A library written with other preprocessing does not answer for this one; texts and calibrations stay."""
    image = np.random.default_rng(1).integers(0, 256, (56, 28, 3), np.uint8)
    now = kj.encode(vlm, image)
    text = kj.encode(vlm, "a red star.")
    monkeypatch.setattr("models.media.still.VERSION", 1)
    assert kj.encode(vlm, image).key != now.key and kj.encode(vlm, "a red star.").key == text.key


def test_what_the_template_writes_around_an_image_is_in_its_key(vlm, monkeypatch):
    image = np.random.default_rng(1).integers(0, 256, (56, 28, 3), np.uint8)
    now = kj.encode(vlm, image)
    kind = type(vlm._chat)
    written = kind.content

    def numbered(self, parts, placeholders):
        ids = written(self, parts, placeholders)
        return [ids[0], *ids]

    monkeypatch.setattr(kind, "content", numbered)
    other = kj.encode(vlm, image)
    assert other.length == now.length + 1 and other.key != now.key


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_keyed_by_what_they_show(vlm, tmp_path, orientation):
    """The same picture, stored upright or turned, in a file or in memory, is one chunk."""
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (28, 56, 3), np.uint8))
    exif = Image.Exif()
    exif[274] = orientation
    image.save(tmp_path / "stored.png", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "stored.png"))
    image.getexif()[274] = orientation
    contents = {vlm.prepare(item).content for item in (tmp_path / "stored.png", image, upright, np.asarray(upright))}
    assert len(contents) == 1


def test_a_forward_collects_what_is_asked_for(vlm):
    segment = vlm.prepare("a red star. a blue moon.")
    asked = ("attention_mass", "experts", "router_margin") if vlm.config.text.experts else ("attention_mass",)
    aux = run(vlm.params, segment, None, forward=vlm.forward, collect=asked).aux
    length = int(segment.length)
    layers = vlm.spec.layers
    assert aux.keys() == set(asked)
    np.testing.assert_allclose(aux["attention_mass"].sum(-1), np.ones(layers), rtol=1e-5)
    if vlm.config.text.experts:
        experts = np.asarray(aux["experts"])
        margin = np.asarray(aux["router_margin"])
        assert experts.shape == (2, len(segment.valid), 2) and margin.shape == experts.shape[:2]
        assert (experts[:, :length] >= 0).all() and (experts[:, length:] == -1).all()
        assert (margin[:, :length] > 0).all() and np.isfinite(margin[:, :length]).all()
        assert np.isinf(margin[:, length:]).all()


def test_a_forward_refuses_to_collect_what_it_cannot(vlm):
    unknown = ("experts",) if vlm.config.text.experts is None else ("colours",)
    with pytest.raises(ValueError, match=f"this model collects .*; got \\['{unknown[0]}'\\]"):
        run(vlm.params, vlm.prepare("a red star."), None, forward=vlm.forward, collect=unknown)


def test_the_leading_layers_compute_what_the_whole_model_does_there(vlm):
    segment = vlm.prepare("a red star. a blue moon.")
    whole = run(vlm.params, segment, None, forward=vlm.forward).kv
    for layers in (1, 3, 4, vlm.spec.layers):
        cut = vlm.leading(layers)
        kv = run(cut.params, segment, None, forward=cut.forward).kv
        assert cut.spec.layers == layers == kv.rot.shape[0]
        np.testing.assert_allclose(kv.rot, whole.rot[:layers], atol=2e-5)
        np.testing.assert_allclose(kv.free, whole.free[:layers], atol=2e-5)
        assert cut.fingerprint != vlm.fingerprint
    assert vlm.leading(2).flops(7, 9) == pytest.approx(vlm.leading(1).flops(7, 9) * 2)
    for layers in (0, vlm.spec.layers + 1):
        with pytest.raises(ValueError, match=f"has 5 layers; got the first {layers}"):
            vlm.leading(layers)


def test_tokens_with_slots_see_only_what_stands_below_them(vlm):
    """Every other token of a text, on a window that holds the rest, is what one forward of the whole text gives it."""
    segment = vlm.prepare("a red star. a blue moon.")
    length = int(segment.length)
    spec = vlm.spec
    whole = run(vlm.params, segment, None, jnp.arange(length), forward=vlm.forward)
    state = kj.window.reuse.write(spec.empty_state(16), 0, whole.kv, None, segment.positions, length, spec.rope)
    slots = jnp.arange(1, length, 2)
    some = kj.Segment(
        {"tokens": segment.inputs["tokens"][slots], "slots": slots}, segment.positions[:, slots], jnp.int32(len(slots))
    )
    hidden = state.replace(valid=state.valid.at[slots].set(False))
    ours = run(vlm.params, some, hidden, jnp.arange(len(slots)), forward=vlm.forward)
    np.testing.assert_allclose(ours.logits, whole.logits[slots], atol=2e-4)
    np.testing.assert_allclose(ours.kv.free, whole.kv.free[:, slots], atol=2e-5)
    blind = run(
        vlm.params,
        kj.Segment(some.inputs | {"slots": slots + 16}, some.positions, some.length),
        hidden,
        jnp.arange(len(slots)),
        forward=vlm.forward,
    )
    assert not np.allclose(blind.logits[0], whole.logits[1], atol=1e-2)


def test_tokens_with_slots_are_refused_in_place(vlm):
    segment = vlm.prepare("a red star.")
    window = kj.append(kj.Window.empty(vlm, 64, mode="in_place"), kj.encode(vlm, "a blue moon."))
    inputs = segment.inputs | {"slots": jnp.arange(len(segment.valid))}
    with pytest.raises(ValueError, match="keeps its chunks in place"):
        vlm.forward(vlm.params, kj.Segment(inputs, segment.positions, segment.length), window.state)


def test_padding_does_not_show(vlm):
    """The same tokens in a larger bucket, with noise in the padding."""
    segment = vlm.prepare("a red star. a blue moon.")
    length = int(segment.length)
    tokens = jnp.full(32, 7, jnp.int32).at[:length].set(segment.inputs["tokens"][:length])
    positions = jnp.pad(segment.positions, ((0, 0), (0, 32 - segment.positions.shape[1])), constant_values=3.0)
    wider = kj.Segment({"tokens": tokens}, positions.at[:, length:].set(99.0), segment.length)
    small, large = (run(vlm.params, each, None, jnp.arange(1), forward=vlm.forward) for each in (segment, wider))
    for name in ("rot", "free"):
        a, b = (np.asarray(getattr(each.kv, name)) for each in (small, large))
        np.testing.assert_allclose(a[:, :length], b[:, :length], atol=2e-5)
        assert not b[:, length:].any()
    np.testing.assert_allclose(small.logits, large.logits, atol=2e-4)
