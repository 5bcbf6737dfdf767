"""Configuration of Qwen3-Omni's thinker: Qwen3-VL's with experts, and audio."""

from collections.abc import Mapping
from typing import Any

from models.architecture import Config
from models.blocks.moe import Experts
from models.hub.fields import Fields, UnsupportedConfigError
from models.hub.text_config import IGNORED, one_head
from models.hub.thinkers import thinker_fields
from models.ports.qwen2_5_omni.config import TOKENS, audio_fields, check_width
from models.ports.qwen3_omni.audio import ROWS, AudioConfig
from models.ports.qwen3_vl.config import Family, read_text
from models.ports.qwen3_vl.vision import read_tower

MODEL_TYPE = "qwen3_omni_moe"

FAMILY = Family(
    *(2048, 18944, 28, 28, 4),
    vocab_size=3584,
    max_positions=32768,
    theta=1e6,
    experts=Experts(128, 8, 768, scoring="softmax"),
    normalised=False,
)
"""HF ``Qwen3OmniMoeTextConfig``."""


def config_from_hf(mapping: Mapping[str, Any]) -> Config:
    """The configuration in a hub ``config.json``, of the whole model or of a thinker that was saved by itself.

    What a file leaves out has the default of HF ``Qwen3OmniMoeThinkerConfig``: it may have been written without it.

    Raises:
        UnknownConfigFieldError: a field this does not know, named.
        MissingConfigFieldError: no thinker_config, one of its sections is missing, or there is no mrope_section.
        UnsupportedConfigError: a value that asks for another computation, named.
        UnsupportedRopeError: a RoPE that is not known, or whose numbers cannot be.
    """
    thinker = thinker_fields(mapping, MODEL_TYPE)
    text = read_text(_text_fields(one_head(thinker)), FAMILY, f"{MODEL_TYPE}_text")
    vision = Fields("vision_config", thinker.take("vision_config", dict))
    vision.expect("model_type", f"{MODEL_TYPE}_vision_encoder")
    vision.expect("apply_vit_abs_pos_embed", True)
    for name, same in {"in_chans": "in_channels", "spatial_patch_size": "patch_size"}.items():
        vision.expect(name, vision.rest.get(same, vision.rest.get(name)))
    # How many positions are learned stands in num_position_embeddings, and nothing is tied in a tower.
    vision.ignore("image_size", "tokens_per_second", "tie_word_embeddings")
    tower = read_tower(vision, text)
    audio = _audio_config(thinker.take("audio_config", dict))
    check_width("audio_config: output_dim", audio.out_hidden_size, text.hidden_size)
    kinds = {"audio": 151646, "video": 151656}
    config = Config(
        text,
        tower,
        image_token_id=thinker.size("image_token_id", 151655, least=0),
        towers={"audio": audio},
        media={"video": thinker.positive("position_id_per_seconds", 25.0)},
        placeholders={kind: thinker.size(f"{kind}_token_id", default, least=0) for kind, default in kinds.items()},
    )
    # How long a piece of a video is that has sound, which is not served.
    thinker.ignore("seconds_per_chunk", "ignore_index", *TOKENS, *IGNORED)
    thinker.close()
    return config


def _text_fields(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's section, less what says of Qwen3-VL's what it always is.

    Raises:
        UnsupportedConfigError: it says something else.
    """
    fields = Fields("text_config", {name: mapping[name] for name in _ALWAYS if name in mapping})
    for name, value in _ALWAYS.items():
        fields.expect(name, value)
    rest = {name: value for name, value in mapping.items() if name not in _ALWAYS}
    for name in ("rope_scaling", "rope_parameters"):
        if isinstance(rest.get(name), Mapping):
            rope = Fields(f"text_config: {name}", rest[name])
            rope.expect("interleaved", True)
            rest[name] = rope.rest
    return rest


_ALWAYS = {"use_qk_norm": True, "shared_expert_intermediate_size": 0, "use_sliding_window": False}


def _audio_config(mapping: Mapping[str, Any]) -> AudioConfig:
    fields = Fields("audio_config", mapping)
    fields.expect("model_type", f"{MODEL_TYPE}_audio_encoder")
    common = audio_fields(fields, 50)
    window = fields.size("n_window_infer", 800)
    pieces = window // (2 * common["window"])
    if pieces < 1:
        raise UnsupportedConfigError(
            f"audio_config: n_window_infer is {window}; expected a piece at least, {2 * common['window']} "
            "frames, two times n_window"
        )
    positions = fields.size("max_source_positions", 1500)
    if positions < ROWS:
        raise UnsupportedConfigError(
            f"audio_config: max_source_positions is {positions}; expected the rows of a piece at least, {ROWS}"
        )
    config = AudioConfig(**common, pieces=pieces, channels=fields.size("downsample_hidden_size", 480))
    fields.ignore("conv_chunksize", "tie_word_embeddings")  # how many pieces go through the convolutions together
    fields.close()
    return config
