"""Qwen2.5-VL as a backbone: hub folder in, `kamera_jax.Backbone` out."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from kamera_jax.backbone import Output
from kamera_jax.kv import KV, KVSpec, Segment, WindowState, bucket
from models.attention import grouped_attention
from models.chat import ChatTemplate
from models.fields import read_json
from models.media import ImageConfig, open_item, preprocess_image, to_rgb
from models.params import Params
from models.qwen2_5_vl import modeling, vision
from models.qwen2_5_vl.config import Config, VisionConfig, config_from_hf
from models.qwen2_5_vl.weights import weight_table
from models.weights import load_params, revision


class Qwen25VL:
    """A Qwen2.5-VL checkpoint.

    Attributes:
        config: its configuration.
        spec: what its KV is: rot and free of G * D each.
        params: its parameters.
        fingerprint: config, preprocessing and weights revision.
        preamble: system text and user header.
        eos: tokens that end an answer.
        forward: see `kamera_jax.backbone.Backbone.forward`.
    """

    def __init__(
        self, config: Config, params: Params, chat: ChatTemplate, images: ImageConfig, fingerprint: str
    ) -> None:
        """Put together what `load` reads; ``params`` is a tree as declared by `declaration`."""
        text = config.text
        width = text.num_key_value_heads * text.head_dim
        self.config = config
        self.params = params
        self.fingerprint = fingerprint
        self.spec = KVSpec(
            layers=text.num_hidden_layers,
            rot_dim=width,
            free_dim=width,
            heads=text.num_key_value_heads,
            rope=text.rope,
            dtype=str(params["text"]["embed"]["w"].dtype),
            fingerprint=fingerprint,
        )
        self.forward = partial(forward, config)
        self._chat, self._images = chat, images
        self.eos = chat.eos
        self.preamble = self._text_segment(chat.preamble, f"preamble:{list(chat.preamble)}")

    @classmethod
    def load(cls, folder: Path, *, dtype: Any = None, system: str | None = None) -> "Qwen25VL":
        """Read a Hugging Face folder in hub format.

        Args:
            folder: with config.json, safetensors, tokenizer and preprocessor_config.json.
            dtype: of parameters and KV; the checkpoint's by default.
            system: system text of the preamble; the chat template's own by default.

        Raises:
            ValueError: a subclass named for what is missing, truncated, unknown or unsupported.
        """
        mapping = read_json(folder / "config.json")
        config = config_from_hf(mapping)
        stored = mapping.get("dtype") or mapping.get("torch_dtype") or "bfloat16"
        dtype = jnp.dtype(stored if dtype is None else dtype)
        preprocessing = read_json(folder / "preprocessor_config.json")
        params = jax.tree.map(jnp.asarray, load_params(folder, declaration(config), weight_table(config), dtype))
        identity = {"config": mapping, "preprocessing": preprocessing, "weights": revision(folder), "dtype": str(dtype)}
        fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        chat = ChatTemplate.load(folder, system=system)
        return cls(config, params, chat, ImageConfig.from_hf(preprocessing), fingerprint)

    def prepare(self, item: Any) -> Segment:
        """A chunk's tokens: str is text, Path a file, PIL image or uint8[H, W, 3] an image.

        Raises:
            ValueError: it cannot be read, is empty, or has another type.
        """
        item = open_item(item)
        if isinstance(item, str):
            ids = self._chat.encode(item)
            if not ids:
                raise ValueError("the text is empty; a chunk needs at least one token")
            return self._text_segment(ids, f"text:{item}")
        return self._image_segment(to_rgb(item))

    def tail(self, text: str) -> Segment:
        """The question and the assistant header.

        Raises:
            ValueError: the question is empty.
        """
        if not text.strip():
            raise ValueError("the question is empty")
        return self._text_segment(self._chat.tail(text), f"tail:{text}")

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        return self._chat.decode(tokens)

    def _text_segment(self, ids: Sequence[int], content: str) -> Segment:
        length, padded = len(ids), bucket(len(ids))
        tokens = np.zeros(padded, np.int32)
        tokens[:length] = ids
        positions = np.broadcast_to(np.arange(padded, dtype=np.float32), (3, padded))
        return Segment(
            {"tokens": jnp.asarray(tokens)}, jnp.asarray(positions), jnp.int32(length), float(length), _digest(content)
        )

    def _image_segment(self, image: Image.Image) -> Segment:
        image_patches = preprocess_image(image, self._images)
        _, rows, columns = image_patches.grid
        plan = vision.plan(rows, columns, self.config.vision, bucket=256)
        patches = vision.pad_patches(image_patches.patches, plan)
        merge = self.config.vision.spatial_merge_size
        rows, columns = rows // merge, columns // merge
        length = rows * columns + 2
        padded = bucket(length)
        is_media = (np.arange(padded) >= 1) & (np.arange(padded) < length - 1)
        media = _encode_image(self.params["vision"], patches, plan, is_media, config=self.config.vision)
        tokens = np.zeros(padded, np.int32)
        tokens[:length] = (
            self.config.vision_start_token_id,
            *[self.config.image_token_id] * (length - 2),
            self.config.vision_end_token_id,
        )
        return Segment(
            inputs={"tokens": jnp.asarray(tokens), "media": media, "is_media": jnp.asarray(is_media)},
            positions=jnp.asarray(image_positions(rows, columns, padded)),
            length=jnp.int32(length),
            advance=2.0 + max(rows, columns),
            content=_digest(f"image:{image.size}", image.tobytes()),
        )


@partial(jax.jit, static_argnames="config")
def _encode_image(
    params: Params, patches: jax.Array, plan: vision.VisionPlan, is_media: jax.Array, *, config: VisionConfig
) -> jax.Array:
    """The image's features in the rows of its tokens, zero elsewhere: one compilation a bucket, whatever the length."""
    features = vision.encode_image(params, config, patches, plan)
    rows = jnp.clip(jnp.arange(is_media.shape[0]) - 1, 0, features.shape[0] - 1)
    return jnp.where(is_media[:, None], features[rows], jnp.zeros((), features.dtype))


