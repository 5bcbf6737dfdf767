"""`kamera demo --video`: a window of a few segments that slides over a long video, and looks back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import kamera_jax as kj
from eval.commands.demo import HELD_OUT_SEED, answer_token
from eval.run import metrics
from eval.tiny.episodes import Chunk, question_text
from eval.tiny.pages import FRAMES, SECONDS, shown
from eval.tiny.stream import Truth, sample_stream
from kamera_jax.forward import run as run_forward
from kamera_jax.inference.encode import run_chunk
from kamera_jax.kv import Segment
from kamera_jax.window.window import aligned
from models.vlm import VisionLanguageModel

SEGMENTS = 50
"""Of the video, unless another number is asked for."""

WINDOW = 5
"""Segments that the window has room for."""

EPISODES = 100
"""Held-out episodes of three segments, unless another number is asked for."""

LOOKS_BACK = 12
"""Segments that have left and are recalled at the end, one after the other."""

METHODS = ("history", "patch", "blind", "present")
"""The windows that are asked: each segment run behind those that stood there when it came, which is what a KV cache
that slides holds; a session, which patches each segment when it comes; the segments as they were encoded; and all of
the window's segments prefilled anew."""

Progress = Callable[[str, int, int], None]


@dataclass
class Asked:
    """What the windows answered to questions of one kind.

    Attributes:
        right: whether the answer was right, by method.
        kl: KL(history ‖ method) of the next token in nats, by method.
    """

    right: dict[str, list[bool]] = field(default_factory=lambda: {name: [] for name in METHODS})
    kl: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in METHODS})

    def add(self, logits: dict[str, np.ndarray], answer: int) -> None:
        """Record the next-token logits f32[V] of each method."""
        for name, own in logits.items():
            self.right[name].append(int(own.argmax()) == answer)
            self.kl[name].append(float(metrics.kl(logits["history"][None], own[None])[0]))

    def rows(self) -> dict[str, dict[str, float]]:
        """Accuracy and mean KL of each method; nothing where nothing was asked."""
        return {
            name: {"accuracy": float(np.mean(right)), "kl": float(np.mean(self.kl[name]))}
            for name, right in self.right.items()
            if right
        }


class Windows:
    """The session and, beside it, the windows that it is compared with."""

    def __init__(self, vlm: VisionLanguageModel, session: kj.Session, capacity: int) -> None:
        """Begin with the session's segments."""
        self._vlm = vlm
        self._session = session
        self._capacity = capacity
        self._ran: dict[str, kj.Chunk] = {}

    def came(self) -> None:
        """Run the segment that came last behind those before it, as they were run when they came."""
        window = self._session.window
        new = window.entries[-1].chunk
        self._ran = {key: chunk for key, chunk in self._ran.items() if key in window.keys}
        before = self._filled([self._ran[key] for key in window.keys[:-1]])
        self._ran[window.keys[-1]] = run_chunk(self._vlm, before, new)[0]

    def all(self) -> dict[str, kj.Window]:
        """A window for each of `METHODS`."""
        window = self._session.window
        chunks = [entry.chunk for entry in window.entries]
        return {
            "history": self._filled([self._ran[key] for key in window.keys]),
            "patch": window,
            "blind": self._filled(chunks),
            "present": kj.prefill(self._vlm, chunks, capacity=self._capacity),
        }

    def _filled(self, chunks: Sequence[kj.Chunk]) -> kj.Window:
        window = kj.Window.empty(self._vlm, self._capacity)
        for chunk in chunks:
            window = kj.append(window, chunk, donate=True)
        return window


def next_token(vlm: VisionLanguageModel, window: kj.Window, tail: Segment) -> np.ndarray:
    """Next-token logits f32[V] behind a question."""
    last = np.asarray([int(tail.length) - 1], np.int32)
    output = run_forward(vlm.params, tail, window.state, last, np.float32(window.next_position), forward=vlm.forward)
    assert output.logits is not None
    return np.asarray(output.logits)[0]


