"""What sharing the rows of near-duplicate frames costs and saves, on clips whose frames repeat to several degrees.

`python -m benchmarks.video` measures it with the rest; docs/video.md has the tables.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import kamera_jax as kj
from eval.commands.demo import HELD_OUT_SEED, answer_token
from eval.commands.demo_video import next_token
from eval.run import metrics
from eval.tiny.episodes import question_text
from eval.tiny.glyphs import NAMES
from eval.tiny.pages import render_video
from eval.tiny.stream import Truth, sample_stream
from kamera_jax.window.window import aligned
from models.vlm import VisionLanguageModel

EPISODES = 10
"""Of three segments each, of every kind of clip."""

SEGMENTS = 3

THRESHOLDS = (0.9, 0.95, 0.99)

SHARED = 0.95
"""The threshold at which ranks, and the two ways to make a row of several, are compared."""

ABSENT = 4
"""Questions of an episode about things that none of its segments shows."""

ENERGY = 0.99
"""Share of every layer's squared change that a patch is to keep, where ranks are compared."""


@dataclass(frozen=True)
class Clip:
    """A kind of clip.

    Attributes:
        name: of the kind.
        moments: from a segment's four moments [4, rows, columns] to what is shown.
        noise: standard deviation of what is added to every pixel of every frame, of 255.
    """

    name: str
    moments: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    noise: float = 0.0

    def video(self, cells: np.ndarray, rng: np.random.Generator) -> kj.Video:
        """A segment's video."""
        video = render_video(self.moments(cells, rng))
        if not self.noise:
            return video
        frames = video.frames + rng.normal(0, self.noise, video.frames.shape)
        return kj.Video(np.clip(frames, 0, 255).round().astype(np.uint8), video.times)


