"""docs/video.md, from what `kamera demo --video` and `python -m benchmarks.video` measured."""

from collections.abc import Mapping, Sequence
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

## Frames that repeat

Frames that show nearly the same may share the rows of their KV. Off by default:

```python
shared = kj.share_rows(vlm, kj.encode(vlm, kj.Video(frames, np.arange(8) / 2)), threshold=0.95)
window = kj.append(kj.Window.empty(vlm, capacity=600), shared)
```

A token takes the row that stands at the same place of an earlier temporal patch where the cosine of their media
embeddings reaches the threshold. A row says for how many tokens it stands, and attention adds the logarithm of that to
its scores (the *bias*), so that the row weighs as much as they did; text keeps its rows. From the command line it is
`kamera encode clip.mp4 --segment 4s --share-frames 0.95`.

Three segments, of which the third refers to the others, whose frames repeat to several degrees; *noise* is the standard
deviation of what is added to each pixel of each frame, of 255. {rows_episodes} held-out episodes of each kind with
{rows_questions} questions that the segments answer, and {rows_absent} about things that none of them shows: of these
the model is not sure, so a difference is seen first there. KL in nats to the same windows with all rows; all of them
are patched, with the default size. Without the bias, each row weighs as one token.

{rows}

Bytes of KV are as the rows. What the segments say is answered as with all rows; where the model is not sure, its answer
moves by as much as the table says, so sharing is for memory that is short.

A row of several tokens is the mean of theirs, un-rotated; the row of the first of them is further from what they were.
On windows whose segments were prefilled together and then shared, at {rows_shared:g}:

{rows_means}

### What the patches take

The same clips with patches that keep {rows_energy:.0%} of every layer's squared change: the mean rank of a layer, and
bytes; with all rows, and with rows shared at {rows_shared:g}. How much frames repeat matters little to the rank: what
a segment takes in of those before it repeats with them. Noise, which does not, costs rank.

{rows_ranks}

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
        **_rows_of(measured["rows"]),
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


def _rows_of(rows: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says of frames that share rows."""
    clips = rows["clips"]
    return {
        "rows_episodes": rows["episodes"],
        "rows_questions": sum(clips[0]["questions"].values()),
        "rows_absent": clips[0]["absent"],
        "rows": _shared(clips, rows["thresholds"]),
        "rows_shared": rows["shared"],
        "rows_energy": rows["energy"],
        "rows_means": _means(clips),
        "rows_ranks": _ranks(clips),
    }


def _shared(clips: Sequence[Mapping[str, Any]], thresholds: Sequence[float]) -> str:
    """A line for each kind of clip and threshold; thresholds at which the same rows are kept stand in one line."""
    lines = [
        "| clip | threshold | rows kept | one hop | two hops | KL | KL, not shown | without the bias: two hops | KL | "
        "KL, not shown |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for clip in clips:
        windows = clip["windows"]
        alike: list[list[float]] = []
        for threshold in thresholds:
            if alike and windows[str(alike[-1][0])] == windows[str(threshold)]:
                alike[-1].append(threshold)
            else:
                alike.append([threshold])
        for group in alike:
            own = windows[str(group[0])]
            bare = windows[f"{group[0]} without the bias"]
            right = own["accuracy"]
            lines.append(
                f"| {clip['name']} | {' to '.join(f'{each:g}' for each in sorted({group[0], group[-1]}))} | "
                f"{own['rows']:.1%} | {right['one hop']:.3f} | {right['two hops']:.3f} | {own['kl']:.1e} | "
                f"{own['kl_absent']:.3f} | {bare['accuracy']['two hops']:.3f} | {bare['kl']:.1e} | "
                f"{bare['kl_absent']:.3f} |"
            )
    return "\n".join(lines)


def _means(clips: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| clip | KL, mean | first | KL, not shown, mean | first |", "|---|---|---|---|---|"]
    for clip in clips:
        mean, first = (clip["windows"][f"prefilled, {name}"] for name in ("mean", "first"))
        lines.append(
            f"| {clip['name']} | {mean['kl']:.1e} | {first['kl']:.1e} | {mean['kl_absent']:.3f} | "
            f"{first['kl_absent']:.3f} |"
        )
    return "\n".join(lines)


def _ranks(clips: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| clip | rank | bytes, of the chunk's | rows kept | rank | bytes, of the chunk's |",
        "|---|---|---|---|---|---|",
    ]
    for clip in clips:
        every, shared = (clip["patches"][name] for name in ("all rows", "shared"))
        kept = clip["windows"]["prefilled, first"]["rows"]
        lines.append(
            f"| {clip['name']} | {every['rank']:.1f} | {kibibytes(round(every['bytes']))}, {every['share']:.1%} | "
            f"{kept:.1%} | {shared['rank']:.1f} | {kibibytes(round(shared['bytes']))}, {shared['share']:.1%} |"
        )
    return "\n".join(lines)