def run(
    vlm: VisionLanguageModel,
    *,
    segments: int = SEGMENTS,
    window: int = WINDOW,
    seed: int = HELD_OUT_SEED,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Slide a window over a video, asking at every step, and recall segments at the end.

    Args:
        vlm: the embedded model that is shown videos.
        segments: of the video.
        window: segments that the window has room for.
        seed: of the video.
        progress: called after every segment.

    Returns:
        What ``--json`` writes as ``"stream"``.

    Raises:
        ValueError: the video is no longer than the window.
    """
    if segments <= window:
        raise ValueError(f"the window of {window} segments has to slide over more than {segments}")
    stream = sample_stream(np.random.default_rng(seed), segments)
    capacity = _capacity(vlm, stream[0][0], window)
    session = kj.Session(vlm, capacity)
    windows = Windows(vlm, session, capacity)
    asked = {"one hop": Asked(), "two hops": Asked(), "two hops, evicted": Asked()}
    survivors: list[float] = []
    keys: list[str] = []
    patches: list[float] = []
    for number, (chunk, _) in enumerate(stream):
        assert chunk.cells is not None
        keys.append(session.add(shown(chunk.cells)))
        windows.came()
        patches += [entry.patch.nbytes / entry.chunk.nbytes for entry in session.window.entries[-1:] if entry.patch]
        if number >= window:
            there = windows.all()
            before = len(asked["two hops, evicted"].kl["patch"])
            for kind, truth in questions(stream, number, window):
                tail = vlm.tail(question_text(truth.glyph))
                logits = {name: next_token(vlm, each, tail) for name, each in there.items()}
                asked[kind].add(logits, answer_token(vlm, truth.colour))
            survivors.append(float(np.mean(asked["two hops, evicted"].kl["patch"][before:] or [0.0])))
        progress("segments", number + 1, segments)
    encoded = session.stats.encoded
    looks = look_back(vlm, session, stream, keys, progress)
    return {
        "segments": segments,
        "window": window,
        "slides": segments - window,
        "seconds": segments * (stream[0][0].cells.shape[0] if stream[0][0].cells is not None else 0) * SECONDS,
        "frames": sum(FRAMES * len(chunk.cells) for chunk, _ in stream if chunk.cells is not None),
        "tokens": session.window.entries[-1].chunk.length,
        "asked": {kind: {"questions": len(each.right["patch"]), **each.rows()} for kind, each in asked.items()},
        "survivors_kl": survivors,
        "patch_share": float(np.mean(patches)),
        "encoded": encoded,
        "encoded_after_looks_back": session.stats.encoded,
        "looks_back": looks,
    }


def cells_shown(seed: int = HELD_OUT_SEED) -> list[np.ndarray]:
    """The cells of the video's segments."""
    return [chunk.cells for chunk, _ in sample_stream(np.random.default_rng(seed), SEGMENTS) if chunk.cells is not None]


def questions(stream: Sequence[tuple[Chunk, tuple[Truth, ...]]], number: int, window: int) -> list[tuple[str, Truth]]:
    """One question of each kind about the window whose last segment is this one.

    A reference is asked for apart where the segment that it refers to has left.
    """
    found: dict[str, list[Truth]] = {}
    for place in range(number - window + 1, number + 1):
        for truth in stream[place][1]:
            kind = "one hop" if truth.behind == 0 else "two hops"
            if truth.behind and place - truth.behind <= number - window:
                kind = "two hops, evicted"
            found.setdefault(kind, []).append(truth)
    rng = np.random.default_rng(number)
    return [(kind, truths[rng.integers(len(truths))]) for kind, truths in found.items()]


def look_back(
    vlm: VisionLanguageModel,
    session: kj.Session,
    stream: Sequence[tuple[Chunk, tuple[Truth, ...]]],
    keys: list[str],
    progress: Progress,
) -> dict[str, Any]:
    """Recall segments that have left, and ask what they show; nothing is encoded again."""
    left = [number for number, key in enumerate(keys) if key in session.evicted]
    chosen = [left[round(i)] for i in np.linspace(0, len(left) - 1, min(LOOKS_BACK, len(left)))]
    right: list[bool] = []
    full: list[bool] = []
    actions: list[str] = []
    for done, number in enumerate(chosen):
        session.recall(keys[number])
        actions += [each.action.value for each in session.last if each.came]
        others = [entry.chunk.key for entry in session.window.entries if entry.chunk.key != keys[number]]
        taken = {truth.glyph for key in others for truth in stream[keys.index(key)][1]}
        facts = [truth for truth in stream[number][1] if truth.behind == 0 and truth.glyph not in taken]
        progress("looks back", done + 1, len(chosen))
        if not facts:  # what else the window shows says something else of each of its things
            continue
        fact = facts[0]
        answer = answer_token(vlm, fact.colour)
        tail = vlm.tail(question_text(fact.glyph))
        prefilled = kj.prefill(vlm, [entry.chunk for entry in session.window.entries])
        right.append(int(next_token(vlm, session.window, tail).argmax()) == answer)
        full.append(int(next_token(vlm, prefilled, tail).argmax()) == answer)
    return {
        "segments": chosen,
        "questions": len(right),
        "accuracy": float(np.mean(right)),
        "full": float(np.mean(full)),
        "actions": actions,
    }


def _capacity(vlm: VisionLanguageModel, chunk: Chunk, window: int) -> int:
    """Slots for the preamble and so many segments."""
    assert chunk.cells is not None
    length = int(vlm.prepare(shown(chunk.cells)).length)
    return aligned(int(vlm.preamble.length)) + window * aligned(length)
