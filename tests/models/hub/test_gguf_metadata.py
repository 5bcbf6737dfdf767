"""What a GGUF file's metadata says of positions, windows and heads."""

import numpy as np
import pytest

from kamera_jax.rope import spec_from_config
from models.hub.gguf import errors
from models.hub.gguf.file import GgufFile
from models.hub.gguf.metadata import FREQUENCIES, config_of
from tests.models.hub.gguf_files import HEAD, HEADS, LAYERS, WIDTH, write
from tests.models.hub.test_gguf import read, refused


def llama3(head_dim, theta, factor, original, low=1.0, high=4.0):
    """As llama.cpp's converter writes the factors."""
    factors = []
    for freq in 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim):
        wavelength = 2 * np.pi / freq
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.asarray(factors, np.float32)


@pytest.mark.parametrize(
    ("theta", "factor", "original"), [(500000.0, 8.0, 8192), (500000.0, 32.0, 8192), (10000.0, 4.0, 2048)]
)
def test_the_frequencies_of_llama_3_1(tmp_path, theta, factor, original):
    factors = llama3(HEAD, theta, factor, original)
    path = write(
        tmp_path / "a.gguf",
        extra=[(FREQUENCIES, factors)],
        changed={"rope.freq_base": theta, "context_length": 131072},
    )
    source, tensors, _ = read(path)
    assert FREQUENCIES not in tensors.shapes and len(tensors.shapes) == 3 + 9 * LAYERS
    scaling = config_of(source)["rope_scaling"]
    assert scaling["rope_type"] == "llama3" and scaling["factor"] == factor
    spec = spec_from_config({**scaling, "rope_theta": theta}, head_dim=HEAD, max_positions=131072)
    plain = 1.0 / theta ** (np.arange(0, HEAD, 2, dtype=np.float64) / HEAD)
    np.testing.assert_allclose(spec.inv_freq, plain / factors, rtol=1e-5)


def test_frequencies_of_another_kind_are_refused(tmp_path):
    for factors in (np.linspace(1, 9, HEAD // 2, dtype=np.float32), np.full(HEAD // 2, np.nan, np.float32)):
        path = write(tmp_path / "odd.gguf", extra=[(FREQUENCIES, factors)])
        refused(tmp_path, path.read_bytes(), errors.GgufMetadataError, FREQUENCIES)
    path = write(tmp_path / "odd.gguf", extra=[(FREQUENCIES, np.ones(HEAD, np.float32))])
    refused(tmp_path, path.read_bytes(), errors.GgufMetadataError, f"expected {HEAD // 2}")
    path = write(tmp_path / "none.gguf", extra=[(FREQUENCIES, np.ones(HEAD // 2, np.float32))])
    assert "rope_scaling" not in config_of(GgufFile(path))


@pytest.mark.parametrize(
    ("changed", "scaling"),
    [
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}, None),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 128,
                "rope.scaling.finetuned": True,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        ),
    ],
)
def test_scaled_positions(tmp_path, changed, scaling):
    config = config_of(GgufFile(write(tmp_path / "a.gguf", "qwen2", changed=changed)))
    assert config.get("rope_scaling") == scaling
    if scaling:
        spec_from_config({**scaling, "rope_theta": 1e4}, head_dim=HEAD, max_positions=512)


def test_a_sliding_window_is_mistrals(tmp_path):
    config = config_of(GgufFile(write(tmp_path / "a.gguf", changed={"attention.sliding_window": 128})))
    assert config["model_type"] == "mistral" and config["sliding_window"] == 128 and "attention_bias" not in config


def test_the_head_width_may_be_its_own(tmp_path):
    config = config_of(GgufFile(write(tmp_path / "a.gguf", changed={"attention.key_length": HEAD})))
    assert config["head_dim"] == HEAD
    config = config_of(GgufFile(write(tmp_path / "b.gguf", changed={"rope.dimension_count": None})))
    assert config["head_dim"] == WIDTH // HEADS
