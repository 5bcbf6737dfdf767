"""A corpus as a model reads it: token ids, and where paragraphs begin among them.

A document is read paragraph by paragraph, each with the line breaks before it: in tokenizers that split text at
white space (GPT-2's, and those made after it) the ids are then those of the whole document, whereas a paragraph that
is read with the breaks behind it ends in other tokens. Passages are cut from ids, so no border changes a token.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

import kamera_jax as kj
from eval.tasks.text.corpus import Corpus
from eval.tasks.tokens import Tokens, ids_of, segment_of, spelling
from kamera_jax.backbone import Backbone
from kamera_jax.forward import run

SEED = 90_000_000
"""Far from every other seed."""

BREAK = "\n\n"
"""What parts paragraphs, and what is written before text of a task's own."""


LETTERS = 2000
"""Letters of a text that are tokenized together, where it has blanks to be cut before: no token reaches across one."""


def _parts(text: str) -> Iterable[str]:
    """A text cut before blanks."""
    start = 0
    while len(text) - start > LETTERS:
        end = text.rfind(" ", start + 1, start + LETTERS)
        if end < 0:
            end = text.find(" ", start + LETTERS)
        if end < 0:
            break
        yield text[start:end]
        start = end
    yield text[start:]


class CorpusTooSmallError(ValueError):
    """A corpus with fewer passages than a run needs."""


@dataclass(frozen=True)
class Piece:
    """Token ids of a text.

    Attributes:
        ids: of all its tokens.
        starts: indices of the first token of every paragraph.
    """

    ids: np.ndarray
    starts: np.ndarray


class Reader:
    """Cuts a corpus into passages of a model's tokens, always the same ones.

    Attributes:
        vlm: the model.
        corpus: the texts.
    """

    def __init__(self, vlm: Backbone, corpus: Corpus) -> None:
        """Read nothing yet."""
        self.vlm = vlm
        self.corpus = corpus
        self._spellings: dict[int, str] = {}
        self._passages: dict[tuple[int, int, bool], list[np.ndarray]] = {}
        self._unprompted: dict[tuple[int, ...], np.ndarray] = {}

    @cached_property
    def documents(self) -> list[Piece]:
        """The documents."""
        return [self._read(text) for text in self.corpus.documents]

    @cached_property
    def whole(self) -> Piece:
        """All documents one behind the other."""
        offsets = np.cumsum([0, *(len(each.ids) for each in self.documents)])
        starts = [each.starts + offset for each, offset in zip(self.documents, offsets, strict=False)]
        return Piece(np.concatenate([each.ids for each in self.documents]), np.concatenate(starts))

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, which may be longer than the model; none of white space that it has no tokens for."""
        try:
            return [token for part in _parts(text) for token in ids_of(self.vlm, part)]
        except ValueError:
            if text.strip():
                raise
            return []

    def spelling(self, token: int) -> str:
        """The text of one token."""
        if token not in self._spellings:
            self._spellings[token] = spelling(self.vlm, token)
        return self._spellings[token]

    def text(self, ids: Iterable[Any]) -> str:
        """The text of tokens in a row."""
        return self.vlm.decode([int(each) for each in ids])

    def unprompted(self, ids: Sequence[int]) -> np.ndarray:
        """Next-token probabilities of the model behind these tokens, with nothing before them but the preamble."""
        key = tuple(ids)
        if key not in self._unprompted:
            window = kj.Window.empty(self.vlm, max(int(self.vlm.preamble.length), 1))
            tail = segment_of(self.vlm, Tokens(key))
            base = np.float32(window.next_position)
            output = run(self.vlm.params, tail, window.state, base=base, forward=self.vlm.forward, last=True)
            assert output.logits is not None
            self._unprompted[key] = np.asarray(jax.nn.softmax(output.logits[0]))
        return self._unprompted[key]

    def passages(self, tokens: int, *, lead: int = 0, across: bool = False) -> list[np.ndarray]:
        """Passages of exactly so many tokens that do not overlap, in the corpus' order.

        Args:
            tokens: of each passage.
            lead: at which of its tokens a paragraph begins; the first by default.
            across: whether a passage may go on from one document into the next.
        """
        key = (tokens, lead, across)
        if key not in self._passages:
            pieces = [self.whole] if across else self.documents
            self._passages[key] = [passage for piece in pieces for passage in _cut(piece, tokens, lead)]
        return self._passages[key]

    def chosen(self, seed: int, tokens: int, *, lead: int = 0, across: bool = False) -> list[np.ndarray]:
        """The same passages in an order drawn by the seed."""
        passages = self.passages(tokens, lead=lead, across=across)
        order = np.random.default_rng((SEED, seed, tokens)).permutation(len(passages))
        return [passages[i] for i in order]

    def check(self, count: int, tokens: int, *, lead: int = 0, across: bool = False) -> None:
        """Refuse a corpus that has too few passages.

        Args:
            count: how many are needed.
            tokens, lead, across: see `passages`.

        Raises:
            CorpusTooSmallError: there are fewer.
        """
        there = len(self.passages(tokens, lead=lead, across=across))
        if there >= count:
            return
        longest = max(len(each.ids) for each in self.documents)
        where = "of it" if across else f"of one document each (the longest has {longest} tokens)"
        raise CorpusTooSmallError(
            f"the corpus {self.corpus.name} has {len(self.whole.ids)} tokens of this model in {len(self.documents)} "
            f"documents, and {there} passages of {tokens} tokens {where} in which a paragraph begins where the task "
            f"needs one; {count} passages, {count * tokens} tokens, are needed for each seed: give a larger corpus "
            "(corpus=FOLDER), fewer contexts (--limit), or shorter passages (tokens=N)"
        )

    def _read(self, text: str) -> Piece:
        ids: list[int] = []
        starts: list[int] = []
        for paragraph in _paragraphs(text):
            own = self.ids(paragraph)
            blank = next((i for i, token in enumerate(own) if self.spelling(token).strip()), 0)
            starts.append(len(ids) + blank)
            ids += own
        return Piece(np.asarray(ids, np.int32), np.asarray(starts, np.int64))


def _paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, each with the line breaks before it; the first with `BREAK`."""
    parts = re.split(r"(\n(?:[^\S\n]*\n)+)", text)
    breaks = [BREAK, *parts[1::2]]
    return [before + paragraph for before, paragraph in zip(breaks, parts[::2], strict=True) if paragraph.strip()]


def _cut(piece: Piece, tokens: int, lead: int) -> Sequence[np.ndarray]:
    """The passages of a text: each begins at the first place behind the one before it where it can."""
    passages = []
    end = 0
    for start in piece.starts - lead:
        if start >= end and start >= 0 and start + tokens <= len(piece.ids):
            passages.append(piece.ids[start : start + tokens])
            end = start + tokens
    return passages
