"""A vision-language checkpoint as a backbone: hub folder in, `kamera_jax.Backbone` out, the same for every port."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from kamera_jax.backbone import BackboneBase
from kamera_jax.dtypes import DtypeError, floating
from kamera_jax.guard.calibration import Calibration
from kamera_jax.identity import content_key
from kamera_jax.kv import KVSpec, Segment, bucket
from models.architecture import Architecture, Config
from models.blocks import decoder
from models.blocks.params import Params
from models.forward import COLLECTS, forward_of
from models.hub.chat import ChatTemplate
from models.hub.fields import Fields, UnsupportedConfigError, read_json
from models.hub.weights import load_params, revision, stored_dtype
from models.media.images import VERSION, open_item, to_rgb

CALIBRATION = "calibration.json"
"""Beside the weights: a `kamera_jax.Calibration`."""


class VisionLanguageModel(BackboneBase):
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
        self.forward = forward_of(text)
        self.collects = COLLECTS if text.experts else COLLECTS[:2]
        self._chat = chat
        self._images = images
        self.eos = chat.eos
        self.closing = chat.closing
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
        declared = architecture.declaration(config)
        table = architecture.weight_table(config)
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
        cut.forward = forward_of(text)
        cut.calibration = None
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
        port = self.architecture
        config = self.config.vision
        preprocessed = port.images.preprocess_image(image, self._images)
        _, rows, columns = preprocessed.grid
        plan = port.vision.plan(rows, columns, config)
        patches = port.vision.pad_patches(preprocessed.patches, plan)
        ids, first = self._chat.image(int(plan.tokens), self.config.image_token_id)
        length = len(ids)
        tokens = np.zeros(bucket(len(ids)), np.int32)
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
        positions = _counting(self.spec.rope.axes, len(tokens))
        advance = float(length)
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


def _digest(text: str, payload: bytes = b"") -> str:
    return hashlib.sha256(text.encode() + b"\0" + payload).hexdigest()
