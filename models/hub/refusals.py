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
        UnknownModelError: any other architecture that is not served.
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
    raise UnknownModelError(f"{name} is a {short(kind)} model; this version serves {', '.join(sorted(served))}")
