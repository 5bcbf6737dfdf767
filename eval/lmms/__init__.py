"""A model plug-in for lmms-eval: ``pip install "kamera-jax[lmms]"``, then ``lmms-eval eval --model kamera``."""

from typing import Any


def manifest() -> Any:
    """What lmms-eval's registry is told, by the entry point ``lmms_eval.models``; nothing of JAX is imported here.

    Returns:
        A ``ModelManifest`` with a class for tasks that give text and visuals apart, and one for tasks that give
        messages, which lmms-eval prefers (``--force_simple`` takes the other).
    """
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    simple = "eval.lmms.plugin.Kamera"
    return ModelManifest("kamera", simple_class_path=simple, chat_class_path="eval.lmms.plugin.KameraChat")