def _still(cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(cells[:1], len(cells), axis=0)


def _moving(cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return cells


def _redrawn(cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same things at other places in each moment."""
    first = cells[0]
    others = [rng.permutation(first.reshape(-1)).reshape(first.shape) for _ in cells[1:]]
    return np.stack([first, *others])


def _cut(cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two moments that stand still, and two of the same things at other places, which do too."""
    both = _redrawn(cells[:2], rng)
    return np.repeat(both, len(cells) // 2, axis=0)


CLIPS = (
    Clip("still", _still),
    Clip("a few things move", _moving),
    Clip("a few things move, noise 4", _moving, 4.0),
    Clip("a few things move, noise 8", _moving, 8.0),
    Clip("a few things move, noise 16", _moving, 16.0),
    Clip("still, with a cut", _cut),
    Clip("every moment redrawn", _redrawn),
)


@dataclass
class Answers:
    """What one kind of window answered.

    Attributes:
        rows: share of rows that its chunks keep, of each chunk.
        right: whether answers were right, by hops.
        kl: KL(all rows ‖ this) of the next token, in nats, of questions that the segments answer.
        kl_absent: the same of questions about things that no segment shows, whose answers the model is not sure of.
    """

    rows: list[float] = field(default_factory=list)
    right: dict[str, list[bool]] = field(default_factory=lambda: {"one hop": [], "two hops": []})
    kl: list[float] = field(default_factory=list)
    kl_absent: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """These as JSON."""
        accuracy = {name: float(np.mean(right)) for name, right in self.right.items()}
        means = {"rows": self.rows, "kl": self.kl, "kl_absent": self.kl_absent}
        return {**{name: float(np.mean(own)) for name, own in means.items()}, "accuracy": accuracy}


def measure(vlm: VisionLanguageModel, *, episodes: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Every kind of clip, with all rows and with shared ones, patched; and what the patches take."""
    clips = []
    for number, clip in enumerate(CLIPS, start=1):
        clips.append(_measured(vlm, clip, episodes))
        progress(f"kinds of clips {number} of {len(CLIPS)}")
    return {"episodes": episodes, "thresholds": THRESHOLDS, "shared": SHARED, "energy": ENERGY, "clips": clips}


def _measured(vlm: VisionLanguageModel, clip: Clip, episodes: int) -> dict[str, Any]:
    answers: dict[str, Answers] = {}
    ranks: dict[str, list[tuple[float, int, float]]] = {"all rows": [], "shared": []}
    for episode in range(episodes):
        rng = np.random.default_rng((HELD_OUT_SEED, episode))
        stream = sample_stream(rng, SEGMENTS)
        chunks = [kj.encode(vlm, clip.video(chunk.cells, rng)) for chunk, _ in stream if chunk.cells is not None]
        truths = [truth for _, own in stream for truth in own]
        whole = _patched(vlm, chunks, chunks)
        prefilled = kj.prefill(vlm, chunks)
        windows = {"all rows": whole}
        for threshold in THRESHOLDS:
            shared = [kj.share_rows(vlm, chunk, threshold) for chunk in chunks]
            windows[f"{threshold}"] = window = _patched(vlm, chunks, shared)
            windows[f"{threshold} without the bias"] = _uncounted(vlm, window)
        _ask(vlm, windows, truths, "all rows", answers)
        run = [entry.chunk for entry in prefilled.entries]
        made = {
            "mean": [kj.share_rows(vlm, chunk, SHARED) for chunk in run],
            "first": [_first(vlm, chunk) for chunk in run],
        }
        windows = {f"prefilled, {name}": _filled(vlm, own) for name, own in made.items()}
        _ask(vlm, {"prefilled": prefilled, **windows}, truths, "prefilled", answers)
        for name in ranks:
            own = chunks if name == "all rows" else [kj.share_rows(vlm, chunk, SHARED) for chunk in chunks]
            for place in range(1, SEGMENTS):
                patch = kj.form_patch(vlm, own[place], antecedents=chunks[:place], energy=ENERGY)
                mean = float(np.mean(np.asarray(patch.factors.ranks)))
                ranks[name].append((mean, patch.nbytes, patch.nbytes / own[place].nbytes))
    figures = {
        name: dict(zip(("rank", "bytes", "share"), np.mean(own, axis=0), strict=True)) for name, own in ranks.items()
    }
    return {
        "name": clip.name,
        "questions": {name: len(right) for name, right in answers["all rows"].right.items()},
        "absent": len(answers["all rows"].kl_absent),
        "windows": {name: each.row() for name, each in answers.items()},
        "patches": {name: {key: float(value) for key, value in each.items()} for name, each in figures.items()},
    }


def _filled(vlm: VisionLanguageModel, chunks: Sequence[kj.Chunk], patches: Sequence[kj.Patch | None] = ()) -> kj.Window:
    tokens = sum(aligned(int(chunk.source.length)) for chunk in chunks if chunk.source is not None)
    window = kj.Window.empty(vlm, aligned(int(vlm.preamble.length)) + tokens)
    for place, chunk in enumerate(chunks):
        window = kj.append(window, chunk, patches[place] if patches else None, donate=True)
    return window


def _patched(vlm: VisionLanguageModel, chunks: Sequence[kj.Chunk], kept: Sequence[kj.Chunk]) -> kj.Window:
    """The window of chunks as they are kept, each with a patch of the default size behind the others."""
    patches = [None] + [kj.form_patch(vlm, kept[place], antecedents=chunks[:place]) for place in range(1, SEGMENTS)]
    return _filled(vlm, kept, patches)


def _uncounted(vlm: VisionLanguageModel, window: kj.Window) -> kj.Window:
    """The same rows with the same patches, of which each counts as one token."""
    chunks = [entry.chunk.keeping(counts=None) for entry in window.entries]
    return _filled(vlm, chunks, [entry.patch for entry in window.entries])


def _first(vlm: VisionLanguageModel, chunk: kj.Chunk) -> kj.Chunk:
    """The chunk with shared rows that are those of the first of their tokens, in place of the mean."""
    shared = kj.share_rows(vlm, chunk, SHARED)
    return shared.keeping(kv=shared.taken(chunk.kv, shared=False))


def _ask(
    vlm: VisionLanguageModel,
    windows: dict[str, kj.Window],
    truths: Sequence[Truth],
    reference: str,
    answers: dict[str, Answers],
) -> None:
    """Ask all windows everything that the segments say."""
    for name, window in windows.items():
        own = answers.setdefault(name, Answers())
        own.rows += [e.chunk.length / int(e.chunk.source.length) for e in window.entries if e.chunk.source is not None]
    shown = {truth.glyph: truth for truth in truths}
    absent = [glyph for glyph in range(len(NAMES)) if glyph not in shown][:ABSENT]
    for glyph in (*shown, *absent):
        tail = vlm.tail(question_text(glyph))
        logits = {name: next_token(vlm, window, tail) for name, window in windows.items()}
        for name, own in logits.items():
            kl = float(metrics.kl(logits[reference][None], own[None])[0])
            if glyph in shown:
                truth = shown[glyph]
                answers[name].kl.append(kl)
                right = int(own.argmax()) == answer_token(vlm, truth.colour)
                answers[name].right["two hops" if truth.behind else "one hop"].append(right)
            else:
                answers[name].kl_absent.append(kl)
