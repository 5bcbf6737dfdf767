"""An item on its way to a model: opened, in parts, and preprocessed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.architecture import Medium
from models.media.spans import Span


@dataclass(frozen=True, eq=False, repr=False)
class Preprocessed:
    """An item as `Preprocessor` leaves it: token ids, and what the towers will read, in numpy alone.

    It pickles, and `VisionLanguageModel.prepare` takes it in place of the item.

    Attributes:
        spans: text and media blocks; the features of a block are a `Pending`.
        content: digest of what it was made from.
        made_for: digest of the configuration and preprocessing that it was made with.
        text: of a piece that `Preprocessor.cut` made of a text, its letters; otherwise empty.
    """

    spans: tuple[Span, ...]
    content: str
    made_for: str
    text: str = ""

    def __repr__(self) -> str:
        tokens = sum(len(span.ids) for span in self.spans)
        return f"<Preprocessed {self.content[:12]}: {tokens} tokens in {len(self.spans)} spans>"


@dataclass(frozen=True, eq=False)
class Part:
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
        return digest(f"{kind}:{list(ids)}:{shape}", payload)


def digest(text: str, payload: bytes = b"") -> str:
    """sha256 of a text and of bytes."""
    made = hashlib.sha256(text.encode() + b"\0")
    made.update(payload)  # apart: joined, a large image would be copied
    return made.hexdigest()
