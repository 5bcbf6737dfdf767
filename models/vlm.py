"""A vision-language checkpoint as a backbone: hub folder in, `kamera_jax.Backbone` out, the same for every port."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from kamera_jax.backbone import BackboneBase
from kamera_jax.dtypes import DtypeError, floating
from kamera_jax.guard.calibration import Calibration
from kamera_jax.identity import content_key
from kamera_jax.kv import KVSpec, Segment
from models.architecture import Architecture, Config, Medium
from models.blocks import decoder
from models.blocks.params import Params
from models.blocks.sharding import Rules, param_shardings
from models.forward import COLLECTS, forward_of
from models.hub.chat import Block, ChatTemplate
from models.hub.fields import Fields, UnsupportedConfigError, read_json
from models.hub.weights import load_params, revision, stored_dtype
from models.media.pictures import ImageError, open_item
from models.media.spans import Features, Span, compose

CALIBRATION = "calibration.json"
"""Beside the weights: a `kamera_jax.Calibration`."""


class ItemError(ValueError):
    """An item that this model does not read: of another kind, an empty list, or a list in a list."""


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
    reads_context = True
    fills_slots = True

    def __init__(
        self,
        architecture: Architecture,
        config: Config,
        params: Params,
        chat: ChatTemplate,
        settings: Mapping[str, Any],
        fingerprint: str,
        calibration: Calibration | None = None,
        identity: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Put together what `load` reads.

        ``params`` is a tree as declared by the architecture; ``settings`` is what each medium's ``settings`` gave, by
        kind.
        """
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
        self._settings = settings
        self.eos = chat.eos
        self.closing = chat.closing
        self.preamble = self._text_segment(chat.preamble, f"preamble:{list(chat.preamble)}")

    @classmethod
    def load(
        cls,
        architecture: Architecture,
        folder: Path,
        *,
        dtype: Any = None,
        system: str | None = None,
        mesh: jax.sharding.Mesh | None = None,
        rules: Rules | None = None,
    ) -> "VisionLanguageModel":
        """Read a Hugging Face folder in hub format.

        Args:
            architecture: the port to read it with.
            folder: with config.json, safetensors, tokenizer and preprocessor_config.json.
            dtype: of parameters and KV, float32, bfloat16 or float16 by any of their names; the checkpoint's by
                default.
            system: system text of the preamble; the chat template's own by default.
            mesh: devices to place the parameters on; the default one if left out.
            rules: how they are split over the mesh; see `models.blocks.sharding.param_shardings`.

        Raises:
            ValueError: a subclass named for what is missing, truncated, unknown or unsupported.
        """
        mapping = read_json(folder / "config.json")
        config = architecture.config_from_hf(mapping)
        auto = dtype is None or (isinstance(dtype, str) and dtype.strip().lower() == "auto")
        dtype = _stored_dtype(folder, mapping) if auto else floating(dtype)
        preprocessing = _preprocessing(folder) if architecture.media else {}
        declared = architecture.declaration(config)
        table = architecture.weight_table(config)
        shardings = None if mesh is None else param_shardings(declared, mesh, rules)
        params = load_params(folder, declared, table, dtype, shardings)
        identity = {"config": mapping, "preprocessing": preprocessing, "weights": revision(folder), "dtype": str(dtype)}
        fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        chat = ChatTemplate.load(folder, system=system, kinds=[medium.kind for medium in architecture.media])
        settings = {each.kind: each.settings(_preprocessing(folder, each.kind), config) for each in architecture.media}
        parts = {"configuration": mapping, "preprocessing": preprocessing, "weights": identity["weights"]}
        return cls(
            architecture,
            config,
            params,
            chat,
            settings,
            fingerprint,
            _calibration(folder, fingerprint),
            tuple((name, content_key({name: part})) for name, part in parts.items()),
        )

    def prepare(self, item: Any) -> Segment:
        """A chunk's tokens: str is text, Path a file, PIL image or uint8[H, W, 3] an image.

        A list or tuple of these is one chunk, with its texts and media as the chat template writes the parts of one
        message; of one item it is that item.

        Raises:
            ValueError: it cannot be read, is empty, or has another type.
        """
        parts = self._parts(item)
        spans = self._spans(parts)
        ids = [number for span in spans for number in span.ids]
        # What the chat template writes around media is a part of the chunk.
        if len(parts) == 1:
            content = parts[0].digest(ids)
        else:
            content = _digest(f"parts:{ids}:{[part.digest([]) for part in parts]}")
        return compose(spans, self.spec.rope.axes, content)

    def cut(self, item: Any, *, tokens: int) -> tuple[Any, ...]:
        """A long item in parts that `prepare` takes one by one, each of at most so many media tokens.

        A video is cut between temporal patches, of which each part has one at least; everything else stays whole, lists
        too. Each part's positions count from its own start.

        Raises:
            ValueError: the item cannot be read, or ``tokens`` is below 1.
        """
        if tokens < 1:
            raise ValueError(f"parts have at least 1 token; got tokens={tokens}")
        parts = self._parts(item)
        medium = parts[0].medium
        if len(parts) > 1 or medium is None:
            return (item,)
        return tuple(medium.cut(parts[0].item, self._settings[medium.kind], self.config, tokens))

    def _parts(self, item: Any) -> list["_Part"]:
        """The opened parts of an item; one that is no list has one.

        Raises:
            ValueError: a part cannot be read; of several, the message says which.
        """
        if not isinstance(item, list | tuple):
            return [self._opened(item)]
        if not item:
            raise ItemError(f"the list of a chunk's parts is empty; expected {self._readable()}")
        if len(item) == 1:
            return [self._opened(item[0])]
        parts = []
        for number, each in enumerate(item, start=1):
            place = f"part {number} of {len(item)}: "
            with _named(place):
                parts.append(replace(self._opened(each), place=place))
        return parts

    def _opened(self, item: Any) -> "_Part":
        """One part, read.

        Raises:
            ValueError: it cannot be read, is empty, or has another type.
        """
        if isinstance(item, list | tuple):
            raise ItemError(
                f"a {type(item).__name__} stands among the parts of a chunk; expected {self._readable()}: put all "
                "parts in one list, or encode it as a chunk of its own"
            )
        if isinstance(item, str | Path | Image.Image | np.ndarray):
            item = open_item(item)
        if isinstance(item, str):
            if not self._chat.encode(item):
                raise ItemError("the text is empty; a chunk needs at least one token")
            return _Part(None, item, ("text", item, b""))
        for medium in self.architecture.media:
            if medium.reads(item):
                item = medium.normal(item)
                return _Part(medium, item, medium.digested(item, self._settings[medium.kind]))
        given = "an image" if isinstance(item, Image.Image | np.ndarray) else f"of type {type(item).__name__}"
        raise ItemError(f"the item is {given}; this model reads {self._readable()}")

    def _readable(self) -> str:
        """What the model reads, in words."""
        media = [medium.items for medium in self.architecture.media]
        return ", ".join([f"text {'' if media else 'alone '}(str, or a .txt or .md file)", *media])

    def _spans(self, parts: Sequence["_Part"]) -> list[Span]:
        """Text and media blocks of a chunk, in the order of its tokens."""
        placeholders = self.config.placeholders
        blocks: dict[int, list[_Part]] = {}
        for part in parts:
            if part.medium is not None:
                blocks.setdefault(placeholders[part.medium.kind], []).append(part)
        content = [part.item if part.medium is None else Block(part.medium.kind) for part in parts]
        spans = []
        text: list[int] = []
        for number in self._chat.content(content, placeholders):
            if number not in blocks:
                text.append(number)
                continue
            spans += [Span(text)] if text else []
            text = []
            part = blocks[number].pop(0)
            with _named(part.place):
                spans += self._block(part)
        return [*spans, Span(text)] if text else spans

    def _block(self, part: "_Part") -> Sequence[Span]:
        """The spans of a medium's part."""
        medium: Any = part.medium
        tower = self.config.towers[medium.tower]
        encode = partial(_encode, self.params[medium.tower], medium=medium, tower=tower)
        return medium.spans(part.item, self._settings[medium.kind], self.config, self._chat, encode)

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
        return compose([Span(ids)], self.spec.rope.axes, _digest(content))


