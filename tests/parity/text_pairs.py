"""Text-only language models: random ones of every model type, against transformers."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers

import kamera_jax as kj
from tests.parity.oracle import Pair
from tests.parity.tiny_hf import randomize, save_hub_folder

_BASE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
_BASE |= {"num_key_value_heads": 2, "pad_token_id": 1}


class TextPair(Pair):
    """A model without media; its configuration has one section."""

    def __init__(self, config: dict[str, Any], folder: Path, *, seed: int) -> None:
        super().__init__({"text": {**_BASE, **config}}, folder, seed=seed)
        # AutoTokenizer builds Qwen2's anew from its vocabulary, and this vocabulary is not Qwen2's.
        self.tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)

    def build(self, seed: int) -> Any:
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(**self.config["text"])
        return randomize(transformers.AutoModelForCausalLM.from_config(config).eval(), seed)

    def save(self, folder: Path) -> None:
        save_hub_folder(self.hf, folder, sharded=self.hf.config.tie_word_embeddings)

    def preprocessing(self) -> None:
        return None

    def rotated(self, kv: kj.KV, positions: jax.Array) -> np.ndarray:
        """As transformers says which layers are rotated."""
        turned = super().rotated(kv, positions)
        rotary = getattr(self.hf.config, "no_rope_layers", None) or [1] * len(turned)
        return np.where(np.array(rotary[: len(turned)], bool)[:, None, None], turned, np.asarray(kv.rot))


_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
_POWERS = {"rope_type": "default", "rope_theta": 256.0}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama: 4 to 2 heads of 24, biases, llama3": {
        "model_type": "llama",
        "head_dim": 24,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": _LLAMA3,
    },
    "llama: 3 to 1 heads of 16, tied": {
        "model_type": "llama",
        "hidden_size": 48,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
    "mistral: 4 to 2 heads of 24, window of 256": {"model_type": "mistral", "head_dim": 24, "sliding_window": 256},
    "qwen2: 4 to 2 heads of 16, tied, YaRN": {
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "rope_parameters": _YARN,
    },
    "qwen2: 4 heads of 16, window of 256 in the last layer": {
        "model_type": "qwen2",
        "num_key_value_heads": 4,
        "use_sliding_window": True,
        "sliding_window": 256,
        "max_window_layers": 2,
    },
    "qwen3: 4 to 2 heads of 24, biases, linear": {
        "model_type": "qwen3",
        "head_dim": 24,
        "attention_bias": True,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    },
    "smollm3: 4 to 2 heads of 16, every fourth layer without RoPE": {"model_type": "smollm3", "num_hidden_layers": 5},
    "smollm3: 4 to 2 heads of 16, first and third layer without RoPE, biases, YaRN": {
        "model_type": "smollm3",
        "no_rope_layers": [0, 1, 0],
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
        "rope_parameters": _YARN,
    },
}
"""By name, which begins with the model type."""

FAR = {
    "llama": {"model_type": "llama", "rope_parameters": _POWERS, "max_position_embeddings": 200_000},
    "smollm3": {
        "model_type": "smollm3",
        "no_rope_layers": [1, 0, 1],
        "rope_parameters": _POWERS,
        "max_position_embeddings": 200_000,
    },
}
"""See `tests.parity.pairs.FAR`."""
