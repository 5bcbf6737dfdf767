"""Rung 1 as transformers reads it: RoPE of every kind a config.json declares, up to the length each port serves."""

import copy

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import DeepseekV3Config, LlamaConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding, yarn_apply_mscale
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaRotaryEmbedding
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

from kamera_jax import rope
from kamera_jax.forward import run
from kamera_jax.rope import UnsupportedRopeError
from models.hub.text_config import deepseek_v3_config, llama_config
from models.ports.qwen2_5_vl.config import config_from_hf
from tests.parity.oracle import assert_close
from tests.parity.pairs import DeepseekVLPair, KimiVLPair, LlavaPair, Qwen2_5VLPair

LENGTH = 256
ORIGINAL = 64
COMMON = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "vocab_size": 50,
    "max_position_embeddings": LENGTH,
}
MLA = {
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "kv_lora_rank": 32,
    "q_lora_rank": None,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 0,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
}
SECTIONS = {"mrope_section": [2, 3, 3]}


class Llama:
    """Of LLaVA and DeepSeek-VL."""

    config = LlamaConfig
    rotary = LlamaRotaryEmbedding
    sections = {}

    def ours(self, said):
        return llama_config({"model_type": "llama", **COMMON, **said})


class Deepseek:
    """Of Kimi-VL."""

    config = DeepseekV3Config
    rotary = DeepseekV3RotaryEmbedding
    sections = {}

    def ours(self, said):
        return deepseek_v3_config({"model_type": "deepseek_v3", **COMMON, **MLA, **said})


class Qwen:
    config = Qwen2_5_VLTextConfig
    rotary = Qwen2_5_VLRotaryEmbedding
    sections = SECTIONS

    def ours(self, said):
        text = {"model_type": "qwen2_5_vl_text", **COMMON, "num_key_value_heads": 4, **said}
        vision = {"hidden_size": 64, "out_hidden_size": 64, "num_heads": 4}
        return config_from_hf({"model_type": "qwen2_5_vl", "text_config": text, "vision_config": vision}).text


