"""Architectures that are refused, each with the reason why its KV cannot be reused as it is."""

from collections.abc import Mapping
from typing import Any

from kamera_jax.arguments import short


class UnknownModelError(ValueError):
    """Neither an embedded model, a folder, nor something the hub has; or an architecture that is not served."""


class SplitImageBlockError(UnknownModelError):
    """The tokens of an image attend to each other in both directions: a chunk may not split them."""


def check_architecture(name: str, mapping: Mapping[str, Any], served: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose architecture is not served.

    Args:
        name: of the model, for messages.
        mapping: its config.json.
        served: what is served, by ``model_type``.

    Raises:
        SplitImageBlockError: Gemma-3.
        UnknownModelError: any other architecture that is not served, such as Phi-3.5-vision, or files of one that are
            in another format.
    """
    kind = mapping.get("model_type")
    if isinstance(kind, str) and kind in served:
        return
    if kind in ("gemma3", "gemma3_text"):
        raise SplitImageBlockError(
            f"{name} is a Gemma-3 model: the tokens of an image see each other in both directions, so a chunk that "
            "splits an image block has other KV than the whole, and its sliding layers drop what leaves their window; "
            "this version does not serve it"
        )
    if kind == "internvl_chat":
        raise UnknownModelError(
            f"{name} is in the format internvl_chat, which runs on code of its own (trust_remote_code); this version "
            "serves the same model in the format of transformers: load the repository whose name ends in -hf or -HF, "
            "such as OpenGVLab/InternVL3-1B-hf or OpenGVLab/InternVL3_5-1B-HF"
        )
    if kind == "phi3_v":
        raise UnknownModelError(
            f"{name} is a phi3_v model (Phi-3-vision, Phi-3.5-vision), which runs on code of its own "
            "(trust_remote_code): transformers has no such model that a port could be held against, so this version "
            "does not serve it. Of models of its size it serves Qwen/Qwen2.5-VL-3B-Instruct, Qwen/Qwen3-VL-4B-Instruct "
            "and llava-hf/llava-onevision-qwen2-7b-ov-hf"
        )
    raise UnknownModelError(f"{name} is a {short(kind)} model; this version serves {', '.join(sorted(served))}")
