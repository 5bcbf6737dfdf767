"""`kamera bench form`: what a patch costs to form, and after how many reuses that has paid."""

import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kamera_jax as kj
from kamera_jax.backbone import Backbone
from kamera_jax.chunk import source_of
from kamera_jax.forward import preamble_chunk, run
from kamera_jax.inference.encode import encode_segment, run_chunk
from kamera_jax.kv import KVSpec, Segment, bucket
from kamera_jax.rope import RopeSpec, inverse_frequencies
from kamera_jax.window.reuse import write_donated
from kamera_jax.window.window import aligned
from models.blocks.attention import GroupedQuery
from models.blocks.decoder import DecoderConfig, text_declaration
from models.blocks.params import init_params
from models.forward import COLLECTS, forward

LENGTHS = (256, 512, 1024)
RANK = 32

Progress = Callable[[str, int, int], None]
"""Called with the name of a step, how many of its items are done, and how many there are."""


class RandomDecoder:
    """A text decoder of random weights as a backbone, to measure costs with.

    An item is a number of tokens. By default there are 8 layers of width 1024, in f32.
    """

    eos = (-1,)
    attends_in_place = True
    collects = COLLECTS

    def __init__(self, *, layers: int = 8, width: int = 1024, heads: int = 8, kv_heads: int = 4) -> None:
        """Draw the weights; the feed-forward part is 2.75 times as wide."""
        head_dim = width // heads
        rope = RopeSpec(tuple(inverse_frequencies(head_dim, 1e4).tolist()), head_dim)
        config = DecoderConfig(
            vocab_size=1024,
            hidden_size=width,
            intermediate_size=width * 11 // 4,
            num_hidden_layers=layers,
            rms_norm_eps=1e-6,
            attention=GroupedQuery(heads=heads, kv_heads=kv_heads, head_dim=head_dim),
            rope=rope,
            tie_word_embeddings=True,
        )
        self.config = config
        self.params = {"text": init_params(text_declaration(config), jax.random.key(0))}
        self.fingerprint = hashlib.sha256(repr(config).encode()).hexdigest()
        rot, free, groups = config.attention.kv_widths
        self.spec = KVSpec(layers, rot, free, groups, rope, "float32", self.fingerprint)
        self.forward = partial(forward, config)
        self.preamble = self.prepare(16)

    def prepare(self, item: int) -> Segment:
        """Random tokens, the same for the same number."""
        tokens = np.zeros(bucket(item), np.int32)
        tokens[:item] = np.random.default_rng(item).integers(0, self.config.vocab_size, item)
        positions = jnp.arange(len(tokens), dtype=jnp.float32)[None]
        content = hashlib.sha256(tokens.tobytes()).hexdigest()
        return Segment({"tokens": jnp.asarray(tokens)}, positions, jnp.int32(item), float(item), content)

    def tail(self, text: str) -> Segment:
        """The question as random tokens, as many as it has letters."""
        return self.prepare(len(text))

    def decode(self, tokens: Sequence[int]) -> str:
        """Token ids as decimal numbers."""
        return " ".join(map(str, tokens))


