"""Pictures of tokens to train on: tokens of every kind on pages of every typeface, cut as the tower's pages are."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from models.media.typeset import WORD_GAP, Face, PageError, Piece, drawn, page
from models.ports.smol_vl.boxes import WIDTH, boxes
from models.ports.smol_vl.tower import Spelling

FACES = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral", "DejaVuSans-Bold")
"""Typefaces that are trained on."""

HELD_OUT = ("DejaVuSerif-Bold", "DejaVuSansMono-Bold")
"""Typefaces that are only measured on."""

SIZES = (11, 12, 13)

EVEN = 0.2
"""The share of tokens that are drawn as often as all others."""

POWER = 0.7
"""The others are drawn by this power of their counts."""

KEPT = 64
"""Pages that batches are drawn from; every second batch, the oldest makes room for a new one."""


class Batch(NamedTuple):
    """Pictures of tokens, and among which tokens each is to be recognised.

    Attributes:
        boxes: pictures, f32[n, P].
        targets: of each, its place among the candidates.
        candidates: places of tokens in the `Spelling`, each once.
        offsets: what is added to their scores: those drawn at random stand for many more that were not drawn.
    """

    boxes: np.ndarray
    targets: np.ndarray
    candidates: np.ndarray
    offsets: np.ndarray


class Words:
    """Draws batches."""

    def __init__(self, pieces: Mapping[int, Piece], counts: Mapping[int, int], seed: int) -> None:
        """Draw a fifth of the tokens as often as all others, and the rest by powers of their counts in a text."""
        self.pieces = [pieces[number] for number in sorted(pieces)]
        self.spelling = Spelling.of(pieces)
        weights = np.power([counts.get(number, 0) + 1e-9 for number in sorted(pieces)], POWER)
        self._weights = np.cumsum((1 - EVEN) * weights / weights.sum() + EVEN / len(weights))
        self._alike = _alike(self.pieces)
        self._rng = np.random.default_rng(seed)
        self._noise = self._rng.standard_normal(2 * 10**6, np.float32)
        self._pages: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._drawn = 0

    def tokens(self, count: int) -> np.ndarray:
        """Places of tokens in the spelling."""
        return np.minimum(np.searchsorted(self._weights, self._rng.random(count)), len(self.pieces) - 1)

    def pictures(self, tokens: np.ndarray, faces: Sequence[str] = FACES) -> tuple[np.ndarray, np.ndarray]:
        """Pictures of tokens on a page, and the tokens: those left out that do not fit in a box."""
        rng = self._rng
        face = Face(str(rng.choice(faces)), int(rng.choice(SIZES)))
        limit = WIDTH - WORD_GAP
        tokens = np.asarray([i for i in tokens.tolist() if drawn(face, self.pieces[i].text).shape[1] <= limit])
        image = page([self.pieces[i] for i in tokens.tolist()], face, 640, rng.integers(-1, 2, 64).tolist())
        found = boxes(image)
        if len(found) != len(tokens):
            raise PageError(f"{len(tokens)} tokens in {face} were cut into {len(found)} boxes; leave this face out")
        return found, tokens

    def batch(self, size: int, candidates: int, rank: Callable[[np.ndarray], np.ndarray] | None = None) -> Batch:
        """Tokens of pages drawn lately, some of them a few times, with contrast and noise of their own each time.

        Args:
            size: pictures.
            candidates: tokens among which they are to be recognised: their own, those most like them, and others.
            rank: gives the tokens that pictures are taken for, [n, k], which are then among the candidates.
        """
        rng = self._rng
        if self._drawn % 2 == 0:
            found, tokens = self.pictures(self.tokens(size))
            taken = np.empty((len(found), 0), np.int64) if rank is None else rank(found)
            self._pages[self._drawn // 2 % KEPT] = (np.round(found * 255).astype(np.uint8), tokens, taken)
        self._drawn += 1
        places = [int(i) for i in rng.integers(0, len(self._pages), size)]
        chosen = [(page, int(rng.integers(len(self._pages[page][1])))) for page in places]
        pictures = np.stack([self._pages[page][0][i] for page, i in chosen]).astype(np.float32) / 255
        labels = np.asarray([self._pages[page][1][i] for page, i in chosen])
        pictures *= rng.uniform(0.7, 1.0, (size, 1)).astype(np.float32)
        noise = self._noise[int(rng.integers(len(self._noise) - pictures.size)) :][: pictures.size]
        pictures += noise.reshape(pictures.shape) * rng.uniform(0.0, 0.06, (size, 1)).astype(np.float32)
        own = np.unique(labels)
        alike = [others[rng.integers(0, len(others), 2)] for i in labels.tolist() if len(others := self._alike[i])]
        alike += [self._pages[page][2][i] for page, i in chosen]
        # Always as many, so that one program serves all batches.
        like = rng.permutation(np.setdiff1d(np.concatenate([own, *alike]), own))
        sure = np.concatenate([own, like[: max(candidates - len(own), 0)]])
        others = np.setdiff1d(rng.permutation(len(self.pieces))[: 2 * candidates], sure, assume_unique=True)
        others = rng.permutation(others)[: max(min(candidates, len(self.pieces)) - len(sure), 0)]
        offset = np.log((len(self.pieces) - len(sure)) / len(others)) if len(others) else 0.0
        listed = np.concatenate([sure, others])
        order = np.argsort(listed)
        offsets = np.where(order < len(sure), 0.0, offset).astype(np.float32)
        return Batch(pictures, np.searchsorted(listed[order], labels), listed[order], offsets)


def _alike(pieces: Sequence[Piece]) -> list[np.ndarray]:
    """For each token, those that differ by one letter, one more or one fewer, in case or in the space before them."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, each in enumerate(pieces):
        text = each.text
        keys = {f"same {text}", f"case {each.apart} {text.lower()}"}
        keys |= {f"{each.apart} {text[:i]}\0{text[i + 1 :]}" for i in range(len(text))}
        keys |= {f"cut {each.apart} {text[:i]}{text[i + 1 :]}" for i in range(len(text))} | {f"cut {each.apart} {text}"}
        for key in keys:
            groups[key].append(number)
    alike: list[set[int]] = [set() for _ in pieces]
    for members in groups.values():
        if len(members) > 1:
            for number in members[:200]:
                alike[number].update(members[:200])
    return [np.asarray(sorted(others - {number}), np.int64) for number, others in enumerate(alike)]
