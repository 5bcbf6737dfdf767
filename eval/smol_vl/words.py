"""Pictures of tokens to train on: tokens of every kind on pages of every typeface, cut as the tower's pages are."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.media.typeset import WORD_GAP, Face, Piece, drawn, page
from models.ports.smol_vl.boxes import WIDTH, boxes
from models.ports.smol_vl.tower import Spelling

FACES = (
    "DejaVuSans",
    "DejaVuSerif",
    "DejaVuSansMono",
    "STIXGeneral",
    "DejaVuSans-Bold",
    "DejaVuSerif-Bold",
    "DejaVuSans-Oblique",
    "STIXGeneralItalic",
)
"""Typefaces that are trained on."""

HELD_OUT = ("DejaVuSerif-Italic", "DejaVuSansMono-Bold")
"""Typefaces that are only measured on."""

SIZES = (10, 11, 12, 13, 14)


@dataclass(frozen=True)
class Batch:
    """Pictures of tokens, and among which tokens each is to be recognised.

    Attributes:
        boxes: pictures, f32[n, P].
        targets: of each, its place among the candidates.
        candidates: places of tokens in the `Spelling`, each once.
    """

    boxes: np.ndarray
    targets: np.ndarray
    candidates: np.ndarray


class Words:
    """Draws batches."""

    def __init__(self, pieces: Mapping[int, Piece], counts: Mapping[int, int], seed: int) -> None:
        """Draw half of the tokens as often as all others, and half by the roots of their counts in some text."""
        self.pieces = [pieces[number] for number in sorted(pieces)]
        self.spelling = Spelling.of(pieces)
        weights = np.sqrt([counts.get(number, 0) for number in sorted(pieces)]) + 1e-9
        self._weights = np.cumsum(0.5 * weights / weights.sum() + 0.5 / len(weights))
        self._alike = _alike(self.pieces)
        self._rng = np.random.default_rng(seed)

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
            raise AssertionError(f"{len(tokens)} tokens in {face} were cut into {len(found)} boxes")
        return found, tokens

    def batch(self, pages: int, size: int, candidates: int) -> Batch:
        """Pages of tokens, each in a typeface of its own; contrast and noise differ from picture to picture."""
        rng = self._rng
        drawn_pages = [self.pictures(self.tokens(size)) for _ in range(pages)]
        pictures = np.concatenate([part for part, _ in drawn_pages])
        labels = np.concatenate([part for _, part in drawn_pages])
        keep = rng.permutation(len(labels))
        keep = np.resize(keep, pages * size)
        pictures, labels = pictures[keep], labels[keep]
        contrast = rng.uniform(0.5, 1.0, (len(labels), 1)).astype(np.float32)
        noise = rng.uniform(0.0, 0.1, (len(labels), 1)).astype(np.float32)
        pictures = pictures * contrast + noise * rng.standard_normal(pictures.shape, np.float32)
        chosen = [labels]
        for label in labels.tolist():
            alike = self._alike[label]
            if len(alike):
                chosen.append(alike[rng.integers(0, len(alike), 5)])
        # What is drawn twice makes room for more, so that there are always as many.
        least = np.unique(np.concatenate(chosen))
        others = np.setdiff1d(rng.integers(0, len(self.pieces), 2 * candidates), least)
        listed = np.sort(np.concatenate([least, rng.permutation(others)])[:candidates])
        return Batch(np.clip(pictures, 0, 1), np.searchsorted(listed, labels), listed)


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
