"""A vision-language checkpoint as a backbone: hub folder in, `kamera_jax.Backbone` out, the same for every port."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from kamera_jax.backbone import BackboneBase
from kamera_jax.dtypes import floating
from kamera_jax.finder.heads import RetrievalHeads
from kamera_jax.guard.calibration import Calibration
from kamera_jax.identity import content_key
from kamera_jax.kv import KVSpec, Segment
from kamera_jax.session.warm import QUESTION, Progress, warm
from kamera_jax.transfer import to_device
from kamera_jax.window.window import Mode
from models.architecture import Architecture, Config, Encode, Medium, describe_attention, describe_params, sampling_of
from models.blocks import decoder, int8, unstacked
from models.blocks.params import Params, check_params, params_digest
from models.blocks.sharding import Rules, on_device, param_shardings, placement_of
from models.errors import FrozenParamsError
from models.forward import COLLECTS, COLLECTS_OF_EXPERTS, forward_of
from models.hub.calibration import CALIBRATION, read_calibration
from models.hub.chat import ChatTemplate
from models.hub.fields import preprocessing_of, read_json
from models.hub.weights import declared_dtype, load_params, revision
from models.items import Preprocessed, digest
from models.media.sampling import Sampling
from models.media.spans import Features, Pending, Span, compose
from models.preprocessor import ItemError, Preprocessor

__all__ = ["CALIBRATION", "ItemError", "VisionLanguageModel"]

_SHOWN = 60
"""Letters of a model's name in its ``repr``."""


