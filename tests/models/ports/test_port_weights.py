"""Weight tables of the ports: every parameter has its tensor, and what is not one may be there."""

import pytest

from eval.tiny.backbones import BACKBONES
from models.hub.fields import read_json
from models.ports.llama.config import FAMILIES
from models.ports.smol_vl.config import MODEL_TYPE as SMOL_VL
from models.registry import ARCHITECTURES, CHECKPOINTS
from tests.models import tiny_idefics3, tiny_internvl, tiny_llava_onevision, tiny_omni
from tests.models.ports.test_qwen3_vl_config import PUBLISHED as QWEN3_VL
from tests.models.tiny_llava import CONFIG

PREFIX = {
    "qwen2_5_vl": ("model", "lm_head"),
    "qwen3_vl": ("model.language_model", "lm_head"),
    "qwen3_vl_moe": ("model.language_model", "lm_head"),
    "kimi_vl": ("language_model.model", "language_model.lm_head"),
    "deepseek_vl": ("model.language_model", "lm_head"),
    "llava": ("language_model.model", "language_model.lm_head"),
    "llava_onevision": ("language_model.model", "language_model.lm_head"),
    "internvl": ("language_model.model", "language_model.lm_head"),
    "idefics3": ("model.text_model", "lm_head"),
    "smolvlm": ("model.text_model", "lm_head"),
}
PREFIX |= {name: ("model", "lm_head") for name in (*FAMILIES, SMOL_VL)}
THINKERS = tiny_omni.CONFIGS | {f"{name}_thinker": each["thinker_config"] for name, each in tiny_omni.CONFIGS.items()}
PREFIX |= dict.fromkeys(THINKERS, ("thinker.model", "thinker.lm_head"))
CONFIGS = {each.architecture.name: each.config for each in BACKBONES.values()}


def config_of(name):
    if name in CONFIGS:
        return CONFIGS[name]
    given = {
        "llava": CONFIG,
        "llava_onevision": tiny_llava_onevision.CONFIG,
        "internvl": tiny_internvl.CONFIG,
        "idefics3": {**tiny_idefics3.CONFIG, "model_type": "idefics3"},
        "smolvlm": tiny_idefics3.CONFIG,
        **THINKERS,
        **QWEN3_VL,
        SMOL_VL: read_json(CHECKPOINTS / "kamera-smol-vl" / "config.json") | {"text_config": {}},
    }
    return ARCHITECTURES[name].config_from_hf(given.get(name, {"model_type": name}))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_buffers_and_tied_heads_may_be_stored(name):
    table = ARCHITECTURES[name].weight_table(config_of(name))
    model, head = PREFIX[name]
    assert table.skips(f"{model}.rotary_emb.inv_freq")
    assert table.skips(f"{model}.layers.3.self_attn.rotary_emb.inv_freq")
    assert not table.skips(f"{model}.layers.3.self_attn.q_proj.weight")
    assert not table.skips(f"{model.replace('.', '_')}s.rotary_emb.inv_freq")
    tied = config_of(name).text.tie_word_embeddings
    assert table.copies == (((f"{head}.weight", f"{model}.embed_tokens.weight"),) if tied else ())
