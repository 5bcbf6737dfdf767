"""A port and transformers on the same files and the same messages: prompts, runs, and how far apart they are."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeThinkerTextTopKRouter
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextTopKRouter

import kamera_jax as kj
from eval.tiny.vocabulary import VOCABULARY, build_tokenizer
from kamera_jax.forward import run
from models import load
from tests.pictures import width_first

CELLS = {"square": (3, 3), "wide": (2, 7), "tall": (9, 1), "dot": (1, 1)}
"""Heights and widths of images in merged tokens, where the image's size sets their number."""


@dataclass(frozen=True)
class Run:
    """What transformers made of S tokens.

    Attributes:
        logits: [S, V].
        rot, free: [L, S, F] as it caches them, so rotated.
        scores: what experts were chosen by, of the layers that have some [layers, S, X].
        experts: those chosen, in order of their number [layers, S, k].
    """

    logits: np.ndarray
    rot: np.ndarray
    free: np.ndarray
    scores: np.ndarray | None = None
    experts: np.ndarray | None = None


@dataclass(frozen=True)
class Media:
    """Images and videos, preprocessed: what transformers' model takes, and how many tokens stand for each.

    Attributes:
        tensors: what the model takes.
        counts: tokens of each image.
        video_counts: tokens of each video.
        intervals: positions between two temporal patches of each video.
        stamps: what the processor writes before each temporal patch of each video.
        audio_counts: tokens of each recording.
    """

    tensors: dict[str, torch.Tensor]
    counts: tuple[int, ...]
    video_counts: tuple[int, ...] = ()
    intervals: tuple[float, ...] = ()
    stamps: tuple[tuple[str, ...], ...] = ()
    audio_counts: tuple[int, ...] = ()


