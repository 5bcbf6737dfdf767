"""What every port shares: reading a folder, and what a forward collects."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from eval.tiny import checkpoint
from eval.tiny.backbones import BACKBONES
from kamera_jax.forward import run
from models import load
from models.fields import MissingConfigFieldError, MissingConfigFileError
from models.params import is_info


@pytest.fixture(scope="module", params=BACKBONES)
def folder(request, tmp_path_factory):
    """A tiny model of each attention with random weights."""
    backbone, rng = BACKBONES[request.param], np.random.default_rng(5)

    def leaf(info):
        return np.float32(info.init == "ones") + 0.1 * rng.standard_normal(info.shape, np.float32)

    params = jax.tree.map(leaf, backbone.architecture.declaration(backbone.config), is_leaf=is_info)
    folder = tmp_path_factory.mktemp("hub") / backbone.name
    checkpoint.write(folder, backbone, params)
    return folder


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


def test_a_forward_collects_what_is_asked_for(vlm):
    segment = vlm.prepare("a red star. a blue moon.")
    asked = ("attention_mass", "experts", "router_margin") if vlm.config.text.experts else ("attention_mass",)
    aux = run(vlm.params, segment, None, forward=vlm.forward, collect=asked).aux
    length, layers = int(segment.length), vlm.spec.layers
    assert aux.keys() == set(asked)
    np.testing.assert_allclose(aux["attention_mass"].sum(-1), np.ones(layers), rtol=1e-5)
    if vlm.config.text.experts:
        experts, margin = np.asarray(aux["experts"]), np.asarray(aux["router_margin"])
        assert experts.shape == (2, len(segment.valid), 2) and margin.shape == experts.shape[:2]
        assert (experts[:, :length] >= 0).all() and (experts[:, length:] == -1).all()
        assert (margin[:, :length] > 0).all() and np.isfinite(margin[:, :length]).all()
        assert np.isinf(margin[:, length:]).all()


def test_a_forward_refuses_to_collect_what_it_cannot(vlm):
    unknown = ("experts",) if vlm.config.text.experts is None else ("colours",)
    with pytest.raises(ValueError, match=f"this model collects .*; got \\['{unknown[0]}'\\]"):
        run(vlm.params, vlm.prepare("a red star."), None, forward=vlm.forward, collect=unknown)


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