@dataclass(frozen=True, eq=False)
class _Part:
    """A part of an item, opened.

    Attributes:
        medium: what reads it; None for text.
        item: the text, or what the medium reads.
        digested: what its digest is made of: kind and version, what says its shape, and its content.
        place: what names it among several parts, for messages.
    """

    medium: Medium | None
    item: Any
    digested: tuple[str, str, bytes]
    place: str = ""

    def digest(self, ids: Sequence[int]) -> str:
        """sha256 of the part where it has these token ids."""
        kind, shape, payload = self.digested
        return _digest(f"{kind}:{list(ids)}:{shape}", payload)


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Puts ``place`` before the message of what is raised about an item."""
    try:
        yield
    except (ImageError, ItemError) as error:
        raise type(error)(f"{place}{error}") from error


def _stored_dtype(folder: Path, mapping: Mapping[str, Any]) -> np.dtype:
    """What config.json says; where it does not, what most of the weights are stored in.

    Raises:
        UnsupportedConfigError: parameters cannot have it.
    """
    field = next((name for name in ("dtype", "torch_dtype") if mapping.get(name) not in (None, "auto")), None)
    dtype = stored_dtype(folder) if field is None else mapping[field]
    try:
        return floating(dtype, f"config.json: {field}" if field else "the dtype that most of the weights are stored in")
    except DtypeError as error:
        raise UnsupportedConfigError(f'{error}; say what to load it in, such as load(…, dtype="float32")') from error


def _preprocessing(folder: Path, kind: str = "image") -> dict[str, Any]:
    """Settings of a kind of media: a file of their own, or, from transformers 5, a section of the processor's.

    Kinds that have neither are preprocessed as images are.
    """
    own = "preprocessor_config.json" if kind == "image" else f"{kind}_preprocessor_config.json"
    if (folder / own).exists():
        return read_json(folder / own)
    if (folder / "processor_config.json").exists():
        processor = Fields("processor_config.json", read_json(folder / "processor_config.json"))
        if kind == "image" or f"{kind}_processor" in processor.rest:
            return processor.take(f"{kind}_processor", dict)
    return read_json(folder / own) if kind == "image" else _preprocessing(folder)


def _calibration(folder: Path, fingerprint: str) -> Calibration | None:
    if not (folder / CALIBRATION).exists():
        return None
    calibration = Calibration.from_json((folder / CALIBRATION).read_text(encoding="utf-8"))
    return calibration if calibration.model == fingerprint else None


@partial(jax.jit, static_argnames=("medium", "tower"))
def _encode(params: Params, inputs: jax.Array, plan: Any, *, medium: Any, tower: Any) -> Features:
    """The features of one media block: one compilation a bucket of the tower."""
    return medium.encode(params, tower, inputs, plan)


def _digest(text: str, payload: bytes = b"") -> str:
    return hashlib.sha256(text.encode() + b"\0" + payload).hexdigest()
