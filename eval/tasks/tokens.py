"""Chunks and continuations that are token ids, not items that the model has yet to read."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kamera_jax.backbone import Backbone
from kamera_jax.identity import content_key
from kamera_jax.kv import Segment
from models.hub.borders import TrailingSpaceWarning
from models.media.spans import Span, compose


@dataclass(frozen=True)
class Tokens:
    """An item of a context: the chunk of these token ids, as they are, without what a chat template writes around text.

    Attributes:
        ids: at least one.
    """

    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what no model reads."""
        object.__setattr__(self, "ids", checked_ids(self.ids, "a chunk of tokens"))
        if not self.ids:
            raise ValueError("a chunk of tokens is empty; give at least one token id")

    @staticmethod
    def of(ids: Iterable[Any]) -> "Tokens":
        """The chunk of these token ids, whatever array they come in."""
        return Tokens(tuple(int(each) for each in ids))


def checked_ids(ids: Sequence[Any], what: str) -> tuple[int, ...]:
    """The token ids as plain whole numbers.

    Raises:
        ValueError: one of them is none.
    """
    wrong = [each for each in ids if isinstance(each, (bool, str, float)) or int(each) != each or each < 0]
    if wrong:
        raise ValueError(f"token ids are whole numbers of at least 0; {what} has {wrong[0]!r}")
    return tuple(int(each) for each in ids)


def segment_of(vlm: Backbone, item: Any) -> Segment:
    """What the model reads of a context's item: `Tokens` as they are, everything else as the model prepares it."""
    if not isinstance(item, Tokens):
        return vlm.prepare(item)
    return compose([Span(item.ids)], vlm.spec.rope.axes, content_key({"tokens": list(item.ids)}))


def ids_of(vlm: Backbone, text: str) -> list[int]:
    """Token ids of a text as the model prepares it; it is a part of a corpus, which may end anywhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrailingSpaceWarning)
        segment = vlm.prepare(text)
    tokens = np.asarray(segment.inputs["tokens"])  # on the host: a slice on the device compiles for each length
    return tokens[: int(segment.length)].tolist()


def spelling(vlm: Backbone, token: int) -> str:
    """The text of one token; its number where it is no text by itself, as a part of a letter is not."""
    text = vlm.decode([token])
    return text if text and "\ufffd" not in text else f"<token {token}>"
