"""What attention costs: a decoder beside transformers on torch on this machine, and the memory of programs for TPUs.

`make bench-attention` measures anew, and writes docs/results/attention.json; a part that is not measured keeps what was
measured before. Times are medians of calls taken in turns, for a machine that is never idle; read the ratios.
"""

import argparse
import json
import os
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kamera_jax as kj
from benchmarks import compiled
from eval.commands.bench import RandomDecoder, lifetime, side_by_side
from kamera_jax.inference.encode import encode_segment
from kamera_jax.kv import KVSpec, Segment, WindowState
from kamera_jax.rope import RopeSpec, inverse_frequencies
from models.blocks.attention import GroupedQuery
from models.blocks.decoder import DecoderConfig, text_declaration
from models.blocks.params import init_params, is_info
from models.forward import forward

ENCODED = (256, 1024, 4096)
PREFILLED = (1024, 2048)
FORMED = (256, 1024)
"""Tokens of a chunk; of each of two chunks that are prefilled together; of a chunk that a patch is formed for."""

COMPILED = (
    ("qwen2.5-vl-7b", 1024, 32768, ()),
    ("qwen2.5-vl-7b", 1024, 32768, ("attention_mass",)),
    ("qwen2.5-vl-3b", 8192, 0, ()),
    ("qwen2.5-vl-3b", 8192, 0, ("attention_mass",)),
)
"""Forwards compiled for TPUs: shape, present tokens, window slots before them, what is collected."""


def config(width: int, inner: int, layers: int, attention: GroupedQuery, vocab: int, tied: bool) -> DecoderConfig:
    """A Llama of these sizes."""
    head_dim = attention.head_dim
    rope = RopeSpec(tuple(inverse_frequencies(head_dim, 1e5).tolist()), head_dim)
    return DecoderConfig(vocab, width, inner, layers, 1e-5, attention, rope, tied)


SHAPES = {
    "smollm2-135m": config(576, 1536, 30, GroupedQuery(9, 3, 64), 49152, True),
    "qwen2.5-vl-3b": config(2048, 11008, 36, GroupedQuery(16, 2, 128, bias=True), 151936, True),
    "qwen2.5-vl-7b": config(3584, 18944, 28, GroupedQuery(28, 4, 128, bias=True), 152064, False),
}


class RandomLanguageModel(RandomDecoder):
    """A decoder of a named shape with random weights as a backbone; an item is a number of tokens."""

    def __init__(self, name: str) -> None:
        text = SHAPES[name]
        self.config = text
        self.params = {"text": init_params(text_declaration(text), jax.random.key(0))}
        self.fingerprint = name
        rot, free, groups = text.attention.kv_widths
        self.spec = KVSpec(text.num_hidden_layers, rot, free, groups, text.rope, "float32", name)
        self.forward = partial(forward, text)
        self.preamble = self.prepare(16)


def on_torch(vlm: RandomLanguageModel) -> Any:
    """The same weights in transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    text = vlm.config
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_hidden_layers=text.num_hidden_layers,
            num_attention_heads=text.attention.heads,
            num_key_value_heads=text.attention.kv_heads,
            head_dim=text.attention.head_dim,
            rms_norm_eps=text.rms_norm_eps,
            max_position_embeddings=8192,
            rope_parameters={"rope_type": "default", "rope_theta": 1e5},
            tie_word_embeddings=True,
        )
    ).eval()
    ours = vlm.params["text"]
    table = {"embed_tokens.weight": ours["embed"]["w"], "norm.weight": ours["norm"]}
    layers = ours["layers"]
    for i in range(text.num_hidden_layers):
        table[f"layers.{i}.input_layernorm.weight"] = layers["attn_norm"][i]
        table[f"layers.{i}.post_attention_layernorm.weight"] = layers["mlp_norm"][i]
        for part, room in (("attn", "self_attn"), ("mlp", "mlp")):
            for name, layer in layers[part].items():
                table[f"layers.{i}.{room}.{name}_proj.weight"] = layer["w"][i].T
    state = {f"model.{name}": torch.from_numpy(np.array(array)) for name, array in table.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected, (missing, unexpected)
    return model


def speed(runs: int) -> list[dict[str, Any]]:
    """Seconds of transformers over ours, for encoding and prefill, and what forming a patch takes of its forward."""
    import torch

    vlm = RandomLanguageModel("smollm2-135m")
    peer = on_torch(vlm)
    check(vlm, peer)

    def theirs(*counts: int) -> Any:
        tokens = np.concatenate([np.asarray(vlm.prepare(count).inputs["tokens"]) for count in counts])
        with torch.no_grad():
            return peer(torch.from_numpy(tokens)[None].long(), logits_to_keep=1, use_cache=True).logits.numpy()

    rows = []

    def beside(row: dict[str, Any], ours: Any, *counts: int) -> None:
        seconds = side_by_side({"ours": ours, "torch": lambda: theirs(*counts)}, runs)
        row |= {f"{name}_s": value for name, value in seconds.items()}
        rows.append(row | {"ratio": seconds["torch"] / seconds["ours"]})
        print(json.dumps(rows[-1]), flush=True)

    for count in ENCODED:
        segment = vlm.prepare(count)
        beside({"what": "encode", "tokens": count}, partial(encode, vlm, segment), count)
    for count in PREFILLED:
        items = [count, count - 1]
        beside({"what": "prefill", "tokens": [count, count]}, partial(prefill, vlm, items), count, count)
    for count in FORMED:
        before, chunk = (kj.encode(vlm, item) for item in (count, count - 1))
        row = lifetime(vlm, before, chunk, 32, runs)
        row = {"what": "form", "tokens": count, **{name: row[name] for name in ("forward_ms", "form_ms")}}
        rows.append(row | {"form_of_forward": row["form_ms"] / row["forward_ms"]})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def encode(vlm: RandomLanguageModel, segment: Segment) -> Any:
    """A chunk's KV."""
    return encode_segment(vlm, segment).kv


