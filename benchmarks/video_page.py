"""docs/video.md, from what `kamera demo --video` and `python -m benchmarks.video` measured."""

from collections.abc import Mapping
from typing import Any

from eval.report.console import kibibytes
from eval.report.demo_video import WORDS
from eval.report.style import figure_block

PAGE = """# Video

A video is cut into **segments**, each a chunk that is encoded once, alone, with times that begin at 0. A window of a
few segments slides over it at fixed memory; what has left can be recalled, and is never encoded again.

```python
import numpy as np

import kamera_jax as kj
from models import load

vlm = load("kamera-tiny-video")
frames = np.zeros((8, 112, 168, 3), np.uint8)  # four seconds, two frames a second
session = kj.Session(vlm, capacity=600)
key = session.add(kj.Video(frames, np.arange(8) / 2))
```

`kamera-tiny-video` is a Qwen2.5-VL at a tiny size: `kamera-tiny-gqa`, whose language model went on to learn segments
of four seconds (`make train-tiny-video`, a few minutes). A segment shows a few things among 24 places, some of which
move; a reference says that a thing is now whatever another one was, which an earlier segment showed (“the bag is
whatever the ball is”). It is trained so that the segment takes in what it refers to while it is encoded, and not when
it is asked.

{animation}

## Three segments

The same comparison as on [pages](index.md): of three segments the third refers to the first two. {episodes} held-out
episodes.

{methods}

## A window that slides

A window of {window} segments slides over {segments} ({frames} frames): {slides} slides. At each, the window is asked
for something that a segment shows, for a reference to a segment that stands there, and for one to a segment that has
**left**. *{history}*: each segment is run behind those that stood there when it came, which is what a KV cache that
slides holds.

{asked}

Accuracy, and the mean KL to the history in nats. Each segment was patched once, when it came, with {share:.1%} of
its bytes. The largest mean over a slide's questions on what has left is {worst:.1e} nats. {encoded} segments were
encoded in all, and {after} after {looks} looks back, each the recall of a segment that had left; right after one
{look:.3f} of {look_questions} questions on it are answered, {full:.3f} where the window is prefilled anew.

{figure}

## Images that slide, and what is run

A trace of {users} users with {turns} turns each; a prompt shows a text and the latest {shown} images, of which one is
new. A prefix cache gives the text back and nothing of the images, as all of them stand elsewhere at the next turn; an
encoder cache gives back what the tower made.

{caches}

`kamera-tiny-gqa` on CPU, one run; of text and images, without questions. The shape of the trace (users, turns,
window) is that of a published workload of Dynamo, its sizes are those of the tiny model. *KL*: to re-prefill, nats.

## Memory

{long} frames in {long_segments} segments, rendered one at a time; the session may keep {kept} of segments that have
left, and forgets the least recently used beyond it ({forgotten} of them). The process takes {first:.0f} MiB after
{first_at} segments and {last:.0f} MiB after {long_segments}.

`make results-video` measures this again and writes this page.
"""


def page_of(demo: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    """The page."""
    stream = demo["stream"]
    sliding = measured["sliding"]
    memory = measured["memory"]
    rows = memory["rows"]
    return PAGE.format(
        animation=figure_block(
            "Segments that come, one after another, and below them the window",
            "figures/video.gif",
            "Segments as they come, and the window of five that slides over them.",
        ),
        figure=figure_block(
            "Accuracy by window, and the session's distance to the history",
            "figures/video.png",
            "(a) Accuracy by window; (b) the session's distance to the history at each slide, and the goal of 0.02.",
        ),
        episodes=demo["episodes"],
        methods=_methods(demo),
        window=stream["window"],
        segments=stream["segments"],
        frames=stream["frames"],
        slides=stream["slides"],
        history=WORDS["history"],
        asked=_asked(stream),
        share=stream["patch_share"],
        worst=max(stream["survivors_kl"]),
        encoded=stream["encoded"],
        after=stream["encoded_after_looks_back"],
        looks=len(stream["looks_back"]["segments"]),
        look=stream["looks_back"]["accuracy"],
        look_questions=stream["looks_back"]["questions"],
        full=stream["looks_back"]["full"],
        users=sliding["users"],
        turns=sliding["turns"],
        shown=sliding["window"],
        caches=_caches(sliding["caches"]),
        long=f"{memory['frames']:,}",
        long_segments=memory["segments"],
        kept=f"{memory['memory_bytes'] / 2**20:.0f} MiB",
        forgotten=memory["forgotten"],
        first=rows[1]["resident"] / 2**20,
        first_at=rows[1]["segments"],
        last=rows[-1]["resident"] / 2**20,
    )


def _methods(demo: Mapping[str, Any]) -> str:
    lines = ["| method | one hop | two hops | KL | bytes of patches |", "|---|---|---|---|---|"]
    for row in demo["methods"]:
        size = f"{kibibytes(row['patch_bytes'])}, {row['patch_share']:.1%}" if row["patch_bytes"] else "–"
        lines.append(f"| {row['name']} | {row['one_hop']:.3f} | {row['two_hop']:.3f} | {row['kl']:.4f} | {size} |")
    return "\n".join(lines)


def _asked(stream: Mapping[str, Any]) -> str:
    kinds = [kind for kind, asked in stream["asked"].items() if asked["questions"]]
    lines = [f"| window | {' | '.join(kinds)} |", "|---|" + "---|" * len(kinds)]
    for name, words in WORDS.items():
        cells = [stream["asked"][kind][name] for kind in kinds]
        figures = " | ".join("{accuracy:.3f}, {kl:.4f}".format(**each) for each in cells)
        lines.append(f"| {words} | {figures} |")
    questions = " | ".join(str(stream["asked"][kind]["questions"]) for kind in kinds)
    return "\n".join([*lines, f"| questions | {questions} |"])


def _caches(caches: Mapping[str, Any]) -> str:
    full = caches["re-prefill"]
    lines = [
        "| | images through the tower | tokens prefilled | FLOPs | time | one hop | two hops | KL |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in caches.items():
        right = row["accuracy"]
        lines.append(
            f"| {name} | {row['images']:,} | {row['tokens']:,} | {row['flops'] / full['flops']:.2f} × | "
            f"{row['seconds'] / full['seconds']:.2f} × | {right['one hop']:.3f} | {right['two hops']:.3f} | "
            f"{row['kl']:.4f} |"
        )
    return "\n".join(lines)
