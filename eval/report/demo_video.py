"""The table, the figure and the animation of `kamera demo --video`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console

from eval.report import style
from eval.report.console import show
from eval.tiny.pages import shown

WORDS = {
    "history": "history, run as it came",
    "patch": "session, with patches",
    "blind": "blind reuse",
    "present": "prefilled anew",
}
"""The windows in words."""

_COLOURS = {"history": style.BLACK, "patch": style.BLUE, "blind": style.VERMILION, "present": style.GREEN}

GOAL = 0.02
"""Nats that the session may be from the history."""

_LEAST = 1e-7
"""Nats below which float32 does not tell distributions apart."""

SHOWN = 12
"""Segments of the animation."""

_GAP = 12
_MARGIN = 10
_PAPER = (250, 250, 248)
_INK = (60, 60, 66)
WAIT = 450
"""Milliseconds of a moment."""


def print_stream(stream: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table of a window that slid over a video, within 80 columns."""
    console = console or Console(emoji=False, highlight=False)
    kinds = [kind for kind, asked in stream["asked"].items() if asked["questions"]]
    show(
        console,
        f"A window of {stream['window']} segments slides over {stream['segments']} ({stream['frames']} frames, "
        f"{stream['slides']} slides)",
        ("window", *kinds, "KL, evicted"),
        [
            [
                words,
                *(f"{stream['asked'][kind][name]['accuracy']:.3f}" for kind in kinds),
                f"{stream['asked'][kinds[-1]][name]['kl']:.4f}",
            ]
            for name, words in WORDS.items()
        ],
        "one hop: a segment of the window shows it. two hops: a segment of the window\n"
        "refers to one before it; evicted: to one that has left the window. KL: to the\n"
        "history, in nats.",
    )
    looks = stream["looks_back"]
    summary = (
        f"Segments encoded: {stream['encoded']} of {stream['segments']}; after {len(looks['segments'])} looks back, "
        f"each the recall of a segment that had left, still {stream['encoded_after_looks_back']}. Right after a look "
        f"back: {looks['accuracy']:.3f} (prefilled anew: {looks['full']:.3f}). Patches take "
        f"{stream['patch_share']:.1%} of the segments' bytes."
    )
    console.print(fill(summary, 79), markup=False)


def plot_stream(stream: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy by window, and how far the session is from the history at each slide; PNG or SVG."""
    kinds = [kind for kind, asked in stream["asked"].items() if asked["questions"]]
    with style.drawing(path, 2.9) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        left.set_title("(a) Accuracy")
        right.set_title("(b) KL of survivors to the history, nats")
        width = 0.8 / len(WORDS)
        for place, (name, words) in enumerate(WORDS.items()):
            heights = [stream["asked"][kind][name]["accuracy"] for kind in kinds]
            at = np.arange(len(kinds)) + (place - (len(WORDS) - 1) / 2) * width
            left.bar(at, heights, width, color=_COLOURS[name], label=words)
        left.set_xticks(range(len(kinds)), [kind.replace(", ", ",\n") for kind in kinds])
        left.set_ylim(0, 1.05)
        left.grid(axis="x", visible=False)
        kls = np.maximum(stream["survivors_kl"], _LEAST)
        right.plot(np.arange(1, len(kls) + 1), kls, "o-", color=style.BLUE, markersize=3)
        right.axhline(GOAL, color=style.GREY, linestyle=":")
        right.annotate("goal", (1, GOAL), (0, 4), textcoords="offset points", color=style.GREY)
        right.set(yscale="log", xlabel="slides", ylim=(_LEAST / 2, 1))
        style.whole_numbers(right.xaxis)
        style.legend(figure, [left], columns=4)


def animate(cells: Sequence[np.ndarray], window: int, path: Path) -> None:
    """Write an animation (GIF) of segments that come, and of the window that slides over them.

    Args:
        cells: of each segment, [moments, rows, columns]; see `eval.tiny.episodes.Chunk`.
        window: segments that it has room for.
        path: of the file.
    """
    cells = cells[:SHOWN]
    frames = []
    for number, segment in enumerate(cells):
        for moment in segment:
            kept = [each[-1] for each in cells[max(0, number - window + 1) : number + 1]]
            frames.append(_frame(moment, kept, number, window))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=WAIT, loop=0, optimize=True)


def _frame(moment: np.ndarray, kept: Sequence[np.ndarray], number: int, window: int) -> Image.Image:
    """What is shown now, above the segments that the window holds."""
    now = shown(moment)
    assert isinstance(now, Image.Image)
    small = (now.width * 3 // 5, now.height * 3 // 5)
    canvas = Image.new(
        "RGB", (window * (small[0] + _GAP) + 2 * _MARGIN - _GAP, now.height + small[1] + 5 * _GAP), _PAPER
    )
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _GAP // 2), f"segment {number + 1}", fill=_INK)
    canvas.paste(now, (_MARGIN, 2 * _GAP))
    left = max(0, number + 1 - window)
    first = f"{number + 1 - len(kept) + 1}"
    text = f"the window: segments {first} to {number + 1}; {left} have left, and can be recalled"
    top = now.height + 4 * _GAP
    draw.text((_MARGIN, now.height + 5 * _GAP // 2), text, fill=_INK)
    for place, each in enumerate(kept):
        image = shown(each)
        assert isinstance(image, Image.Image)
        canvas.paste(image.resize(small, Image.Resampling.LANCZOS), (_MARGIN + place * (small[0] + _GAP), top))
    return canvas.quantize(64, dither=Image.Dither.NONE)
