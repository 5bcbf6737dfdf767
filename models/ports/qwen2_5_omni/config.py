"""Configuration of Qwen2.5-Omni's thinker: that of Qwen2.5-VL, less what it says at the top level, and audio."""

from collections.abc import Mapping
from typing import Any

from models.architecture import Config
from models.hub.fields import LAYERS, Fields, UnsupportedConfigError
from models.hub.text_config import IGNORED, one_head
from models.hub.thinkers import thinker_fields
from models.hub.towers import UNUSED_FIELDS, activation_name
from models.ports.qwen2_5_omni.audio import AudioConfig
from models.ports.qwen2_5_vl.config import read_text, read_tower

TOKENS = (
    *("audio_start_token_id", "audio_end_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id"),
    "user_token_id",
)
"""The chat template says these."""

_TEXT = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
}
"""What a ``text_config`` leaves out, as HF ``Qwen2_5OmniTextConfig`` has it."""


def config_from_hf(mapping: Mapping[str, Any]) -> Config:
    """The configuration in a hub ``config.json``, of the whole model or of a thinker that was saved by itself.

    Raises:
        UnknownConfigFieldError: a field this does not know, named.
        MissingConfigFieldError: no thinker_config, one of its sections is missing, or there is no mrope_section.
        UnsupportedConfigError: a value that asks for another computation, named.
        UnsupportedRopeError: a RoPE that is not known, or whose numbers cannot be.
    """
    thinker = thinker_fields(mapping, "qwen2_5_omni")
    text = Fields("text_config", _TEXT | {name: each for name, each in one_head(thinker).items() if each is not None})
    text.expect("model_type", "qwen2_5_omni_text")
    text.ignore("init_std")
    decoder = read_text(text.rest, {})
    vision = Fields("vision_config", thinker.take("vision_config", dict))
    vision.expect("model_type", "qwen2_5_omni_vision_encoder")
    vision.expect("embed_dim", vision.rest.get("hidden_size"))
    vision.ignore("init_std")
    tower = read_tower(vision.rest)
    audio = _audio_config(thinker.take("audio_config", dict))
    for section, given in {"vision_config: out_hidden_size": tower, "audio_config: output_dim": audio}.items():
        check_width(section, given.out_hidden_size, decoder.hidden_size)
    kinds = {"audio": 151646, "video": 151656}
    placeholders = {kind: thinker.size(f"{kind}_token_index", default, least=0) for kind, default in kinds.items()}
    config = Config(
        decoder,
        tower,
        image_token_id=thinker.size("image_token_index", 151655, least=0),
        towers={"audio": audio},
        media={"video": thinker.positive("position_id_per_seconds", 25.0)},
        placeholders=placeholders,
    )
    # How long a piece of a video is that has sound, which is not served.
    thinker.ignore("seconds_per_chunk", "init_std", "ignore_index", *TOKENS, *IGNORED)
    thinker.close()
    return config


def check_width(section: str, width: int, text: int) -> None:
    """Refuse a tower whose outputs are of another width than the language model's.

    Raises:
        UnsupportedConfigError: they are.
    """
    if width != text:
        raise UnsupportedConfigError(f"{section} is {width}; expected the text width, {text}")


def _audio_config(mapping: Mapping[str, Any]) -> AudioConfig:
    fields = Fields("audio_config", mapping)
    fields.expect("model_type", "qwen2_5_omni_audio_encoder")
    config = AudioConfig(**audio_fields(fields, 100))
    positions = fields.size("max_source_positions", 1500)
    if positions < config.window:
        raise UnsupportedConfigError(
            f"audio_config: max_source_positions is {positions}; expected n_window at least, {config.window}"
        )
    fields.close()
    return config


def audio_fields(fields: Fields, window: int) -> dict[str, Any]:
    """Takes what the audio towers of omni models say alike, as arguments of an `AudioConfig`.

    Args:
        fields: the section.
        window: transformers' default of ``n_window``.

    Raises:
        UnsupportedConfigError: a value that asks for another computation, named.
    """
    depth = fields.size("encoder_layers", 32, most=LAYERS)
    fields.expect("num_hidden_layers", depth)
    # transformers reads scale_embedding, and computes nothing with it.
    fields.ignore("scale_embedding", "activation_dropout", "encoder_layerdrop", "init_std", *UNUSED_FIELDS)
    return {
        "depth": depth,
        "hidden_size": fields.size("d_model", 1280),
        "intermediate_size": fields.size("encoder_ffn_dim", 5120),
        "num_heads": fields.size("encoder_attention_heads", 20),
        "hidden_act": activation_name(fields, "activation_function", "gelu"),
        "bands": fields.size("num_mel_bins", 128, most=2**12),
        "window": fields.size("n_window", window, most=2**16),
        "out_hidden_size": fields.size("output_dim", 3584),
    }
