"""Episodes packed into arrays for training: all questions of an episode share its chunks, and do not see each other."""

from dataclasses import dataclass
from typing import Any

import flax.struct
import numpy as np

from eval.tiny import pages
from eval.tiny.backbones import EMBEDDED, TinyBackbone
from eval.tiny.episodes import (
    PASSAGE_FACTS,
    Episode,
    Recipe,
    all_questions,
    bound_glyphs,
    passage,
    question_text,
    sample_episode,
)
from eval.tiny.glyphs import COLOUR_NAMES, NAMES


@flax.struct.dataclass
class Batch:
    """B episodes of S tokens, Q questions.

    Attributes:
        ids: i32[B, S]: a text token, or vocabulary size + cell id.
        positions: f32[B, A, S].
        chunk: i32[B, S]: chunk index; -1 in the preamble, and in tails and padding.
        tail: i32[B, S]: 0 outside tails, 1..Q in them, -1 in padding.
        hidden: bool[B, Q + 1, C + 1]: chunks (last column: none) a tail (row 0: none) does not see.
        ask: i32[B, Q, 3]: where the colour is predicted (the token before it), the end of turn after it,
            and, to teach the look-up without the turn around it, the colour at the glyph's name.
        answer: i32[B, Q, 3]: those tokens.
        weight: f32[3]: what each of the three counts in the loss.
        hops: i32[B, Q].
        probe: i32[B, R]: cells and words that have to bind to a colour: references, and glyphs named in a passage.
        probe_answer: i32[B, R]: those colours; -1 for no probe.
        probe_layer: i32[B, R]: the first layer after which they shall be bound.
        probe_weight: f32[]: what they count in the loss.
    """

    ids: Any
    positions: Any
    chunk: Any
    tail: Any
    hidden: Any
    ask: Any
    answer: Any
    weight: Any
    hops: Any
    probe: Any
    probe_answer: Any
    probe_layer: Any
    probe_weight: Any


@dataclass(frozen=True)
class Words:
    """Token ids of the tiny vocabulary that packing needs."""

    ids: dict[str, int]
    size: int

    def text(self, text: str) -> list[int]:
        """Token ids of plain words and punctuation."""
        for mark in ".?,;":
            text = text.replace(mark, f" {mark}")
        return [self.ids[word] for word in text.split()]

    @property
    def preamble(self) -> list[int]:
        """System text and user header."""
        start = self.ids["<|im_start|>"]
        end = self.ids["<|im_end|>"]
        return [start, *self.text("system you read pages"), end, start, self.ids["user"]]

    def tail(self, question: str) -> list[int]:
        """Question and assistant header."""
        return [*self.text(question), self.ids["<|im_end|>"], self.ids["<|im_start|>"], self.ids["assistant"]]


PROBES = 24
"""Cells and words of an episode that are probed for the colour they are bound to."""


class _Row:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[tuple[float, ...]] = []
        self.chunk: list[int] = []
        self.tail: list[int] = []

    def add(self, ids: list[int], positions: np.ndarray, chunk: int, tail: int) -> None:
        self.ids += ids
        self.positions += [tuple(p) for p in positions.T]
        self.chunk += [chunk] * len(ids)
        self.tail += [tail] * len(ids)


