"""What a port says of itself; `models.vlm` does the rest."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax

from kamera_jax.handle import in_bytes, traced
from models.blocks.attention import Latent
from models.blocks.decoder import DecoderConfig, text_declaration
from models.blocks.params import Params
from models.hub.chat import ChatTemplate
from models.hub.weight_table import WeightTable
from models.media.sampling import Sampling
from models.media.spans import Features, Span

Encode = Callable[[Any, Any], Features]
"""A medium's ``encode`` with parameters and configuration in place: what its tower reads, and the plan, to features."""


@dataclass(frozen=True)
class Config:
    """Everything a port needs to know of a checkpoint.

    Attributes:
        text: the language model.
        vision: the vision tower and its projector, as the port has them; None for a model without one.
        image_token_id: the placeholder that an image's tokens stand in; None for a model that reads no images.
        towers: the configuration of each tower, by the name that a `Medium` has for it; ``vision`` is that of
            ``"vision"``.
        media: what else a medium needs to know of config.json, by its kind.
        placeholders: the token that stands for a block in what the chat template writes, by kind of medium; of
            ``"image"`` it is ``image_token_id``.
    """

    text: DecoderConfig
    vision: Any = None
    image_token_id: int | None = None
    towers: Mapping[str, Any] = field(default_factory=dict, hash=False)
    media: Mapping[str, Any] = field(default_factory=dict, hash=False)
    placeholders: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.vision is not None:
            object.__setattr__(self, "towers", {**self.towers, "vision": self.vision})
        if self.image_token_id is not None:
            object.__setattr__(self, "placeholders", {**self.placeholders, "image": self.image_token_id})


@runtime_checkable
class Medium(Protocol):
    """A kind of media that a port reads; hashable, for it is a static argument of what is compiled.

    One whose ``reads_embeddings`` is true, which may be left out, gets the language model's embeddings [V, E] in
    `encode`, as ``params["embeddings"]``. One whose spans bring the tokens that the chat template writes before and
    behind its placeholder says them in ``around(config)``, a pair of ids, or None; it may be left out too. One whose
    placeholder only the tokenizer knows, and not config.json, names it as ``placeholder``, such as ``"<video>"``; it is
    then no key in `Config.placeholders`. One that the chat template writes as another kind's content parts, whose
    placeholder it then has, says which in ``written_as``.
    """

    @property
    def kind(self) -> str:
        """The type of its content parts in the chat template, and its key in `Config.placeholders`."""
        ...

    @property
    def tower(self) -> str:
        """The name of its parameters, and its key in `Config.towers`; media of one name share a tower."""
        ...

    @property
    def items(self) -> str:
        """What it reads, in words, for messages."""
        ...

    def settings(self, preprocessing: Mapping[str, Any], config: Config) -> Any:
        """How items become what the tower reads, from the checkpoint's preprocessing."""
        ...

    def declaration(self, tower: Any) -> Params:
        """Every parameter of the tower."""
        ...

    def reads(self, item: Any) -> bool:
        """Whether an opened item is of this kind: a PIL image, an array, or plain data such as `kamera_jax.Video`."""
        ...

    def normal(self, item: Any) -> Any:
        """The item in the one form that `digested` and `spans` take; raises ValueError where it cannot be read."""
        ...

    def digested(self, item: Any, settings: Any) -> tuple[str, str, bytes]:
        """What names a normal item: kind and version of the preprocessing, shape, and content.

        ``settings`` are part of it where they are not what the model's fingerprint covers: the images' preprocessing.
        """
        ...

    def spans(self, item: Any, settings: Any, config: Config, chat: ChatTemplate, encode: Encode) -> Sequence[Span]:
        """What stands at the placeholder that the template writes for a normal item.

        Text within it, such as timestamps and what parts tiles, is ``chat.ids`` of it.
        """
        ...

    def cut(self, item: Any, settings: Any, config: Config, tokens: int) -> Sequence[Any]:
        """A normal item in parts of at most so many tokens of its own, cut where the tower sees no further."""
        ...

    def encode(self, params: Params, tower: Any, inputs: jax.Array, plan: Any) -> Features:
        """Run the tower over one block; pure, and traced."""
        ...