class VisionLanguageModel(BackboneBase):
    """A checkpoint of one of the ports.

    Attributes:
        name: what it was loaded by, for people; empty where it was put together otherwise.
        architecture: the port.
        config: its configuration.
        spec: what its KV is.
        params: its parameters; see `with_params` for other ones.
        fingerprint: config, preprocessing and weights revision.
        preamble: system text and user header.
        closing: tokens after an answer, up to the next question.
        eos: tokens that end an answer.
        forward: see `kamera_jax.backbone.Backbone.forward`.
        placement: where its KV lies on a mesh; None on one device.
        preprocess: what the host does with an item before the model sees it, by a loader's workers too: `prepare` and
            all that calls it take what it returns in place of the item. See `models.preprocessor.Preprocessor`.
        calibration: for `kamera_jax.ReusePolicy`: what `CALIBRATION` beside the weights holds, if it was measured with
            these weights in this dtype; else None.
    """

    name: str = ""
    retrieval: RetrievalHeads | None = None
    attends_in_place = True
    reads_context = True
    reads_bias = True
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
        sampling: Mapping[str, Sampling] | None = None,
    ) -> None:
        """Put together what `load` reads.

        ``params`` is a tree as declared by the architecture; ``settings`` is what each medium's ``settings`` gave, by
        kind, and ``sampling`` what its ``sampling`` did.
        """
        text = config.text
        rot_dim, free_dim, heads = text.attention.kv_widths
        self.architecture = architecture
        self.config = config
        self._params = params
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
        self._place()
        self.collects = COLLECTS_OF_EXPERTS if text.experts else COLLECTS
        self._chat = chat
        made = dict(identity)
        reads = [made.get("configuration", fingerprint), made.get("preprocessing", ""), list(chat.preamble)]
        self.preprocess = Preprocessor(architecture, config, chat, settings, content_key({"reads": reads}), sampling)
        self.eos = chat.eos
        self.closing = chat.closing
        self.preamble = self._text_segment(chat.preamble, f"preamble:{list(chat.preamble)}")

    def __repr__(self) -> str:
        text = self.config.text
        name = self.name if len(self.name) <= _SHOWN else f"…{self.name[-_SHOWN:]}"
        model = f"{name!r} ({self.architecture.name})" if name else f"of {self.architecture.name}"
        return (
            f"<{type(self).__name__} {model}: {text.num_hidden_layers} layers, "
            f"{describe_attention(text.attention)}, {describe_params(self.params)}, "
            f"fingerprint {self.fingerprint[:12]}{'' if self.placement is None else f'; {self.placement}'}>"
        )

    @classmethod
    def load(
        cls,
        architecture: Architecture,
        folder: Path,
        *,
        dtype: Any = None,
        system: str | None = None,
        device: Any = None,
        mesh: jax.sharding.Mesh | None = None,
        rules: Rules | None = None,
        weights: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> "VisionLanguageModel":
        """Read a Hugging Face folder in hub format.

        Args:
            architecture: the port to read it with.
            folder: with config.json, safetensors, tokenizer and preprocessor_config.json.
            dtype: of parameters and KV, float32, bfloat16 or float16 by any of their names; the checkpoint's by
                default.
            system: system text of the preamble; the chat template's own by default.
            device: where the parameters are placed, and with them all that is run; the default one if left out.
            mesh: devices to place the parameters on, in place of ``device``.
            rules: how they are split over the mesh; see `models.blocks.sharding.param_shardings`.
            weights: how the language model's matrices are stored; see `models.blocks.int8`.
            chat_template_kwargs: variables of the chat template, by name.

        Raises:
            ValueError: a subclass named for what is missing, truncated, unknown or unsupported.
        """
        mapping = read_json(folder / "config.json")
        config = architecture.config_from_hf(mapping)
        auto = dtype is None or (isinstance(dtype, str) and dtype.strip().lower() == "auto")
        dtype = declared_dtype(folder, mapping) if auto else floating(dtype)
        preprocessing = preprocessing_of(folder) if architecture.media else {}
        declared = architecture.declaration(config)
        table = architecture.weight_table(config)
        shardings = None if mesh is None else param_shardings(declared, mesh, rules)
        if device is not None:
            shardings = on_device(declared, device)
        how = {} if weights is None else {"stored_as": int8.stored}
        params = load_params(folder, declared, table, dtype, shardings, **how)
        made: Any = revision(folder) if weights is None else [revision(folder), int8.SCHEME]
        identity = {"config": mapping, "preprocessing": preprocessing, "weights": made, "dtype": str(dtype)}
        fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        kinds = architecture.written_kinds
        chat = ChatTemplate.load(folder, system=system, kinds=kinds, variables=chat_template_kwargs)
        read = {each: preprocessing_of(folder, each.kind) for each in architecture.media}
        settings = {each.kind: each.settings(own, config) for each, own in read.items()}
        sampling = {each.kind: sampling_of(each, own, config) for each, own in read.items()}
        parts = {"configuration": mapping, "preprocessing": preprocessing, "weights": identity["weights"]}
        return cls(
            architecture,
            config,
            params,
            chat,
            settings,
            fingerprint,
            read_calibration(folder, fingerprint),
            tuple((name, content_key({name: part})) for name, part in parts.items()),
            sampling,
        )

    def prepare(self, item: Any) -> Segment:
        """A chunk's tokens: str is text, Path a file, PIL image or uint8[H, W, 3] an image, or a Video or an Audio.

        A video file has the frames that the model's preprocessing takes; `models.VideoFile` states other ones.

        A list or tuple of these is one chunk, with its texts and media as the chat template writes the parts of one
        message; of one item it is that item. What ``preprocess`` made of an item, in this process or another, is taken
        in its place. A text that ends in white space which the tokenizer would join to a word behind it brings a
        `models.hub.borders.TrailingSpaceWarning`, alone or as the last of several parts.

        Raises:
            ValueError: it cannot be read, is empty, has another type, or was preprocessed for another model.
        """
        if isinstance(item, Preprocessed):
            done = self.preprocess.checked(item)
            return compose([self._encoded(span) for span in done.spans], self.spec.rope.axes, done.content)
        spans, content = self.preprocess.read(item, self._encoder)
        return compose(spans, self.spec.rope.axes, content)

    def cut(self, item: Any, *, tokens: int) -> tuple[Any, ...]:
        """A long item in parts that `prepare` takes one by one, each of at most so many tokens.

        A text is cut before white space, so that its token ids stay as they are; a video between its temporal patches.
        See `models.preprocessor.Preprocessor.cut`.

        Raises:
            ValueError: the item cannot be read, or ``tokens`` is below 1.
        """
        return self.preprocess.cut(item, tokens=tokens)

    def segments(self, item: Any, *, seconds: float | int) -> Iterator[Any]:
        """The segments of a video or recording, or a file of one, each read when it is asked for; else the item alone.

        See `models.preprocessor.Preprocessor.segments`.
        """
        return self.preprocess.segments(item, seconds=seconds)

    def _encoded(self, span: Span) -> Span:
        """The span with the features of its block."""
        block = span.features
        if not isinstance(block, Pending):
            return span
        return replace(span, features=self._encoder(self.architecture.medium(block.kind))(block.inputs, block.plan))

    def _encoder(self, medium: Medium) -> Encode:
        """What runs a medium's tower."""
        named: Any = medium  # hashable, as its protocol asks
        params = self.params[medium.tower]
        if getattr(medium, "reads_embeddings", False):
            params = {**params, "embeddings": int8.floats(self.params["text"]["embed"]["w"])}
        tower = self.config.towers[medium.tower]

        def encode(inputs: Any, plan: Any) -> Features:
            return _encode(params, *to_device((inputs, plan)), medium=named, tower=tower)

        return encode

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

    def decoding_params(self, params: Params) -> Params:
        """On a CPU large layers are handed to a decoding program one by one; see `models.blocks.unstacked`."""
        return unstacked.views(self, params)

    def leading(self, layers: int) -> "VisionLanguageModel":
        """The model cut off after its first ``layers`` layers, which share their parameters with it.

        Raises:
            ValueError: it has fewer layers, or none are asked for.
        """
        text = self.config.text.leading(layers)
        cut = copy(self)
        cut.config = replace(self.config, text=text)
        cut._params = {**self.params, "text": decoder.leading_params(self.params["text"], text)}
        cut.fingerprint = digest(f"{self.fingerprint}: first {layers} layers")
        cut.spec = replace(self.spec, layers=layers, fingerprint=cut.fingerprint)
        cut.forward = forward_of(text, self.placement)
        cut.calibration = None
        return cut

    @property
    def params(self) -> Params:
        """The parameters."""
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        raise FrozenParamsError(
            f"the parameters of a {type(self).__name__} are not assigned to: its fingerprint, its preamble and the "
            "keys of all its chunks are those of the parameters that it was made with. Other parameters make another "
            'model: tuned = vlm.with_params(params, revision="…"); the same ones elsewhere: vlm.to(device)'
        )

    def with_params(self, params: Params, *, revision: str | None = None) -> "VisionLanguageModel":
        """The model with other parameters, fine-tuned ones say: another model, whose chunks have other keys.

        What was compiled is shared, as long as shapes and dtypes are. Its preamble is run anew, and it has no
        calibration.

        Args:
            params: as ``vlm.params``, of the same names and shapes, all of one floating-point dtype but for those that
                the architecture declares in another.
            revision: what names these values, such as a run and a step: whoever gives the same name twice says that
                they are the same. By default a digest of every byte, for which the host reads them all.

        Raises:
            ParamsError: the parameters do not fit the model, or have no values yet to be digested.
            DtypeError: they are of a dtype that parameters cannot have.
        """
        dtype = check_params(self.architecture.declaration(self.config), params)
        revised = content_key({"params": params_digest(params) if revision is None else f"revision {revision}"})
        parts = [(name, part) for name, part in self.spec.identity if name != "weights"]
        other = copy(self)
        other._params = params
        other.fingerprint = digest(f"{self.fingerprint}: parameters {revised} in {dtype.name}")
        identity = (*parts, ("weights", revised))
        other.spec = replace(self.spec, dtype=dtype.name, fingerprint=other.fingerprint, identity=identity)
        other.calibration = None
        other._place()
        return other

    def to(self, where: Any) -> "VisionLanguageModel":
        """The same model, of the same fingerprint and keys, with its parameters and its preamble somewhere else.

        On a mesh its windows lie as its parameters do: KV heads are split over the mesh axes that the queries' are.

        Args:
            where: a ``jax.Device`` or ``jax.sharding.Sharding`` for all parameters, or a tree of them, one for each.
        """
        moved = copy(self)
        moved._params = jax.device_put(self.params, where)
        moved._place()
        return moved

    def _place(self) -> None:
        """Let KV lie where the parameters do."""
        self.placement = placement_of(self.spec, self.params["text"])
        self.forward = forward_of(self.config.text, self.placement)

    def __getstate__(self) -> dict[str, Any]:
        """All but what is made of the configuration again, so that programs are shared with the model it came from."""
        return {name: value for name, value in vars(self).items() if name not in ("forward", "placement")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._place()

    def warm(
        self,
        capacity: int,
        *,
        mode: Mode = "materialise",
        rank: int | None = None,
        items: Sequence[Any] | None = None,
        questions: Sequence[str] = (QUESTION,),
        max_new_tokens: int = 16,
        progress: Progress | None = None,
    ) -> None:
        """Compile what a session of this model runs before its first turn; see `kamera_jax.session.warm.warm`.

        Args:
            capacity, mode, rank: of the session to come; see `kamera_jax.Session`.
            items: stand-ins, one of each size that will come; by default texts of 16 to 256 tokens.
            questions, max_new_tokens, progress: see `kamera_jax.session.warm.warm`.

        Raises:
            ValueError: see `kamera_jax.session.warm.warm`.
        """
        turns: dict[str, Any] = {"questions": questions, "max_new_tokens": max_new_tokens, "progress": progress}
        warm(self, capacity, mode=mode, rank=rank, items=() if items is None else items, **turns)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        return self._chat.decode(tokens)

    def _text_segment(self, ids: Sequence[int], content: str) -> Segment:
        return compose([Span(ids)], self.spec.rope.axes, digest(content))


@partial(jax.jit, static_argnames=("medium", "tower"))
def _encode(params: Params, inputs: jax.Array, plan: Any, *, medium: Any, tower: Any) -> Features:
    """The features of one media block: one compilation a bucket of the tower."""
    return medium.encode(params, tower, inputs, plan)
