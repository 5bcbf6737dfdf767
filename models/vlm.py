"""A vision-language checkpoint as a backbone: hub folder in, `kamera_jax.Backbone` out, the same for every port."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from kamera_jax import rope
from kamera_jax.backbone import Output
from kamera_jax.dtypes import DtypeError, floating
from kamera_jax.guard.calibration import Calibration
from kamera_jax.identity import content_key
from kamera_jax.kv import KV, KVSpec, Segment, WindowState, bucket
from kamera_jax.rope import RopeSpec
from kamera_jax.window.reuse import attend_in_place
from models.architecture import Architecture, Config
from models.blocks import decoder
from models.blocks.attention import grouped_attention
from models.blocks.decoder import DecoderConfig
from models.blocks.params import Params
from models.hub.chat import ChatTemplate
from models.hub.fields import Fields, UnsupportedConfigError, read_json
from models.hub.weights import load_params, revision, stored_dtype
from models.media.images import VERSION, open_item, to_rgb

COLLECTS = ("attention_mass", "queries", "experts", "router_margin")
CALIBRATION = "calibration.json"
"""Beside the weights: a `kamera_jax.Calibration`."""


class VisionLanguageModel:
    """A checkpoint of one of the ports.

    Attributes:
        architecture: the port.
        config: its configuration.
        spec: what its KV is.
        params: its parameters.
        fingerprint: config, preprocessing and weights revision.
        preamble: system text and user header.
        closing: tokens after an answer, up to the next question.
        eos: tokens that end an answer.
        forward: see `kamera_jax.backbone.Backbone.forward`.
        calibration: for `kamera_jax.ReusePolicy`: what `CALIBRATION` beside the weights holds, if it was measured with
            these weights in this dtype; else None.
    """

    attends_in_place = True
    fills_slots = True

    def __init__(
        self,
        architecture: Architecture,
        config: Config,
        params: Params,
        chat: ChatTemplate,
        images: Any,
        fingerprint: str,
        calibration: Calibration | None = None,
        identity: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Put together what `load` reads; ``params`` is a tree as declared by the architecture."""
        text = config.text
        rot_dim, free_dim, heads = text.attention.kv_widths
        self.architecture = architecture
        self.config = config
        self.params = params
        self.fingerprint = fingerprint
        self.calibration = calibration
        self.spec = KVSpec(
            layers=text.num_hidden_layers,
            rot_dim=rot_dim,
            free_dim=free_dim,
            heads=heads,
            rope=text.rope,
            dtype=str(params["text"]["embed"]["w"].dtype),
            fingerprint=fingerprint,
            identity=identity,
            max_positions=text.max_positions,
        )
        self.forward = _forward_of(text)
        self._chat, self._images = chat, images
        self.eos, self.closing = chat.eos, chat.closing
        self.preamble = self._text_segment(chat.preamble, f"preamble:{list(chat.preamble)}")

    @classmethod
    def load(
        cls, architecture: Architecture, folder: Path, *, dtype: Any = None, system: str | None = None
    ) -> "VisionLanguageModel":
        """Read a Hugging Face folder in hub format.

        Args:
            architecture: the port to read it with.
            folder: with config.json, safetensors, tokenizer and preprocessor_config.json.
            dtype: of parameters and KV, float32, bfloat16 or float16 by any of their names; the checkpoint's by
                default.
            system: system text of the preamble; the chat template's own by default.

        Raises:
            ValueError: a subclass named for what is missing, truncated, unknown or unsupported.
        """
        mapping = read_json(folder / "config.json")
        config = architecture.config_from_hf(mapping)
        auto = dtype is None or (isinstance(dtype, str) and dtype.strip().lower() == "auto")
        dtype = _stored_dtype(folder, mapping) if auto else floating(dtype)
        preprocessing = _preprocessing(folder)
        declared, table = architecture.declaration(config), architecture.weight_table(config)
        params = jax.tree.map(jnp.asarray, load_params(folder, declared, table, dtype))
        identity = {"config": mapping, "preprocessing": preprocessing, "weights": revision(folder), "dtype": str(dtype)}
        fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        chat = ChatTemplate.load(folder, system=system)
        images = architecture.images.ImageConfig.from_hf(preprocessing, config.vision.patch_size)
        told = {"configuration": mapping, "preprocessing": preprocessing, "weights": identity["weights"]}
        return cls(
            architecture,
            config,
            params,
            chat,
            images,
            fingerprint,
            _calibration(folder, fingerprint),
            tuple((name, content_key({name: said})) for name, said in told.items()),
        )

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
            return self._text_segment(ids, f"text:{ids}:{item}")
        return self._image_segment(to_rgb(item))

    def tail(self, text: str) -> Segment:
        """The question and the assistant header.

        Raises:
            ValueError: the question is empty.
        """
        return self._question(text, self._chat.tail)

    def follow_up(self, text: str) -> Segment:
        """As `tail`, for a question right after a turn.

        Raises:
            ValueError: the question is empty.
        """
        return self._question(text, self._chat.follow_up)

    def _question(self, text: str, ids: Callable[[str], Sequence[int]]) -> Segment:
        if not text.strip():
            raise ValueError("the question is empty")
        tokens = ids(text)
        return self._text_segment(tokens, f"tail:{tokens}:{text}")

    def flops(self, tokens: int, slots: int) -> float:
        """FLOPs of a forward of ``tokens`` tokens that see ``slots`` more, without the head."""
        return decoder.flops(self.config.text, tokens, slots)

    def leading(self, layers: int) -> "VisionLanguageModel":
        """The model cut off after its first ``layers`` layers, which share their parameters with it.

        Raises:
            ValueError: it has fewer layers, or none are asked for.
        """
        text = self.config.text.leading(layers)
        cut = copy(self)
        cut.config = replace(self.config, text=text)
        cut.params = {**self.params, "text": decoder.leading_params(self.params["text"], text)}
        cut.fingerprint = _digest(f"{self.fingerprint}: first {layers} layers")
        cut.spec = replace(self.spec, layers=layers, fingerprint=cut.fingerprint)
        cut.forward, cut.calibration = _forward_of(text), None
        return cut

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        return self._chat.decode(tokens)

    def _text_segment(self, ids: Sequence[int], content: str) -> Segment:
        length = len(ids)
        tokens = np.zeros(bucket(length), np.int32)
        tokens[:length] = ids
        positions = _counting(self.spec.rope.axes, len(tokens))
        return Segment(
            {"tokens": jnp.asarray(tokens)}, jnp.asarray(positions), jnp.int32(length), float(length), _digest(content)
        )

    def _image_segment(self, image: Image.Image) -> Segment:
        port, config = self.architecture, self.config.vision
        preprocessed = port.images.preprocess_image(image, self._images)
        _, rows, columns = preprocessed.grid
        plan = port.vision.plan(rows, columns, config)
        patches = port.vision.pad_patches(preprocessed.patches, plan)
        ids, first = self._chat.image(int(plan.tokens), self.config.image_token_id)
        length, tokens = len(ids), np.zeros(bucket(len(ids)), np.int32)
        tokens[:length] = ids
        is_media = (np.arange(len(tokens)) >= first) & (np.arange(len(tokens)) < first + int(plan.tokens))
        media = _encode_image(
            self.params["vision"],
            patches,
            plan,
            is_media,
            jnp.int32(first),
            encode=port.vision.encode_image,
            config=config,
        )
        positions, advance = _counting(self.spec.rope.axes, len(tokens)), float(length)
        if port.image_positions is not None:
            positions = np.zeros_like(positions)
            positions[:, :length], advance = port.image_positions(rows, columns, config, first, length)
        return Segment(
            inputs={"tokens": jnp.asarray(tokens), "media": media, "is_media": jnp.asarray(is_media)},
            positions=jnp.asarray(positions),
            length=jnp.int32(length),
            advance=advance,
            # What the chat template writes around an image is a part of the chunk.
            content=_digest(f"image:v{VERSION}:{ids}:{image.size}", image.tobytes()),
        )


