"""How far the ports are from transformers: `make parity-results`."""

import json
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import tests.conftest  # noqa: F401  # declares operators of torchvision, as in every test
from kamera_jax.forward import run
from tests.parity import test_language_models, text_pairs
from tests.parity.oracle import relative
from tests.parity.pairs import CONFIGS, MORE
from tests.parity.test_ports import PROMPTS, QUESTION


def measure() -> dict[str, dict[str, float]]:
    """The worst relative errors of logits and of any layer's KV, by architecture."""
    worst: dict[str, dict[str, float]] = {}
    texts = tuple(test_language_models.PROMPTS.values())
    models = {name: (text_pairs.TextPair, config, texts) for name, config in text_pairs.CONFIGS.items()}
    models = {name: (*each, PROMPTS) for name, each in (CONFIGS | MORE).items()} | models
    for name, (kind, config, prompts) in models.items():
        row = worst.setdefault(name.partition(":")[0], {"configurations": 0, "prompts": 0, "logits": 0.0, "kv": 0.0})
        row["configurations"] += 1
        with tempfile.TemporaryDirectory() as folder:
            pair = kind(config, Path(folder), seed=len(name.partition(": ")[2]))
            for names in prompts:
                prompt = pair.prompt(pair.items(names), QUESTION)
                segment = prompt.joined()
                tokens = len(prompt.ids)
                at = jnp.arange(segment.positions.shape[1])
                output = run(pair.vlm.params, segment, None, at, forward=pair.vlm.forward)
                rot = pair.rotated(output.kv, segment.positions)[:, :tokens]
                errors = [
                    relative(rot, prompt.full.rot, layers=True),
                    relative(np.asarray(output.kv.free)[:, :tokens], prompt.full.free, layers=True),
                ]
                row["kv"] = max(row["kv"], float(np.max(errors)))
                row["logits"] = max(
                    row["logits"], float(relative(np.asarray(output.logits)[:tokens], prompt.full.logits))
                )
                row["prompts"] += 1
        jax.clear_caches()
    return worst


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(measure(), indent=2) + "\n", encoding="utf-8")