class Pair:
    """One random model, as transformers has it and as `models.load` reads it; what differs by port is overridden."""

    unreadable: tuple[int, ...] = ()
    """Tokens that transformers reads as others once the model has said them."""

    def __init__(self, config: dict[str, Any], folder: Path, *, seed: int) -> None:
        text = {
            "vocab_size": len(VOCABULARY),
            "bos_token_id": token("endoftext"),
            "eos_token_id": token("im_end"),
            **config.get("text", {}),
        }
        # Scores of order one: at HF's 0.02 attention is all but uniform and a mask hardly shows, while at twice this
        # 192 features are so ill-conditioned that transformers in f32 is 1e-5 away from itself in f64.
        text["initializer_range"] = 1.2 * text.get("hidden_size", 64) ** -0.5
        self.config = {**config, "text": text}
        self.hf = self.build(seed)
        self.save(folder)
        self.write_tokenizer(folder)
        if (preprocessing := self.preprocessing()) is not None:
            (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
        self.folder = folder
        self.vlm = load(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.full_runs: dict[tuple[bytes, ...], Run] = {}

    def build(self, seed: int) -> Any:
        """The random model."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write its hub folder, without tokenizer and preprocessing."""
        raise NotImplementedError

    def write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer and its chat template."""
        build_tokenizer(folder)

    def preprocessing(self) -> dict[str, Any] | None:
        """What preprocessor_config.json says; None where there is no such file."""
        raise NotImplementedError

    def preprocessed(self, images: Sequence[Image.Image]) -> Media:
        """Images as the model takes them; one at least."""
        raise NotImplementedError

    @property
    def cell(self) -> int:
        """Pixels along a side of a merged token."""
        raise NotImplementedError

    def positions(self, ids: np.ndarray, media: Media) -> np.ndarray:
        """transformers' positions i64[A, S] of ids [S]."""
        return np.arange(len(ids))[None]

    def features(self, layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """What a cache layer holds of rot and free [1, H, S, ·]."""
        return layer.keys, layer.values

    def expanded(self, template: Sequence[int], media: Media) -> list[int]:
        """What the template writes, with as many placeholders as there are tokens."""
        counts = {token("image_pad"): iter(media.counts), token("video_pad"): iter(media.video_counts)}
        copies = [(each, next(counts[each]) if each in counts else 1) for each in template]
        return [copy for each, count in copies for copy in [each] * count]

    def generation(self, prompt: "Prompt") -> dict[str, torch.Tensor]:
        """What ``generate`` needs beside ids and media."""
        return {}

    @cached_property
    def hf_bf16(self) -> Any:
        """The model in bf16, as transformers loads it: what sways the router stays in f32."""
        low = copy.deepcopy(self.hf).to(torch.bfloat16)
        for gate, exact in zip(_gates(low), _gates(self.hf), strict=True):
            if hasattr(exact, "e_score_correction_bias"):
                gate.e_score_correction_bias = exact.e_score_correction_bias.clone()
        return low

    def image(self, name: str) -> Image.Image:
        """Noise; ``"odd"`` is no whole number of tokens, so it is resized, and so is ``"large"``, beyond the limit."""
        cell = self.cell
        sizes = {name: (rows * cell, columns * cell) for name, (rows, columns) in CELLS.items()}
        sizes |= {"odd": (2 * cell - 3, 5 * cell + 3), "large": (10 * cell, 12 * cell)}
        seed = sorted(sizes).index(name)
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*sizes[name], 3), np.uint8))

    def items(self, names: Sequence[Any]) -> list[Any]:
        """Images by their names; other strings are text, and a tuple is one item of several parts."""
        return [self.items(name) if isinstance(name, tuple) else self.item(name) for name in names]

    def item(self, name: str) -> Any:
        """An image by its name; anything else is text."""
        return self.image(name) if name in {*CELLS, "odd", "large"} else name

    def prompt(self, items: Sequence[Any], question: str) -> "Prompt":
        return Prompt(self, items, question)

    def media(self, items: Sequence[Any]) -> Media:
        """The images among ``items``, preprocessed by transformers, with Pillow's resizing in the order of the port."""
        images = [item for item in items if isinstance(item, Image.Image)]
        videos = [item for item in items if isinstance(item, kj.Video)]
        with width_first():
            media = self.preprocessed(images) if images else Media({}, ())
        return self.with_videos(media, videos) if videos else media

    def with_videos(self, media: Media, videos: Sequence[kj.Video]) -> Media:
        """The same with videos; one at least."""
        raise NotImplementedError

    def run(
        self,
        ids: np.ndarray,
        positions: np.ndarray,
        media: Media,
        *,
        mask: np.ndarray | None = None,
        model: Any = None,
    ) -> Run:
        """transformers on ids [S] at positions [A, S]; mask [S, S] is True where a row sees a column."""
        model = model or self.hf
        at = torch.from_numpy(positions)[:, None]
        given = {"input_ids": torch.from_numpy(ids)[None], "position_ids": at if len(positions) > 1 else at[0]}
        if mask is not None:
            hidden = torch.finfo(torch.float32).min
            given["attention_mask"] = torch.where(torch.from_numpy(mask), 0.0, hidden)[None, None]
        scores = []
        experts = []

        def routed(gate: Any, _: Any, output: tuple[torch.Tensor, ...]) -> None:
            if hasattr(gate, "e_score_correction_bias"):
                scores.append(output[0].sigmoid() + gate.e_score_correction_bias)
            else:
                scores.append(output[0].float().softmax(-1))
            experts.append(output[2].sort(-1).values)

        gates = _gates(model)
        hooks = [gate.register_forward_hook(routed) for gate in gates]
        pixels = {
            key: each.to(model.dtype) if each.is_floating_point() else each for key, each in media.tensors.items()
        }
        with torch.no_grad():
            output = model(**given, **pixels, use_cache=True)
        for hook in hooks:
            hook.remove()

        def flat(tensors: Sequence[torch.Tensor]) -> np.ndarray:
            return torch.stack(list(tensors))[:, 0].transpose(1, 2).flatten(2).float().numpy()

        rot, free = zip(*map(self.features, output.past_key_values.layers), strict=True)
        routing = (torch.stack(scores).float().numpy(), torch.stack(experts).numpy()) if gates else (None, None)
        return Run(output.logits[0].float().numpy(), flat(rot), flat(free), *routing)

    def rotated(self, kv: kj.KV, positions: jax.Array) -> np.ndarray:
        """Un-rotated rot [L, T, F] at absolute positions [A, T]."""
        spec = self.vlm.spec
        return np.asarray(_rotated(kv.rot, positions, heads=spec.heads, rope=spec.rope))


def _gates(model: Any) -> list[Any]:
    kinds = (Qwen3VLMoeTextTopKRouter, Qwen3OmniMoeThinkerTextTopKRouter)
    return [
        module for module in model.modules() if hasattr(module, "e_score_correction_bias") or isinstance(module, kinds)
    ]


def token(word: str) -> int:
    """The id of a special token."""
    return VOCABULARY.index(f"<|{word}|>")


@partial(jax.jit, static_argnames=("heads", "rope"))
def _rotated(keys: jax.Array, positions: jax.Array, *, heads: int, rope: kj.RopeSpec) -> jax.Array:
    split = keys.reshape(*keys.shape[:2], heads, -1)
    return jax.vmap(lambda layer: kj.rope.rotate(layer, positions, rope))(split).reshape(keys.shape)