def prefill(vlm: RandomLanguageModel, items: Sequence[int]) -> Any:
    """A window's state."""
    return kj.prefill(vlm, items).state


def check(vlm: RandomLanguageModel, peer: Any) -> None:
    """Raise unless both give the same logits."""
    import torch

    segment = vlm.prepare(64)
    ours = np.asarray(vlm.forward(vlm.params, segment, None, logits_at=jnp.arange(64)).logits)
    with torch.no_grad():
        theirs = peer(torch.from_numpy(np.asarray(segment.inputs["tokens"]))[None].long()).logits[0].numpy()
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    if error > 1e-4:
        raise AssertionError(f"the two models' logits differ by {error:.1e}; they are to be one model")


def program(target: str, name: str, tokens: int, slots: int, collect: tuple[str, ...]) -> Any:
    """A forward of ``tokens`` bf16 tokens behind a window of ``slots``, compiled for a TPU."""
    text = SHAPES[name]
    layers = text.num_hidden_layers
    struct = jax.ShapeDtypeStruct
    declared = jax.tree.map(lambda info: struct(info.shape, jnp.bfloat16), text_declaration(text), is_leaf=is_info)
    segment = Segment({"tokens": struct((tokens,), jnp.int32)}, struct((1, tokens), jnp.float32), struct((), jnp.int32))
    state = None
    if slots:
        rot, free = (struct((layers, slots, width), jnp.bfloat16) for width in text.attention.kv_widths[:2])
        state = WindowState(rot, free, struct((1, slots), jnp.float32), struct((slots,), jnp.bool_))

    def last(params: Any, segment: Segment, state: WindowState | None) -> Any:
        at = segment.length[None] - 1
        return forward(text, params, segment, state, logits_at=at, collect=collect)

    return compiled.compile_for(target, last, {"text": declared}, segment, state)


def memory(target: str = "v6e") -> list[dict[str, Any]]:
    """Bytes of arguments, results and temporaries of `COMPILED`."""
    rows = []
    for name, tokens, slots, collect in COMPILED:
        analysis = program(target, name, tokens, slots, collect).memory_analysis()
        rows.append(
            {
                "target": target,
                "shape": name,
                "tokens": tokens,
                "slots": slots,
                "collect": list(collect),
                "temporaries": analysis.temp_size_in_bytes,
                "arguments": analysis.argument_size_in_bytes,
                "results": analysis.output_size_in_bytes,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure attention.")
    parser.add_argument("--only", choices=("speed", "memory"), help="measure one part and keep the other")
    parser.add_argument("--runs", type=int, default=5, help="of which the median is kept")
    parser.add_argument("--json", type=Path, default=Path("docs/results/attention.json"))
    arguments = parser.parse_args()
    result = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    parts = {"speed": partial(speed, arguments.runs), "memory": memory}
    for name in [arguments.only] if arguments.only else parts:
        result[name] = parts[name]()
    result["versions"] = {name: version(name) for name in ("jax", "torch", "transformers")}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
