"""The port and transformers on the same files and the same messages: prompts, runs, and how far apart they are."""

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
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import kamera_jax as kj
from eval.tiny.vocabulary import VOCABULARY, build_tokenizer, image_processor_config
from kamera_jax.forward import run
from models import load
from tests.parity.tiny_hf import save_hub_folder, tiny_qwen2_5_vl

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}

CONFIGS: dict[str, dict[str, Any]] = {
    "4 to 2 heads of 16": {},
    "4 to 1 heads of 24, tied, windows": {
        "text": {
            "hidden_size": 96,
            "num_key_value_heads": 1,
            "num_hidden_layers": 2,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 4, 6]},
        },
        "vision": {"fullatt_block_indexes": [], "window_size": 24, "out_hidden_size": 96},
        "tie_word_embeddings": True,
    },
    "6 to 2 heads of 32, YaRN, full": {
        "text": {
            "hidden_size": 192,
            "num_attention_heads": 6,
            "num_hidden_layers": 4,
            "rope_parameters": {**YARN, "mrope_section": [4, 6, 6]},
        },
        "vision": {"fullatt_block_indexes": [0, 1, 2], "num_heads": 4, "out_hidden_size": 192},
    },
    "4 to 4 heads of 16, YaRN, tied": {
        "text": {"num_key_value_heads": 4, "rope_parameters": {**YARN, "factor": 2.0, "mrope_section": [4, 2, 2]}},
        "vision": {"depth": 4, "patch_size": 6, "window_size": 24, "fullatt_block_indexes": [1, 3]},
        "tie_word_embeddings": True,
    },
}

FAR: dict[str, Any] = {
    "text": {"rope_parameters": {"rope_type": "default", "rope_theta": 256.0, "mrope_section": [2, 3, 3]}}
}
"""256 ** (-2i / 16) is 2 ** -i, so f32 angles are exact however far from 0. With other frequencies an angle rounds by
3e-5 at position 1000, and transformers there is as far from transformers at 0."""

CELLS = {"square": (3, 3), "wide": (2, 7), "tall": (9, 1), "dot": (1, 1)}
"""Heights and widths of images in merged tokens."""


@dataclass(frozen=True)
class Run:
    """What transformers made of S tokens: logits [S, V], keys and values [L, S, F] as it caches them."""

    logits: np.ndarray
    keys: np.ndarray
    values: np.ndarray


class Pair:
    """One random model, as transformers has it and as `models.load` reads it."""

    def __init__(self, config: dict[str, Any], folder: Path, *, seed: int) -> None:
        special = {
            f"{key}_token_id": VOCABULARY.index(f"<|{word}|>")
            for key, word in {
                "image": "image_pad",
                "video": "video_pad",
                "vision_start": "vision_start",
                "vision_end": "vision_end",
            }.items()
        }
        text = {"vocab_size": len(VOCABULARY), "eos_token_id": VOCABULARY.index("<|im_end|>"), **config.get("text", {})}
        # Scores of order one: at HF's 0.02 attention is all but uniform and a mask hardly shows, while at twice this
        # 192 features are so ill-conditioned that transformers in f32 is 1e-5 away from itself in f64.
        text["initializer_range"] = 1.2 * text.get("hidden_size", 64) ** -0.5
        vision = {"initializer_range": 0.15, **config.get("vision", {})}
        tied = config.get("tie_word_embeddings", False)
        self.hf = tiny_qwen2_5_vl(seed, text=text, vision=vision, tie_word_embeddings=tied, **special)
        save_hub_folder(self.hf, folder, sharded=tied)
        build_tokenizer(folder)
        vision = self.hf.config.vision_config
        self.cell = vision.patch_size * vision.spatial_merge_size
        media = {
            **image_processor_config(),
            "patch_size": vision.patch_size,
            "min_pixels": self.cell**2,
            "max_pixels": 30 * self.cell**2,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(media))
        self.folder, self.vlm = folder, load(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def image(self, name: str) -> Image.Image:
        """Noise; ``"odd"`` is no whole number of tokens, so it is resized, and so is ``"large"``, beyond max_pixels."""
        cell = self.cell
        sizes = {name: (rows * cell, columns * cell) for name, (rows, columns) in CELLS.items()}
        sizes |= {"odd": (2 * cell + 3, 5 * cell - 3), "large": (10 * cell, 12 * cell)}
        seed = sorted(sizes).index(name)
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*sizes[name], 3), np.uint8))

    def items(self, names: Sequence[str]) -> list[Any]:
        """Images by their names; anything else is text."""
        return [self.image(name) if name in {*CELLS, "odd", "large"} else name for name in names]

    def prompt(self, items: Sequence[Any], question: str) -> "Prompt":
        return Prompt(self, items, question)

    def media(self, items: Sequence[Any]) -> dict[str, torch.Tensor]:
        """The images among ``items``, preprocessed by transformers."""
        images = [item for item in items if not isinstance(item, str)]
        return dict(self.processor(images=images, return_tensors="pt")) if images else {}

    def run(
        self,
        ids: np.ndarray,
        positions: np.ndarray,
        media: dict[str, torch.Tensor],
        *,
        mask: np.ndarray | None = None,
        model: Any = None,
    ) -> Run:
        """transformers on ids [S] at positions [3, S]; mask [S, S] is True where a row sees a column."""
        given = {"input_ids": torch.from_numpy(ids)[None], "position_ids": torch.from_numpy(positions)[:, None]}
        if mask is not None:
            hidden = torch.finfo(torch.float32).min
            given["attention_mask"] = torch.where(torch.from_numpy(mask), 0.0, hidden)[None, None]
        with torch.no_grad():
            output = (model or self.hf)(**given, **media, use_cache=True)

        def flat(tensors: list[torch.Tensor]) -> np.ndarray:
            return torch.stack(tensors)[:, 0].transpose(1, 2).flatten(2).float().numpy()

        layers = output.past_key_values.layers
        return Run(output.logits[0].float().numpy(), flat([x.keys for x in layers]), flat([x.values for x in layers]))

    def rotated(self, kv: kj.KV, positions: jax.Array) -> np.ndarray:
        """Un-rotated keys [L, T, F] at absolute positions [3, T]."""
        spec = self.vlm.spec
        return np.asarray(_rotated(kv.rot, positions, heads=spec.heads, rope=spec.rope))