class Prompt:
    """One user turn, in both spellings: transformers' tokens, and the port's segments at their places."""

    def __init__(self, pair: Pair, items: Sequence[Any], question: str) -> None:
        self.pair = pair
        self.items = items
        self.question = question
        parts = [part for item in items for part in (item if isinstance(item, list) else [item])]
        kinds = {kj.Audio: "audio", kj.Video: "video", Image.Image: "image"}
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": kinds[type(part)]} for part in parts
        ]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        template = pair.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        self.media = pair.media(parts)
        self.ids = np.array(pair.expanded(template, self.media))

    @cached_property
    def kinds(self) -> torch.Tensor:
        """What 5.x calls mm_token_type_ids [1, S]: 1 for an image's tokens."""
        return torch.from_numpy(self.ids == token("image_pad")).int()[None]

    @cached_property
    def positions(self) -> np.ndarray:
        """transformers' positions i64[A, S]."""
        return self.pair.positions(self.ids, self.media)

    @cached_property
    def full(self) -> Run:
        """transformers on the whole prompt, run once for all tests of the pair."""
        tensors = (each.numpy() for each in self.media.tensors.values())
        key = tuple(each.tobytes() for each in (self.ids, self.positions, *tensors))
        if key not in self.pair.full_runs:
            self.pair.full_runs[key] = self.pair.run(self.ids, self.positions, self.media)
        return self.pair.full_runs[key]

    @cached_property
    def segments(self) -> list[kj.Segment]:
        """The port's preamble, chunks and tail, at their absolute positions."""
        return self.segments_of(self.pair.vlm)

    def segments_of(self, vlm: Any) -> list[kj.Segment]:
        """As `segments`, of the same files loaded otherwise."""
        segments = []
        base = 0.0
        for segment in (vlm.preamble, *map(vlm.prepare, self.items), vlm.tail(self.question)):
            segments.append(segment.at(base))
            base += segment.advance
        return segments

    @cached_property
    def spans(self) -> list[slice]:
        """Where each segment's tokens stand in the prompt."""
        ends = np.cumsum([0, *(int(segment.length) for segment in self.segments)])
        return [slice(int(a), int(b)) for a, b in zip(ends[:-1], ends[1:], strict=True)]

    def joined(self, vlm: Any = None, size: int = 64) -> kj.Segment:
        """The segments as one, every case padded alike so that one program serves them all."""
        segments = self.segments if vlm is None else self.segments_of(vlm)
        width = self.pair.vlm.config.text.hidden_size
        padded = {
            "tokens": np.zeros(size, np.int32),
            "media": np.zeros((size, width), np.float32),
            "is_media": np.zeros(size, bool),
        }
        positions = np.zeros((len(self.positions), size), np.float32)
        for segment, span in zip(segments, self.spans, strict=True):
            n = int(segment.length)
            positions[:, span] = np.asarray(segment.positions)[:, :n]
            for name, rows in segment.inputs.items():
                if name not in padded:
                    padded[name] = np.zeros((size, *rows.shape[1:]), np.float32)
                padded[name][span] = np.asarray(rows)[:n]
        inputs = {name: jnp.asarray(rows) for name, rows in padded.items()}
        return kj.Segment(inputs, jnp.asarray(positions), jnp.int32(len(self.ids)))

    def tail_logits(self, window: kj.Window) -> np.ndarray:
        """The port's logits at every token of the tail, asked of a window."""
        vlm = self.pair.vlm
        tail = vlm.tail(self.question).at(window.next_position)
        output = run(vlm.params, tail, window.state, jnp.arange(tail.positions.shape[1]), forward=vlm.forward)
        return np.asarray(output.logits)[: int(tail.length)]


def window_kv(window: kj.Window) -> tuple[np.ndarray, np.ndarray]:
    """Rotated rot and free [L, S, F] of a window's valid slots."""
    valid = np.asarray(window.state.valid)
    return np.asarray(window.state.rot)[:, valid], np.asarray(window.state.free)[:, valid]


def assert_close(given: Any, expected: np.ndarray, *, layers: bool = False) -> None:
    """The largest difference is at most 1e-5 of the largest value; with ``layers``, in each [L, …] by itself."""
    given = np.asarray(given)
    assert given.shape == expected.shape and given.dtype == expected.dtype == np.float32
    error = relative(given, expected, layers=layers)
    assert (error <= 1e-5).all(), error


def assert_same_positions(given: np.ndarray, expected: np.ndarray) -> None:
    """Whole numbers are equal; among fractions, which are added up in another order, last bits may differ."""
    if (expected == np.round(expected)).all():
        np.testing.assert_array_equal(given, expected)
        return
    assert given.shape == expected.shape
    np.testing.assert_allclose(given, expected, rtol=3e-7, atol=0)


def relative(given: np.ndarray, expected: np.ndarray, *, layers: bool = False) -> np.ndarray:
    """The largest difference over the largest value, of the whole or of each layer [L]."""
    axes = tuple(range(1, expected.ndim)) if layers else None
    return np.abs(given - expected).max(axes) / np.abs(expected).max(axes)


def assert_prefilled(window: kj.Window, prompt: Any) -> None:
    """A window holds HF's full prefill of a prompt: KV of every layer, and logits at every token of the tail."""
    tail = prompt.spans[-1]
    rot, free = window_kv(window)
    assert_close(rot, prompt.full.rot[:, : tail.start], layers=True)
    assert_close(free, prompt.full.free[:, : tail.start], layers=True)
    assert_close(prompt.tail_logits(window), prompt.full.logits[tail])


def frobenius(given: Any, expected: Any) -> np.ndarray:
    """Relative error per layer [L]."""
    given, expected = (np.asarray(x).astype(np.float64) for x in (given, expected))
    return np.sqrt(np.square(given - expected).sum((1, 2)) / np.square(expected).sum((1, 2)))
