"""Thinkers: of the omni models the part that reads and writes text, in files among what speaks, or saved by itself."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from models.blocks.decoder import DecoderConfig
from models.hub.fields import Fields
from models.hub.text_config import top_fields
from models.hub.text_weights import dense_rows, port_table
from models.hub.towers import norm_rows
from models.hub.weight_table import Either, Row, WeightTable

TOWER = "thinker.audio_tower"
"""What the hub puts before the names of the audio tower's tensors."""

_WHOLE = (
    *("enable_audio_output", "enable_talker", "talker_config", "token2wav_config", "code2wav_config", "init_std"),
    *("im_start_token_id", "im_end_token_id", "system_token_id", "user_token_id", "assistant_token_id"),
    *("tts_pad_token_id", "tts_bos_token_id", "tts_eos_token_id"),
)
"""The other two models of the file: what speaks. They read what the thinker says, which does not depend on them."""


def alone(model_type: str) -> str:
    """The ``model_type`` of a thinker that was saved by itself, of an omni model of this one."""
    return f"{model_type}_thinker"


def thinker_fields(mapping: Mapping[str, Any], model_type: str) -> Fields:
    """What a hub ``config.json`` says of the thinker: its ``thinker_config``, or all of it.

    Args:
        mapping: the file.
        model_type: of the omni model.

    Raises:
        UnknownConfigFieldError: it says something else too, named.
        MissingConfigFieldError: there is no thinker_config.
        UnsupportedConfigError: it is of another model, or its weights are quantised.
    """
    if mapping.get("model_type") == alone(model_type):
        return top_fields(mapping, alone(model_type))
    top = top_fields(mapping, model_type)
    thinker = Fields("thinker_config", top.take("thinker_config", dict))
    top.ignore(*_WHOLE)
    top.close()
    thinker.expect("model_type", alone(model_type))
    return thinker


def thinker_table(
    text: DecoderConfig, towers: Iterable[Row | Either], *, others: tuple[str, ...], ignored: tuple[str, ...] = ()
) -> WeightTable:
    """The weight table of a thinker, in the hub's spelling (``thinker.model.layers.*``, ``thinker.visual.*``).

    transformers 5 has other names for its modules, and writes a thinker alone without its prefix.

    Args:
        text: the language model's configuration.
        towers: rows of both towers.
        others: what the names of tensors that are not the thinker's begin with, such as ``talker``.
        ignored: see `WeightTable`; beside these, and the buffers of the decoder and of the vision tower.
    """
    speaking = "|".join(re.escape(f"{other}.") for other in others)
    renames = (
        (r"^thinker\.", ""),
        (r"^model\.language_model\.", "model."),
        (r"^model\.(visual|audio_tower)\.", r"\1."),
        (rf"^(?!{speaking})", "thinker."),
    )
    passed = (rf"({speaking}).*", r"thinker\.visual\..*\.inv_freq", *ignored)
    return port_table(text, towers, model="thinker.model", head="thinker.lm_head", renames=renames, ignored=passed)


def audio_rows(*, key_bias: bool) -> list[Row]:
    """Rows of the blocks of the audio tower, and of the norm behind them; not all have a bias of their keys."""
    layer = f"{TOWER}.layers.{{}}"
    blocks = "audio/blocks"
    biases = {"q": True, "k": key_bias, "v": True}
    return [
        *norm_rows(f"{layer}.self_attn_layer_norm", f"{blocks}/attn_norm"),
        *norm_rows(f"{layer}.final_layer_norm", f"{blocks}/mlp_norm"),
        *(
            row
            for name, bias in biases.items()
            for row in dense_rows(f"{layer}.self_attn.{name}_proj", f"{blocks}/attn/{name}", bias=bias)
        ),
        *dense_rows(f"{layer}.self_attn.out_proj", f"{blocks}/attn/o"),
        *dense_rows(f"{layer}.fc1", f"{blocks}/mlp/hidden"),
        *dense_rows(f"{layer}.fc2", f"{blocks}/mlp/out"),
        *norm_rows(f"{TOWER}.ln_post", "audio/norm"),
    ]