def sampling_of(medium: Any, preprocessing: Mapping[str, Any], config: Config) -> Sampling:
    """Which frames a medium takes of a video file: what its ``sampling`` states, with the arguments of `settings`.

    It may be left out: two frames a second are taken then.
    """
    own = getattr(medium, "sampling", None)
    return Sampling() if own is None else own(preprocessing, config)


@dataclass(frozen=True)
class Architecture:
    """A port: a reading of the configuration, a weight table, and the media it reads.

    Attributes:
        name: ``model_type`` in config.json.
        config_from_hf: config.json to `Config`.
        weight_table: hub names of all tensors.
        media: what it reads beside text; none for a language model.
        frames_as_images: whether a video is read as its frames, an image each; of a port without videos.
    """

    name: str
    config_from_hf: Callable[[Mapping[str, Any]], Config]
    weight_table: Callable[[Config], WeightTable]
    media: tuple[Medium, ...] = ()
    frames_as_images: bool = False

    def declaration(self, config: Config) -> Params:
        """Every parameter of the model."""
        towers = {medium.tower: medium.declaration(config.towers[medium.tower]) for medium in self.media}
        return {"text": text_declaration(config.text), **towers}

    @property
    def written_kinds(self) -> tuple[str, ...]:
        """The kinds of content parts by which chat templates write its media, each once."""
        return tuple(dict.fromkeys(map(written_as, self.media)))

    def medium(self, kind: str) -> Any:
        """The medium of a kind.

        Raises:
            KeyError: the port reads none of it.
        """
        return {medium.kind: medium for medium in self.media}[kind]


def describe_attention(attention: Any) -> str:
    """A decoder's attention in words: MLA, MHA, MQA or GQA, and its heads."""
    kv_heads = attention.kv_widths[2]
    if isinstance(attention, Latent):
        return f"MLA of {attention.heads} heads"
    if attention.heads == kv_heads:
        return f"MHA of {attention.heads} heads"
    return f"{'MQA' if kv_heads == 1 else 'GQA'} of {attention.heads} heads on {kv_heads}"


def describe_params(params: Params) -> str:
    """Parameters in words: how many, of which dtype, their bytes and where they lie."""
    leaves = jax.tree.leaves(params)
    sizes: dict[str, int] = {}
    places: set[Any] = set()
    for leaf in leaves:
        sizes[str(leaf.dtype)] = sizes.get(str(leaf.dtype), 0) + leaf.size * leaf.dtype.itemsize
        if isinstance(leaf, jax.Array) and not traced(leaf):
            places |= leaf.sharding.device_set
    where = f"{len(places)} devices" if len(places) > 1 else "".join(map(str, places)) or "no device"
    dtypes = " and ".join(sorted(sizes, key=lambda name: -sizes[name]))
    count = sum(leaf.size for leaf in leaves)
    return f"{count:,} parameters in {dtypes} ({in_bytes(sum(sizes.values()))}) on {where}"


def written_as(medium: Medium) -> str:
    """The kind of the content part by which the chat template writes a block of a medium."""
    return getattr(medium, "written_as", medium.kind)


def placeholder_of(medium: Medium, config: Config, chat: ChatTemplate) -> int:
    """The token that the chat template writes for a block of a medium."""
    named = getattr(medium, "placeholder", None)
    return config.placeholders[written_as(medium)] if named is None else chat.token(named)


def around_of(medium: Medium, config: Config) -> tuple[int, int] | None:
    """The tokens before and behind a medium's placeholder that its spans bring themselves; None where they do not."""
    around = getattr(medium, "around", None)
    return None if around is None else around(config)


def less_around(ids: Sequence[int], around: Mapping[int, tuple[int, int] | None]) -> list[int]:
    """What a chat template writes, less what stands around placeholders whose spans bring that themselves.

    Args:
        ids: token ids.
        around: the two tokens, by placeholder.
    """
    kept = list(ids)
    for at in reversed([at for at, number in enumerate(ids) if around.get(number) is not None]):
        if (*kept[max(at - 1, 0) : at], *kept[at + 1 : at + 2]) == around[kept[at]]:
            del kept[at + 1], kept[at - 1]
    return kept
