"""What attention costs: a decoder beside transformers on torch on this machine, and the memory of programs for TPUs.

`make bench-attention` measures anew, and writes docs/results/attention.json; a part that is not measured keeps what was
measured before. Times are medians of calls taken in turns; read the ratios. Where others use the machine too, those of
processor time say more than those of the clock, best on one core and with a few layers:
`taskset -c 0 python -m benchmarks.attention --only speed --layers 4`.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kamera_jax as kj
from benchmarks import compiled
from eval.commands.bench import RandomDecoder
from kamera_jax.forward import run
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

    def __init__(self, name: str, layers: int | None = None) -> None:
        """Draw the weights of all layers, or of the first ``layers``."""
        text = SHAPES[name] if layers is None else replace(SHAPES[name], num_hidden_layers=layers)
        self.config = text
        self.params = {"text": init_params(text_declaration(text), jax.random.key(0))}
        self.fingerprint = name
        rot, free, groups = text.attention.kv_widths
        self.spec = KVSpec(text.num_hidden_layers, rot, free, groups, text.rope, "float32", name)
        self.forward = partial(forward, text)
        self.preamble = self.prepare(16)


def without_broken_torchvision() -> None:
    """Hide a torchvision that was built for another torch: transformers imports it with every model, and fails."""
    try:
        import_module("torchvision")
    except (ImportError, OSError, RuntimeError):
        import transformers.utils as utils

        for module in (utils, utils.import_utils):
            module.is_torchvision_available = lambda: False


def on_torch(vlm: RandomLanguageModel) -> Any:
    """The same weights in transformers."""
    import torch

    without_broken_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(cores())
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


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_turns(calls: dict[str, Callable[[], Any]], runs: int) -> dict[str, dict[str, float]]:
    """Median seconds of each call, by the clock and of the processor, taken in turns after one run that compiles."""
    clocks = {"clock": time.perf_counter, "processor": time.process_time}
    seconds: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in calls} for clock in clocks}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(runs):
        for name, call in calls.items():
            start = {clock: read() for clock, read in clocks.items()}
            jax.block_until_ready(call())
            for clock, read in clocks.items():
                seconds[clock][name].append(read() - start[clock])
    return {
        clock: {name: statistics.median(times) for name, times in named.items()} for clock, named in seconds.items()
    }


def speed(runs: int, layers: int | None) -> list[dict[str, Any]]:
    """Encoding and prefill beside transformers, and forming a patch beside the forward that it takes."""
    import torch

    vlm = RandomLanguageModel("smollm2-135m", layers)
    peer = on_torch(vlm)
    check(vlm, peer)

    def theirs(*counts: int) -> Any:
        tokens = np.concatenate([np.array(vlm.prepare(count).inputs["tokens"]) for count in counts])
        with torch.no_grad():
            return peer(torch.from_numpy(tokens)[None].long(), logits_to_keep=1, use_cache=True).logits.numpy()

    rows = []

    def measured(what: str, tokens: list[int], calls: dict[str, Callable[[], Any]]) -> None:
        """``ratio`` is the first call's time over the second's."""
        seconds = in_turns(calls, runs)
        first, second = calls
        ratio = {clock: named[first] / named[second] for clock, named in seconds.items()}
        rows.append({"what": what, "tokens": tokens, "layers": vlm.config.num_hidden_layers, "cores": cores()})
        rows[-1] |= {**seconds, "ratio": ratio}
        print(json.dumps(rows[-1]), flush=True)

    for count in ENCODED:
        ours = partial(encode, vlm, vlm.prepare(count))
        measured("encode", [count], {"torch": partial(theirs, count), "ours": ours})
    for count in PREFILLED:
        ours = partial(prefill, vlm, [count, count - 1])
        measured("prefill", [count, count], {"torch": partial(theirs, count, count), "ours": ours})
    for count in FORMED:
        before, chunk = (kj.encode(vlm, item) for item in (count, count - 1))
        window = kj.append(kj.Window.empty(vlm, 16 + 2 * count), before)
        calls = {"form": partial(form, vlm, window, chunk), "forward": partial(conditioned, vlm, window, chunk)}
        measured("form", [count, count], calls)
    return rows


def encode(vlm: RandomLanguageModel, segment: Segment) -> Any:
    """A chunk's KV."""
    return encode_segment(vlm, segment).kv


def prefill(vlm: RandomLanguageModel, items: Sequence[int]) -> Any:
    """A window's state."""
    return kj.prefill(vlm, items).state


def form(vlm: RandomLanguageModel, window: kj.Window, chunk: kj.Chunk) -> Any:
    """All that a patch keeps."""
    patch = kj.form_patch(vlm, chunk, context=window, rank=32)
    return patch.factors, patch.mass, patch.residual


def conditioned(vlm: RandomLanguageModel, window: kj.Window, chunk: kj.Chunk) -> Any:
    """The chunk's KV by one forward on the window."""
    there = chunk.segment.at(window.next_position)
    return run(vlm.params, there, window.state, forward=vlm.forward).kv


def check(vlm: RandomLanguageModel, peer: Any) -> None:
    """Raise unless both give the same logits."""
    import torch

    segment = vlm.prepare(64)
    ours = np.asarray(vlm.forward(vlm.params, segment, None, logits_at=jnp.arange(64)).logits)
    with torch.no_grad():
        theirs = peer(torch.from_numpy(np.array(segment.inputs["tokens"]))[None].long()).logits[0].numpy()
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
    parser.add_argument("--layers", type=int, help="of the decoder whose speed is measured; all of them by default")
    parser.add_argument("--json", type=Path, default=Path("docs/results/attention.json"))
    arguments = parser.parse_args()
    result = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    parts = {"speed": partial(speed, arguments.runs, arguments.layers), "memory": memory}
    for name in [arguments.only] if arguments.only else parts:
        result[name] = parts[name]()
    result["versions"] = {name: version(name) for name in ("jax", "torch", "transformers")}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