def _stored_dtype(folder: Path, mapping: Mapping[str, Any]) -> np.dtype:
    """What config.json says; where it does not, what most of the weights are stored in.

    Raises:
        UnsupportedConfigError: parameters cannot have it.
    """
    field = next((name for name in ("dtype", "torch_dtype") if mapping.get(name) not in (None, "auto")), None)
    said = stored_dtype(folder) if field is None else mapping[field]
    try:
        return floating(said, f"config.json: {field}" if field else "the dtype that most of the weights are stored in")
    except DtypeError as error:
        raise UnsupportedConfigError(f'{error}; say what to load it in, such as load(…, dtype="float32")') from error


def _preprocessing(folder: Path) -> dict[str, Any]:
    """Image settings: a file of their own, or, from transformers 5, a section of the processor's."""
    if not (folder / "preprocessor_config.json").exists() and (folder / "processor_config.json").exists():
        return Fields("processor_config.json", read_json(folder / "processor_config.json")).take(
            "image_processor", dict
        )
    return read_json(folder / "preprocessor_config.json")


def _calibration(folder: Path, fingerprint: str) -> Calibration | None:
    if not (folder / CALIBRATION).exists():
        return None
    calibration = Calibration.from_json((folder / CALIBRATION).read_text(encoding="utf-8"))
    return calibration if calibration.model == fingerprint else None


def _counting(axes: int, count: int) -> np.ndarray:
    """Positions of consecutive tokens f32[A, count], the same on every axis."""
    return np.tile(np.arange(count, dtype=np.float32), (axes, 1))


@partial(jax.jit, static_argnames=("encode", "config"))
def _encode_image(
    params: Params,
    patches: jax.Array,
    plan: Any,
    is_media: jax.Array,
    first: jax.Array,
    *,
    encode: Callable[..., jax.Array],
    config: Any,
) -> jax.Array:
    """The image's features in the rows of its tokens, zero elsewhere: one compilation a bucket, whatever the length."""
    features = encode(params, config, patches, plan)
    rows = jnp.clip(jnp.arange(is_media.shape[0]) - first, 0, features.shape[0] - 1)
    return jnp.where(is_media[:, None], features[rows], jnp.zeros((), features.dtype))