def pack(
    episodes: list[Episode],
    words: Words,
    rng: np.random.Generator,
    *,
    backbone: TinyBackbone,
    phrases: tuple[int, ...],
    max_gap: int,
    slots: int,
    probe_weight: float = 0.0,
) -> Batch:
    """Pack episodes into one batch for ``backbone``; before some chunks the position jumps by up to ``max_gap``."""
    count = len(episodes)
    asked = len(episodes[0].questions)
    chunks = max(len(e.chunks) for e in episodes)
    batch = Batch(
        ids=np.zeros((count, slots), np.int32),
        positions=np.zeros((count, backbone.axes, slots), np.float32),
        chunk=np.full((count, slots), -1, np.int32),
        tail=np.full((count, slots), -1, np.int32),
        hidden=np.zeros((count, asked + 1, chunks + 1), bool),
        ask=np.zeros((count, asked, 3), np.int32),
        answer=np.zeros((count, asked, 3), np.int32),
        weight=np.array([0.7, 0.1, 0.3] if phrases else [0.0, 0.0, 1.0], np.float32),
        hops=np.zeros((count, asked), np.int32),
        probe=np.zeros((count, PROBES), np.int32),
        probe_answer=np.full((count, PROBES), -1, np.int32),
        probe_layer=np.zeros((count, PROBES), np.int32),
        probe_weight=np.float32(probe_weight),
    )
    for b, episode in enumerate(episodes):
        row = _Row()
        base = float(len(words.preamble))
        truth = {question.glyph: question for question in all_questions(episode.chunks)}
        written = {glyph for chunk in episode.chunks if chunk.text for glyph in chunk.entries}
        bound = bound_glyphs(episode.chunks)
        probes = []
        row.add(words.preamble, backbone.text_positions(len(words.preamble)), -1, 0)
        for c, chunk in enumerate(episode.chunks):
            if max_gap and rng.random() < 0.3:
                base += float(rng.integers(max_gap))
            if chunk.cells is not None:
                video = chunk.cells.ndim == 3
                seen = chunk.cells if video else backbone.seen(chunk.cells)
                for place, cell in enumerate(seen.reshape(-1).tolist()):
                    kind, glyph, _ = pages.parse(cell) if cell != pages.PADDING else ("padding", -1, -1)
                    if kind == "reference" and glyph in bound[c]:
                        probes.append((len(row.ids) + 1 + place, glyph))
                cells = [
                    words.ids["<|vision_start|>"],
                    *(words.size + seen.reshape(-1)).tolist(),
                    words.ids["<|vision_end|>"],
                ]
                local = backbone.segment_positions if video else backbone.page_positions
                positions, advance = local(*seen.shape)
                row.add(cells, base + positions, c, 0)
                base += advance
            else:
                ids = words.text(chunk.text or "")
                probes += [(len(row.ids) + ids.index(words.ids[NAMES[glyph]]), glyph) for glyph in chunk.entries]
                row.add(ids, base + backbone.text_positions(len(ids)), c, 0)
                base += len(ids)
        for r, chosen in enumerate(rng.permutation(len(probes))[:PROBES]):
            batch.probe[b, r], glyph = probes[chosen]
            question = truth[glyph]
            batch.probe_answer[b, r] = words.ids[COLOUR_NAMES[question.colour]]
            # One layer a step, to read a neighbouring word or a cell that is bound itself; and one to spare.
            batch.probe_layer[b, r] = question.hops - 1 + (question.chain[-1] in written)
        for q, question in enumerate(episode.questions):
            glyph = words.ids[NAMES[question.glyph]]
            colour = words.ids[COLOUR_NAMES[question.colour]]
            ids = [*words.tail(question_text(question.glyph, int(rng.choice(phrases)))), colour] if phrases else [glyph]
            start = len(row.ids)
            row.add(ids, base + backbone.text_positions(len(ids)), -1, q + 1)
            batch.ask[b, q] = start + max(len(ids) - 2, 0), len(row.ids) - 1, start + ids.index(glyph)
            batch.answer[b, q] = colour, words.ids["<|im_end|>"], colour
            batch.hops[b, q] = question.hops
            batch.hidden[b, q + 1, list(question.hidden)] = True
        length = len(row.ids)
        if length > slots:
            raise ValueError(f"an episode takes {length} tokens; the batch has {slots} slots")
        batch.ids[b, :length] = row.ids
        batch.positions[b, :, :length] = np.array(row.positions, np.float32).T
        batch.chunk[b, :length] = row.chunk
        batch.tail[b, :length] = row.tail
    return batch


def slots_for(recipe: Recipe, words: Words, chunks: int, backbone: TinyBackbone) -> int:
    """Slots that hold any episode of so many chunks, a multiple of 16."""
    longest = max((1 + len(words.tail(question_text(0, phrase))) for phrase in recipe.phrases), default=1)
    widest = backbone.seen(np.zeros((recipe.rows, recipe.columns), int)).size * max(recipe.moments, 1) + 2
    if recipe.text:
        widest = max(widest, len(words.text(passage({glyph: ("fact", 0) for glyph in range(PASSAGE_FACTS)}))))
    return -(-(len(words.preamble) + chunks * widest + recipe.questions * longest) // 16) * 16


def sample_batch(
    seed: tuple[int, ...],
    recipe: Recipe,
    words: Words,
    size: int,
    model: str,
    *,
    max_gap: int,
    probe_weight: float = 0.0,
) -> Batch:
    """A batch of fresh episodes, all of the same number of chunks, for an embedded model by its key."""
    backbone = EMBEDDED[model]
    rng = np.random.default_rng(seed)
    low, high = recipe.chunks
    chunks = int(rng.integers(low, high + 1))
    episodes = [sample_episode(rng, recipe, chunks) for _ in range(size)]
    slots = slots_for(recipe, words, chunks, backbone)
    return pack(
        episodes,
        words,
        rng,
        backbone=backbone,
        phrases=recipe.phrases,
        max_gap=max_gap,
        slots=slots,
        probe_weight=probe_weight,
    )
