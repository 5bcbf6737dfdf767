"""A GGUF file's tensors under their hub names, one by one: rows put back in the hub's order, values dequantised."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from models.errors import few
from models.hub.gguf.errors import GgufTensorSizeError, MissingGgufTensorError, UnexpectedGgufTensorError
from models.hub.gguf.file import GgufFile
from models.hub.gguf.metadata import FAMILIES, FREQUENCIES, architecture

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""The hub's names of a layer's modules, by llama.cpp's."""

_PAIRED = re.compile(r"blk\.\d+\.attn_([qk])\.(?:weight|bias)")
"""Tensors whose rows llama.cpp stores in interleaved pairs, where it does."""


class HubTensors:
    """The tensors of a file as the hub has them.

    Attributes:
        shapes: by hub name, in the file's order.
    """

    def __init__(self, file: GgufFile, config: Mapping[str, Any]) -> None:
        """Hold the file's tensors against its configuration.

        Args:
            file: the file.
            config: what `models.hub.gguf.metadata.config_of` gives.

        Raises:
            MissingGgufTensorError, UnexpectedGgufTensorError, GgufTensorSizeError: the tensors are not the model's.
        """
        self._file = file
        self._interleaved = FAMILIES[architecture(file)].interleaved
        self._heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
        # No more layers than tensors: a number of layers that is wrong must not fill the memory.
        expected = _expected(architecture(file), config, min(config["num_hidden_layers"], len(file.tensors) + 1))
        stored = {name: info.shape for name, info in file.tensors.items() if name != FREQUENCIES}
        again = "fetch the file again, or convert the model anew"
        if missing := [name for name in expected if name not in stored]:
            raise MissingGgufTensorError(f"{file.path} lacks {few(missing)}, which the model needs; {again}")
        if unknown := [name for name in stored if name not in expected]:
            raise UnexpectedGgufTensorError(
                f"{file.path} has {few(unknown)}, for which a {architecture(file)} model of its metadata has no use; "
                f"they may change the computation: {again}"
            )
        for name, shape in stored.items():
            if shape != expected[name][1]:
                raise GgufTensorSizeError(
                    f"{file.path}: {name} has the shape {list(shape)}; expected {list(expected[name][1])} by its "
                    f"metadata: {again}"
                )
        self._sources = {expected[name][0]: name for name in stored}
        self.shapes = {expected[name][0]: shape for name, shape in stored.items()}

    def __iter__(self) -> Iterator[np.ndarray]:
        """Values of the tensors, float32, one at a time, in the order of `shapes`."""
        for name in self.shapes:
            yield self[name]

    def __getitem__(self, name: str) -> np.ndarray:
        """A tensor's values by its hub name, float32."""
        source = self._sources[name]
        rows = self._file.rows(source)
        paired = _PAIRED.fullmatch(source)
        if not (paired and self._interleaved):
            return self._file.dequantise(source, rows)
        heads = self._heads[paired[1]]
        if source.endswith(".bias"):
            return in_halves(self._file.dequantise(source, rows)[:, None], heads)[:, 0]
        # Every row is quantised alone, so that they can change places before.
        return self._file.dequantise(source, in_halves(rows, heads))


def in_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in the hub's order, which rotates the first half of a head against the second.

    llama.cpp rotates neighbours, and stores each row of the first half beside its partner of the second.
    """
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _expected(kind: str, config: Mapping[str, Any], layers: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """By llama.cpp's name: the hub's name and the shape of each tensor of the model's first ``layers`` layers."""
    family = FAMILIES[kind]
    width = config["hidden_size"]
    inner = config["intermediate_size"]
    head = config["head_dim"]
    queries = head * config["num_attention_heads"]
    keys = head * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (width,),
        "attn_q.weight": (queries, width),
        "attn_k.weight": (keys, width),
        "attn_v.weight": (keys, width),
        "attn_output.weight": (width, queries),
        "ffn_norm.weight": (width,),
        "ffn_gate.weight": (inner, width),
        "ffn_up.weight": (inner, width),
        "ffn_down.weight": (width, inner),
    }
    if family.norms:
        shapes |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
    if family.bias or config.get("attention_bias"):
        shapes |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
    if config.get("attention_bias"):
        shapes |= {"attn_output.bias": (width,)}
    vocabulary = (config["vocab_size"], width)
    expected = {
        "token_embd.weight": ("model.embed_tokens.weight", vocabulary),
        "output_norm.weight": ("model.norm.weight", (width,)),
    }
    if not config["tie_word_embeddings"]:
        expected["output.weight"] = ("lm_head.weight", vocabulary)
    for layer in range(layers):
        for name, shape in shapes.items():
            module, _, what = name.rpartition(".")
            expected[f"blk.{layer}.{name}"] = (f"model.layers.{layer}.{_LAYER[module]}.{what}", shape)
    return expected