def side_by_side(calls: dict[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    """Median seconds of each call, taken in turns after one run that compiles."""
    for call in calls.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def measure(
    vlm: Any,
    *,
    lengths: Sequence[int] = LENGTHS,
    rank: int | None = RANK,
    runs: int = 5,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Milliseconds of every step of a chunk's life, behind another chunk of its length, through the public functions.

    Args:
        vlm: a backbone whose items are numbers of tokens.
        lengths: tokens of the chunks.
        rank: rank of the patch; None for the default size.
        runs: runs of every step, taken in turns, of which the median is returned.
        progress: called before every chunk, and at the end.

    Returns:
        What ``--json`` writes. A patch has paid after ``break_even`` reuses: form ÷ (re-prefill − apply).

    Raises:
        ValueError: a chunk of no tokens, or a rank below 1.
    """
    rows = []
    for done, length in enumerate(lengths):
        progress("chunks", done, len(lengths))
        rows.append(_row(vlm, length, rank, runs))
    progress("chunks", len(lengths), len(lengths))
    return {
        "rows": rows,
        "rank": rank,
        "runs": runs,
        "layers": vlm.spec.layers,
        "features": vlm.spec.rot_dim + vlm.spec.free_dim,
        "dtype": vlm.spec.dtype,
        "device": jax.devices()[0].device_kind,
        "versions": {"kamera-jax": kj.__version__, "jax": version("jax")},
    }


def _row(vlm: Any, length: int, rank: int | None, runs: int) -> dict[str, Any]:
    if length < 1:
        raise ValueError(f"a chunk needs at least one token; got {length}")
    return lifetime(vlm, kj.encode(vlm, length + 1), kj.encode(vlm, length), rank, runs)


def lifetime(vlm: Backbone, before: kj.Chunk, chunk: kj.Chunk, rank: int | None, runs: int) -> dict[str, Any]:
    """Milliseconds of every step of a chunk's life behind another chunk; a row of `measure`.

    Args:
        vlm: the model.
        before, chunk: canonical, with their sources.
        rank: rank of the patch; None for the default size.
        runs: runs of every step, of which the median is returned.
    """
    slots = sum(aligned(tokens) for tokens in (preamble_chunk(vlm).length, before.length, chunk.length))
    window = kj.append(kj.Window.empty(vlm, slots), before)
    patch = kj.form_patch(vlm, chunk, context=window, rank=rank)
    there = source_of(chunk).at(window.next_position)

    def formed() -> Any:
        fresh = kj.form_patch(vlm, chunk, context=window, rank=rank)
        return fresh.factors, fresh.mass, fresh.residual

    def prefilled() -> Any:
        return kj.append(window, run_chunk(vlm, window, source_of(chunk))[0]).state

    seconds = side_by_side(
        {
            "encode": lambda: encode_segment(vlm, source_of(chunk)).kv,
            "forward": lambda: run(vlm.params, there, window.state, forward=vlm.forward).kv,
            "form": formed,
            "apply": lambda: kj.append(window, chunk, patch).state,
            "reprefill": prefilled,
        },
        runs,
    )
    return {
        "tokens": chunk.length,
        **{f"{name}_ms": 1e3 * value for name, value in seconds.items()},
        "form_of_forward": seconds["form"] / seconds["forward"],
        "break_even": seconds["form"] / (seconds["reprefill"] - seconds["apply"]),
        "patch_share": patch.nbytes / chunk.nbytes,
    }


def apply_ranks(vlm: Any, length: int, ranks: dict[str, Sequence[int]], runs: int) -> dict[str, float]:
    """Milliseconds to apply random patches of these ranks per layer, by name, taken in turns.

    Args:
        vlm: a backbone whose items are numbers of tokens.
        length: tokens of the chunk.
        ranks: ranks of every layer, by the patch's name.
        runs: runs of every patch, of which the median is returned.
    """
    chunk = kj.encode(vlm, length)
    tokens = chunk.kv.rot.shape[1]
    features = vlm.spec.rot_dim + vlm.spec.free_dim
    state = vlm.spec.empty_state(tokens)
    rng = np.random.default_rng(0)

    def applied(used: Sequence[int]) -> Callable[[], Any]:
        u, v = (jnp.asarray(rng.standard_normal((len(used), max(used), n)), jnp.float32) for n in (tokens, features))
        factors = kj.Factors(u, v, jnp.asarray(used, jnp.int32))
        current = [jax.tree.map(jnp.copy, state)]

        def once() -> Any:
            current[0] = write_donated(current[0], 0, chunk.kv, factors, chunk.positions, length, spec=vlm.spec.rope)
            return current[0].rot

        return once

    seconds = side_by_side({name: applied(used) for name, used in ranks.items()}, runs)
    return {f"{name}_ms": 1e3 * value for name, value in seconds.items()}