def declaration(config: Config) -> Params:
    """Every parameter of the model."""
    return {"text": modeling.text_declaration(config.text), "vision": vision.vision_declaration(config.vision)}


def image_positions(rows: int, columns: int, padded: int) -> np.ndarray:
    """Local positions f32[3, padded] of an image chunk (HF ``get_rope_index``).

    <|vision_start|> stands at 0, the image's tokens in raster order at (1, 1 + row, 1 + column), and
    <|vision_end|> at 1 + max(rows, columns); the axes are time, height, width.
    """
    positions = np.zeros((3, padded), np.float32)
    row, column = np.divmod(np.arange(rows * columns), columns)
    positions[:, 1 : 1 + rows * columns] = 1 + np.stack([np.zeros_like(row), row, column])
    positions[:, 1 + rows * columns :] = 1 + max(rows, columns)
    return positions


def forward(
    config: Config,
    params: Params,
    segment: Segment,
    state: WindowState | None,
    *,
    logits_at: jax.Array | None = None,
    collect: Sequence[str] = (),
) -> Output:
    """`kamera_jax.backbone.Backbone.forward` of Qwen2.5-VL; collects ``attention_mass``.

    Raises:
        ValueError: ``collect`` names something else.
    """
    if unknown := set(collect) - {"attention_mass"}:
        raise ValueError(f"this model collects 'attention_mass'; got {sorted(unknown)}")
    tokens, valid = segment.positions.shape[-1], segment.valid
    embeds = params["text"]["embed"]["w"][segment.inputs["tokens"]]
    if "media" in segment.inputs:
        embeds = jnp.where(segment.inputs["is_media"][:, None], segment.inputs["media"].astype(embeds.dtype), embeds)
    mask = jnp.tril(jnp.ones((tokens, tokens), bool)) & valid[None, :]
    past = None
    if state is not None:
        mask = jnp.concatenate([jnp.broadcast_to(state.valid[None, :], (tokens, state.valid.shape[0])), mask], axis=1)
        past = KV(state.rot, state.free)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        out, probabilities = grouped_attention(q, k, v, mask, config.text.head_dim**-0.5)
        if "attention_mass" not in collect:
            return out, None
        per_query = probabilities.mean(axis=(0, 1))
        return out, jnp.where(valid[:, None], per_query, 0.0).sum(0) / segment.length.astype(jnp.float32)

    hidden, kv, mass, _ = modeling.decoder(params["text"], config.text, embeds, segment.positions, attend, past)
    logits = None if logits_at is None else modeling.logits(params["text"], hidden[logits_at])
    kv = jax.tree.map(lambda rows: jnp.where(valid[None, :, None], rows, jnp.zeros((), rows.dtype)), kv)
    return Output(logits, kv, {} if mass is None else {"attention_mass": mass})


def _digest(text: str, payload: bytes = b"") -> str:
    return hashlib.sha256(text.encode() + b"\0" + payload).hexdigest()
