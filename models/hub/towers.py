"""What hub folders say of vision towers: fields of their configuration, and names of their weights."""

from collections.abc import Mapping
from typing import Any

from models.blocks.vit import ACTIVATIONS
from models.hub.fields import LAYERS, Fields, UnsupportedConfigError
from models.hub.text_config import IGNORED
from models.hub.text_weights import dense_rows
from models.hub.weight_table import Row

UNUSED_FIELDS = (*IGNORED, "dropout", "initializer_factor")
"""Fields of a vision_config about training, or about the program that wrote it."""


def activation_name(fields: Fields, name: str, default: str) -> str:
    """A field that names an activation.

    Raises:
        UnsupportedConfigError: one that is not in `ACTIVATIONS`.
    """
    value = fields.take(name, str, default)
    if value not in ACTIVATIONS:
        raise UnsupportedConfigError(
            f"{fields.section}: {name} is {value!r:.200}; expected one of {sorted(ACTIVATIONS)}"
        )
    return value


def feature_depth(top: Fields, stored: int, default: int) -> int:
    """Takes ``vision_feature_layer``: of how many blocks the output is the feature.

    Args:
        top: config.json.
        stored: blocks in the checkpoint.
        default: transformers'.

    Raises:
        UnsupportedConfigError: it is not the output of one of the blocks.
    """
    layer = top.take("vision_feature_layer", int, default)
    depth = layer if layer > 0 else stored + 1 + layer  # from behind, -1 is the last block's output
    if not 1 <= depth <= stored:
        raise UnsupportedConfigError(
            f"config.json: vision_feature_layer is {layer}; expected 1 to {stored} or {-stored} to -1, "
            f"for the output of one of {stored} layers"
        )
    return depth


def square_fields(fields: Fields, *, patch_size: int, hidden_act: str, layer_norm_eps: float) -> dict[str, Any]:
    """The fields of a `SquareConfig` that SigLIP and CLIP say alike, with the defaults in which they differ.

    Raises:
        UnsupportedConfigError: a value that asks for another computation, named.
    """
    return {
        "depth": fields.size("num_hidden_layers", 12, most=LAYERS),
        "hidden_size": fields.size("hidden_size", 768),
        "intermediate_size": fields.size("intermediate_size", 3072),
        "num_heads": fields.size("num_attention_heads", 12),
        "in_channels": fields.size("num_channels", 3),
        "patch_size": fields.size("patch_size", patch_size),
        "image_size": fields.size("image_size", 224),
        "hidden_act": activation_name(fields, "hidden_act", hidden_act),
        "layer_norm_eps": fields.positive("layer_norm_eps", layer_norm_eps),
    }


def siglip_fields(top: Fields) -> dict[str, Any]:
    """The fields of a `SquareConfig` in a config.json's ``vision_config``, which is taken: HF ``SiglipVisionConfig``.

    Raises:
        UnknownConfigFieldError: a field this does not know, named. MissingConfigFieldError: no vision_config.
        UnsupportedConfigError: a value that asks for another computation, named.
    """
    fields = Fields("vision_config", top.take("vision_config", dict))
    fields.expect("model_type", "siglip_vision_model")
    common = square_fields(fields, patch_size=16, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
    fields.ignore("vision_use_head", *UNUSED_FIELDS)  # what the head pools is not used
    fields.close()
    return common


def feature_fields(top: Fields, common: Mapping[str, Any], default: int) -> dict[str, Any]:
    """The fields of a tower up to its feature, and of its projector: what HF's LLaVAs say of them in config.json.

    Args:
        top: the file; vision_feature_layer, projector_hidden_act and multimodal_projector_bias are taken from it.
        common: of the whole tower; see `square_fields`.
        default: the feature's layer in transformers.

    Raises:
        UnsupportedConfigError: a value that asks for another computation, named.
    """
    return {
        **common,
        "depth": feature_depth(top, common["depth"], default),
        "stored_depth": common["depth"],
        "projector_act": activation_name(top, "projector_hidden_act", "gelu"),
        "projector_bias": top.take("multimodal_projector_bias", bool, True),
    }


def norm_rows(name: str, path: str) -> list[Row]:
    """Rows of a LayerNorm."""
    return [Row(f"{name}.weight", f"{path}/w"), Row(f"{name}.bias", f"{path}/b")]


def encoder_rows(name: str, path: str) -> list[Row]:
    """Rows of the blocks, as SigLIP and CLIP name them: ``{name}.layers.N`` into ``{path}``."""
    layer = f"{name}.layers.{{}}"
    return [
        *norm_rows(f"{layer}.layer_norm1", f"{path}/attn_norm"),
        *norm_rows(f"{layer}.layer_norm2", f"{path}/mlp_norm"),
        *dense_rows(f"{layer}.mlp.fc1", f"{path}/mlp/hidden"),
        *dense_rows(f"{layer}.mlp.fc2", f"{path}/mlp/out"),
        *dense_rows(f"{layer}.self_attn.out_proj", f"{path}/attn/o"),
        *(row for p in "qkv" for row in dense_rows(f"{layer}.self_attn.{p}_proj", f"{path}/attn/{p}")),
    ]