@partial(jax.jit, static_argnames=("heads", "rope"))
def _rotated(keys: jax.Array, positions: jax.Array, *, heads: int, rope: kj.RopeSpec) -> jax.Array:
    split = keys.reshape(*keys.shape[:2], heads, -1)
    return jax.vmap(lambda layer: kj.rope.rotate(layer, positions, rope))(split).reshape(keys.shape)


class Prompt:
    """One user turn, in both spellings: transformers' tokens, and the port's segments at their places."""

    def __init__(self, pair: Pair, items: Sequence[Any], question: str) -> None:
        self.pair, self.items, self.question = pair, items, question
        content = [{"type": "text", "text": item} if isinstance(item, str) else {"type": "image"} for item in items]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        template = pair.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        self.media = pair.media(items)
        config = pair.hf.config
        grids = iter(self.media.get("image_grid_thw", torch.zeros(0, 3)))
        merged = config.vision_config.spatial_merge_size**2
        self.ids = np.array(
            [
                copy
                for token in template
                for copy in [token] * (int(next(grids).prod()) // merged if token == config.image_token_id else 1)
            ]
        )

    @cached_property
    def kinds(self) -> torch.Tensor:
        """What 5.x calls mm_token_type_ids [1, S]: 1 for an image's tokens."""
        return torch.from_numpy(self.ids == self.pair.hf.config.image_token_id).int()[None]

    @cached_property
    def positions(self) -> np.ndarray:
        """transformers' positions i64[3, S]."""
        ids = torch.from_numpy(self.ids)[None]
        grid = self.media.get("image_grid_thw")
        return self.pair.hf.model.get_rope_index(ids, self.kinds, image_grid_thw=grid)[0][:, 0].numpy()

    @cached_property
    def full(self) -> Run:
        """transformers on the whole prompt."""
        return self.pair.run(self.ids, self.positions, self.media)

    @cached_property
    def segments(self) -> list[kj.Segment]:
        """The port's preamble, chunks and tail, at their absolute positions."""
        vlm = self.pair.vlm
        segments, base = [], 0.0
        for segment in (vlm.preamble, *map(vlm.prepare, self.items), vlm.tail(self.question)):
            segments.append(segment.at(base))
            base += segment.advance
        return segments

    @cached_property
    def spans(self) -> list[slice]:
        """Where each segment's tokens stand in the prompt."""
        ends = np.cumsum([0, *(int(segment.length) for segment in self.segments)])
        return [slice(int(a), int(b)) for a, b in zip(ends[:-1], ends[1:], strict=True)]

    def joined(self) -> kj.Segment:
        """The segments as one, every case padded alike so that one program serves them all."""
        width = self.pair.hf.config.text_config.hidden_size
        padded = {
            "tokens": np.zeros(64, np.int32),
            "media": np.zeros((64, width), np.float32),
            "is_media": np.zeros(64, bool),
        }
        positions = np.zeros((3, 64), np.float32)
        for segment, span in zip(self.segments, self.spans, strict=True):
            n = int(segment.length)
            positions[:, span] = np.asarray(segment.positions)[:, :n]
            for name, rows in segment.inputs.items():
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
    """Rotated keys and values [L, S, F] of a window's valid slots."""
    valid = np.asarray(window.state.valid)
    return np.asarray(window.state.rot)[:, valid], np.asarray(window.state.free)[:, valid]


def assert_close(given: Any, expected: np.ndarray, *, layers: bool = False) -> None:
    """The largest difference is at most 1e-5 of the largest value; with ``layers``, in each [L, …] by itself."""
    given = np.asarray(given)
    assert given.shape == expected.shape and given.dtype == expected.dtype == np.float32
    axes = tuple(range(1, expected.ndim)) if layers else None
    error = np.abs(given - expected).max(axes) / np.abs(expected).max(axes)
    assert (error <= 1e-5).all(), error


def assert_prefilled(window: kj.Window, prompt: Any) -> None:
    """A window holds HF's full prefill of a prompt: KV of every layer, and logits at every token of the tail."""
    tail = prompt.spans[-1]
    keys, values = window_kv(window)
    assert_close(keys, prompt.full.keys[:, : tail.start], layers=True)
    assert_close(values, prompt.full.values[:, : tail.start], layers=True)
    assert_close(prompt.tail_logits(window), prompt.full.logits[tail])


def frobenius(given: Any, expected: Any) -> np.ndarray:
    """Relative error per layer [L]."""
    given, expected = (np.asarray(x).astype(np.float64) for x in (given, expected))
    return np.sqrt(np.square(given - expected).sum((1, 2)) / np.square(expected).sum((1, 2)))