@cache
def _forward_of(text: DecoderConfig) -> Callable[..., Output]:
    """One object a language model: loaded again, in another dtype or by another name, it shares what is compiled."""
    return partial(forward, text)


def forward(
    config: DecoderConfig,
    params: Params,
    segment: Segment,
    state: WindowState | None,
    *,
    logits_at: jax.Array | None = None,
    collect: Sequence[str] = (),
) -> Output:
    """`kamera_jax.backbone.Backbone.forward` of every port.

    Collects ``attention_mass``, ``queries`` (of an MLA absorbed, which is then how it attends), and of layers with
    experts ``experts`` i32[layers, T, k] (-1 in padding) and ``router_margin`` f32[layers, T] (infinite in padding; see
    `models.blocks.moe.Routing`).

    Raises:
        ValueError: ``collect`` names something else, or experts of a model that has none, or attention_mass where
            chunks lie in pools, or tokens come with slots there.
    """
    if unknown := set(collect) - set(COLLECTS if config.experts else COLLECTS[:2]):
        raise ValueError(f"this model collects {COLLECTS if config.experts else COLLECTS[:2]}; got {sorted(unknown)}")
    pools = () if state is None else state.pools
    if pools and "attention_mass" in collect:
        raise ValueError(
            "attention_mass is not collected from chunks that are attended to in place; run on a window of "
            'mode="materialise"'
        )
    if pools and "slots" in segment.inputs:
        raise ValueError(
            "tokens that come with slots stand among what is written, and this window keeps its chunks in place; run "
            'them on a window of mode="materialise"'
        )
    tokens, valid = segment.positions.shape[-1], segment.valid
    embeds = decoder.embed(params["text"], segment.inputs["tokens"])
    if "media" in segment.inputs:
        embeds = jnp.where(segment.inputs["is_media"][:, None], segment.inputs["media"].astype(embeds.dtype), embeds)
    mask = jnp.tril(jnp.ones((tokens, tokens), bool)) & valid[None, :]
    past = None
    if state is not None:
        before = jnp.broadcast_to(state.valid[None, :], (tokens, state.valid.shape[0]))
        if "slots" in segment.inputs:
            before &= jnp.arange(before.shape[1])[None, :] < segment.inputs["slots"][:, None]
        mask = jnp.concatenate([before, mask], axis=1)
        past = KV(state.rot, state.free)

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array, layer: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        out, probabilities, lse = grouped_attention(q, k, v, mask, config.attention.scale)
        if layer is not None:
            here = out.reshape(*q.shape[:2], -1)
            joined = attend_in_place(q, here, lse, pools, layer, config.attention.scale, config.rope)
            out = joined.reshape(out.shape)
        collected = {}
        if "attention_mass" in collect:
            # One product over heads and queries: sums over several axes of something so large are slow.
            rows = probabilities.reshape(-1, *probabilities.shape[-2:])
            each = jnp.broadcast_to(valid.astype(jnp.float32) / len(rows), rows.shape[:2])
            mass = jnp.einsum("nt,nts->s", each, rows, precision="highest")
            collected["attention_mass"] = mass / segment.length.astype(jnp.float32)
        if "queries" in collect:
            collected["queries"] = config.attention.scale * _unrotated(q, segment.positions, config.rope)
            collected["attended"] = out.reshape(*q.shape[:2], -1)
        return out, collected

    decoded = decoder.decoder(
        params["text"],
        config,
        embeds,
        segment.positions,
        attend,
        past,
        bool(pools),
        absorb=True if "queries" in collect else None,
    )
    logits = None if logits_at is None else decoder.logits(params["text"], decoded.hidden[logits_at])
    kv = jax.tree.map(lambda rows: jnp.where(valid[None, :, None], rows, jnp.zeros((), rows.dtype)), decoded.kv)
    aux = dict(decoded.collected)
    if decoded.routing is not None:
        routing = {
            "experts": jnp.where(valid[None, :, None], decoded.routing.experts, -1),
            "router_margin": jnp.where(valid[None, :], decoded.routing.margin, jnp.inf),
        }
        aux |= {name: value for name, value in routing.items() if name in collect}
    return Output(logits, kv, aux)


def _unrotated(q: jax.Array, positions: jax.Array, spec: RopeSpec) -> jax.Array:
    """Queries [T, N, ·] as before their last ``head_dim`` dims were rotated, f32."""
    free, rotated = jnp.split(q.astype(jnp.float32), [q.shape[-1] - spec.head_dim], axis=-1)
    return jnp.concatenate([free, rope.rotate(rotated, -positions, spec) / spec.scale**2], axis=-1)


def _digest(text: str, payload: bytes = b"") -> str:
    return hashlib.sha256(text.encode() + b"\0" + payload).hexdigest()