PORTS = {"llama": Llama(), "deepseek_v3": Deepseek(), "qwen2_5_vl": Qwen()}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL}
LONG = {
    "rope_type": "longrope",
    "original_max_position_embeddings": ORIGINAL,
    "short_factor": [1.0, 1.1, 1.2, 1.5, 2.0, 2.0, 3.0, 4.0],
    "long_factor": [9.0] * 8,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CASES = {
    "nothing": ({}, LENGTH),
    "theta": ({"rope_theta": 500.0}, LENGTH),
    "theta, whole": ({"rope_theta": 500}, LENGTH),
    "default": ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, LENGTH),
    "theta twice": ({"rope_theta": 7.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, LENGTH),
    "linear": ({"rope_scaling": {"type": "linear", "factor": 4.0}}, LENGTH),
    "linear, theta beside": ({"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4}}, LENGTH),
    "scaling beside parameters": (
        {
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            "rope_parameters": {"rope_type": "default", "rope_theta": 5.0},
        },
        LENGTH,
    ),
    "scaling beside parameters and theta": (
        {
            "rope_theta": 77.0,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            "rope_parameters": {"rope_type": "default", "rope_theta": 5.0},
        },
        LENGTH,
    ),
    "default scaling beside parameters": (
        {
            "rope_scaling": {"rope_type": "default", "rope_theta": 9.0},
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5.0},
        },
        LENGTH,
    ),
    "empty scaling beside parameters": (
        {"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5.0}},
        LENGTH,
    ),
    "no scaling beside parameters": (
        {"rope_scaling": None, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5.0}},
        LENGTH,
    ),
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, LENGTH),
    "dynamic, large": ({"rope_scaling": {"rope_type": "dynamic", "factor": 8.0}, "rope_theta": 500.0}, LENGTH),
    "yarn": ({"rope_scaling": YARN}, LENGTH),
    "yarn, its length": ({"rope_scaling": YARN, "max_position_embeddings": ORIGINAL}, LENGTH),
    "yarn, original beside": (
        {"rope_scaling": {**YARN, "original_max_position_embeddings": 32}, "original_max_position_embeddings": 128},
        512,
    ),
    "yarn, original left out": ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, 2 * LENGTH),
    "yarn, betas of 0": ({"rope_scaling": {**YARN, "beta_fast": 0, "beta_slow": 0}}, LENGTH),
    "yarn, betas": ({"rope_scaling": {**YARN, "beta_fast": 8, "beta_slow": 0.5, "truncate": False}}, LENGTH),
    "yarn, betas swapped": ({"rope_scaling": {**YARN, "beta_fast": 1, "beta_slow": 8}}, LENGTH),
    "yarn, mscales": ({"rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 1.3}}, LENGTH),
    "yarn, an mscale of 0": ({"rope_scaling": {**YARN, "mscale": 0, "mscale_all_dim": 1.3}}, LENGTH),
    "yarn, mscales of 0": ({"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 0}}, LENGTH),
    "yarn, attention factor": ({"rope_scaling": {**YARN, "attention_factor": 0.5}}, LENGTH),
    "longrope": ({"rope_scaling": LONG}, ORIGINAL),
    "longrope, factor": ({"rope_scaling": {**LONG, "factor": 3.0}}, ORIGINAL),
    "longrope, attention factor": ({"rope_scaling": {**LONG, "attention_factor": 1.7}}, ORIGINAL),
    "longrope, original beside": (
        {
            "rope_scaling": {**LONG, "original_max_position_embeddings": 32},
            "original_max_position_embeddings": ORIGINAL,
        },
        ORIGINAL,
    ),
    "longrope, original left out": (
        {"rope_scaling": {name: value for name, value in LONG.items() if name != "original_max_position_embeddings"}},
        LENGTH,
    ),
    "longrope, not longer": ({"rope_scaling": LONG, "max_position_embeddings": ORIGINAL}, ORIGINAL),
    "llama3": ({"rope_scaling": {**LLAMA3, "original_max_position_embeddings": ORIGINAL}}, LENGTH),
    "llama3, original left out": ({"rope_scaling": {**LLAMA3, "high_freq_factor": 9.0}, "rope_theta": 5e5}, LENGTH),
    "partial": ({"partial_rotary_factor": 0.5}, LENGTH),
    "partial, in parameters": ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, LENGTH),
    "partial and whole": ({"rope_scaling": {"type": "linear", "factor": 4.0, "partial_rotary_factor": 1.0}}, LENGTH),
}


def said_by(port, said):
    """With M-RoPE's sections where the port has them."""
    said = copy.deepcopy(said)
    for name in ("rope_scaling", "rope_parameters"):
        if said.get(name):
            said[name] |= port.sections
    if port.sections and not (said.get("rope_scaling") or said.get("rope_parameters")):
        said["rope_parameters"] = dict(port.sections)
    return said


@pytest.fixture(params=PORTS)
def port(request):
    return PORTS[request.param]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("case", CASES)
def test_angles_and_length_are_transformers(port, case):
    said, limit = CASES[case]
    said = said_by(port, said)
    mla = MLA if port.config is DeepseekV3Config else {}
    theirs = port.config(**copy.deepcopy({**COMMON, **mla, **said}))
    ours = port.ours(said)
    assert ours.max_positions == limit
    positions = np.unique(np.linspace(0, limit - 1, 40).astype(int))
    if port.sections:
        positions = np.stack([positions, positions[::-1], np.roll(positions, 3)])
    else:
        positions = positions[None]
    at = torch.from_numpy(positions.copy())[:, None]
    cos, sin = port.rotary(theirs)(torch.zeros(1), at if port.sections else at[0])
    mine = rope.tables(ours.rope, jnp.asarray(positions, jnp.float32))
    half = cos.shape[-1] // 2
    assert ours.rope.layout == "half" and ours.rope.axes == len(positions)
    np.testing.assert_allclose(np.asarray(mine[0]), cos[0].numpy(), rtol=1e-5, atol=5e-5)
    np.testing.assert_allclose(np.asarray(mine[1])[:, half:], sin[0].numpy()[:, half:], rtol=1e-5, atol=5e-5)
    np.testing.assert_allclose(np.asarray(mine[1])[:, :half], -sin[0].numpy()[:, :half], rtol=1e-5, atol=5e-5)
    if mla:
        assert ours.attention.scale == pytest.approx(yarn_apply_mscale(theirs.rope_parameters, 32**-0.5), rel=1e-12)


@pytest.mark.parametrize("case", ["longrope", "dynamic"])
def test_one_position_further_transformers_has_other_angles(port, case):
    """Which is why a window ends there."""
    said, limit = CASES[case]
    said = said_by(port, said)
    mla = MLA if port.config is DeepseekV3Config else {}
    theirs = port.rotary(port.config(**copy.deepcopy({**COMMON, **mla, **said})))

    def angle(last):
        at = torch.tensor([[50, last]])
        return theirs(torch.zeros(1), at.expand(3, 1, 2) if port.sections else at)[0][..., 0, :]

    assert torch.equal(angle(limit - 2), angle(limit - 1))
    assert (angle(limit - 1) - angle(limit)).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3", "longrope"])
def test_a_part_of_a_head_is_what_transformers_cannot_rotate_either(kind):
    said = {
        "rope_scaling": {"linear": {"type": "linear", "factor": 4.0}, "yarn": YARN, "longrope": LONG}.get(
            kind, {**LLAMA3, "rope_type": kind} if kind == "llama3" else {"rope_type": kind, "factor": 2.0}
        ),
        "partial_rotary_factor": 0.5,
    }
    with pytest.raises(RuntimeError, match="must match the size"):
        LlamaForCausalLM(LlamaConfig(**{**COMMON, **copy.deepcopy(said)}))(torch.arange(5)[None])
    for port in PORTS.values():
        with pytest.raises(UnsupportedRopeError, match="partial_rotary_factor is 0.5"):
            port.ours(said_by(port, said))


def test_two_sections_of_qwen_do_not_add_up():
    """Where there is a text_config, transformers reads no other section."""
    text = {
        **COMMON,
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 9.0, **SECTIONS},
    }
    vision = {"hidden_size": 64, "out_hidden_size": 64, "num_heads": 4}
    outer = {"rope_scaling": {"type": "linear", "factor": 4.0, **SECTIONS}}
    mapping = {"model_type": "qwen2_5_vl", "text_config": text, "vision_config": vision, **outer}
    theirs = Qwen2_5_VLRotaryEmbedding(Qwen2_5_VLTextConfig(**copy.deepcopy(text)))
    np.testing.assert_allclose(config_from_hf(mapping).text.rope.inv_freq, theirs.inv_freq, rtol=1e-6)


WHOLE = {
    "llava, LongRoPE": (LlavaPair, {"rope_parameters": {**LONG, "rope_theta": 1e4}}),
    "llava, dynamic": (LlavaPair, {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    "deepseek_vl, llama3": (
        DeepseekVLPair,
        {"rope_parameters": {**LLAMA3, "rope_theta": 1e4, "original_max_position_embeddings": 64}},
    ),
    "kimi_vl, LongRoPE": (KimiVLPair, {"qk_rope_head_dim": 16, "rope_parameters": {**LONG, "rope_theta": 1e4}}),
    "qwen2_5_vl, LongRoPE": (Qwen2_5VLPair, {"rope_parameters": {**LONG, "rope_theta": 1e4, **SECTIONS}}),
    "llava, partial": (
        LlavaPair,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_prompts_equal_transformers(tmp_path, name):
    kind, text = WHOLE[name]
    pair = kind({"text": {"max_position_embeddings": LENGTH, **text}}, tmp_path, seed=3)
    assert pair.vlm.spec.max_positions == (ORIGINAL if "LongRoPE" in name else LENGTH)
    prompt = pair.prompt(pair.items(("the first page .", "dot")), "which colour is the cell on the page?")
    assert len(prompt.ids) < ORIGINAL
    segment = prompt.joined()
    at = jnp.arange(segment.positions.shape[1])
    output = run(pair.vlm.params, segment, None, at, forward=pair.vlm.forward)
    assert_close(np.asarray(output.logits)[: len(prompt.ids)], prompt.full.logits)
    assert_close(pair.rotated(output.kv, segment.positions)[:, : len(prompt.ids)], prompt.full.rot, layers=True)
