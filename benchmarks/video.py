"""What a window that slides over images and video costs: `python -m benchmarks.video`.

A trace of users who each turn show the latest five images: what is run through the tower and the language model, and
how long that takes, for full re-prefill, a prefix cache, an encoder cache beside it, and a session. The memory of a
session over a long video. And what sharing the rows of near-duplicate frames costs and saves. `make results-video`
measures all three, with `kamera demo --video`, and writes docs/video.md.
"""

import argparse
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

import kamera_jax as kj
from benchmarks import video_rows
from benchmarks.video_page import page_of
from eval.commands.demo import HELD_OUT_SEED, answer_token
from eval.commands.demo_video import next_token
from eval.run import metrics
from eval.tiny.episodes import Recipe, question_text
from eval.tiny.pages import FRAMES, shown
from eval.tiny.stream import sample_stream
from kamera_jax.backbone import forward_flops
from kamera_jax.inference.encode import run_chunk
from kamera_jax.window.window import aligned
from models import load
from models.vlm import VisionLanguageModel

USERS = 30
TURNS = 8
WINDOW = 5
"""Users, turns of each, and images that a prompt shows: the latest, of which one is new each turn."""

TEXT = 12
"""Facts of the text that stands before the images, the same at every turn of a user."""

PAGES = Recipe(informative=12)

CACHES = ("re-prefill", "prefix cache", "encoder cache", "session")
"""What is compared: everything run each turn; what stands in front reused, which here is the text; the tower's outputs
reused as well; and a session, which encodes and patches the new image alone."""

SEGMENTS = 250
"""Segments of the long video: 2,000 frames."""

MEMORY = 4 * 2**20
"""Bytes that the session over it may keep of segments that have left."""

EVERY = 25
"""Segments from one look at the memory to the next."""


@dataclass
class Cost:
    """What one cache cost over the trace.

    Attributes:
        images: run through the tower.
        tokens: of text and images, run through the language model.
        flops: of these.
        seconds: that filling the windows took.
        right: whether answers were right, by hops.
        kl: KL(re-prefill ‖ this) of the next token, in nats.
    """

    images: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    right: dict[str, list[bool]] = field(default_factory=lambda: {"one hop": [], "two hops": []})
    kl: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """The cost as JSON."""
        accuracy = {name: float(np.mean(right)) for name, right in self.right.items()}
        shares = {"images": self.images, "tokens": self.tokens, "flops": self.flops, "seconds": self.seconds}
        return {**shares, "accuracy": accuracy, "kl": float(np.mean(self.kl))}


class Filler:
    """Fills windows as a server would, and counts what that runs."""

    def __init__(self, vlm: VisionLanguageModel, capacity: int) -> None:
        """Fill windows of so many slots."""
        self.vlm = vlm
        self.capacity = capacity

    def text(self, text: kj.Chunk) -> kj.Window:
        """A window with the text alone, which is run where it stands."""
        return kj.append(kj.Window.empty(self.vlm, self.capacity), text)

    def behind(self, window: kj.Window, chunks: list[kj.Chunk], cost: Cost) -> kj.Window:
        """Run chunks behind a window, one after another."""
        for chunk in chunks:
            cost.tokens += chunk.length
            cost.flops += forward_flops(self.vlm, chunk.length, window.tokens + window.preamble.chunk.length)
            window = kj.append(window, run_chunk(self.vlm, window, chunk)[0])
        return window


def timed(cost: Cost, work: Callable[[], kj.Window]) -> kj.Window:
    """The window that the work fills; its time is added to the cost."""
    start = time.perf_counter()
    window = work()
    jax.block_until_ready(window.state)
    cost.seconds += time.perf_counter() - start
    return window


def sliding(vlm: VisionLanguageModel, *, users: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Go through the trace once for each user, with every cache side by side."""
    costs = {name: Cost() for name in CACHES}
    for user in range(users + 1):  # the first one warms up: what is compiled is not timed
        if user == 1:
            costs = {name: Cost() for name in CACHES}
        _user(vlm, user, costs)
        progress(f"users {user} of {users}")
    full = costs["re-prefill"]
    for cost in costs.values():
        assert len(cost.kl) == len(full.kl)
    return {
        "users": users,
        "turns": TURNS,
        "window": WINDOW,
        "caches": {name: each.row() for name, each in costs.items()},
    }


def _user(vlm: VisionLanguageModel, user: int, costs: dict[str, Cost]) -> None:
    rng = np.random.default_rng((HELD_OUT_SEED, user))
    stream = sample_stream(rng, WINDOW + TURNS - 1, PAGES)
    images = [shown(chunk.cells) for chunk, _ in stream if chunk.cells is not None]
    text = kj.encode(vlm, " ".join(["you read pages."] * TEXT))
    chunks = [kj.encode(vlm, image) for image in images]
    capacity = aligned(int(vlm.preamble.length)) + aligned(text.length) + (WINDOW + 1) * aligned(chunks[0].length)
    fill = Filler(vlm, capacity)
    session = kj.Session(vlm, capacity - aligned(chunks[0].length))
    session.add(text, pin=True)  # it stands first, so it is run once and takes no patch
    costs["session"].tokens += text.length
    costs["session"].flops += forward_flops(vlm, text.length, int(vlm.preamble.length))
    for turn in range(TURNS):
        there = chunks[turn : turn + WINDOW]
        new = images[turn : turn + WINDOW] if turn == 0 else images[turn + WINDOW - 1 : turn + WINDOW]
        windows = {
            name: _filled(fill, name, turn, text, there, images[turn : turn + WINDOW], new, costs[name])
            for name in CACHES[:-1]
        }
        windows["session"] = timed(costs["session"], lambda new=new: _session(vlm, session, new, costs["session"]))
        truths = [
            truth for _, own in stream[turn : turn + WINDOW] for truth in own if truth.behind <= turn + WINDOW - 1
        ]
        for kind, wanted in (("one hop", False), ("two hops", True)):
            asked = [truth for truth in truths if bool(truth.behind) == wanted]
            if not asked:
                continue
            truth = asked[-1]
            tail = vlm.tail(question_text(truth.glyph))
            logits = {name: next_token(vlm, window, tail) for name, window in windows.items()}
            for name, own in logits.items():
                costs[name].right[kind].append(int(own.argmax()) == answer_token(vlm, truth.colour))
                costs[name].kl.append(float(metrics.kl(logits["re-prefill"][None], own[None])[0]))


def _filled(
    fill: Filler,
    name: str,
    turn: int,
    text: kj.Chunk,
    chunks: list[kj.Chunk],
    images: list[Any],
    new: list[Any],
    cost: Cost,
) -> kj.Window:
    """A turn's window by one of the caches that reuse nothing behind the first difference."""
    through = new if name == "encoder cache" else images

    def work() -> kj.Window:
        for image in through:
            jax.block_until_ready(fill.vlm.prepare(image).inputs)
        if name == "re-prefill" or turn == 0:
            start = fill.behind(kj.Window.empty(fill.vlm, fill.capacity), [text], cost)
        else:
            start = fill.text(text)
        return fill.behind(start, chunks, cost)

    cost.images += len(through)
    return timed(cost, work)


def _session(vlm: VisionLanguageModel, session: kj.Session, new: list[Any], cost: Cost) -> kj.Window:
    """The session's window once the new images are in it."""
    for image in new:
        before = session.stats.encoded
        session.add(image)
        forwards = [each for each in session.last if not each.reused]
        encoded = session.stats.encoded - before
        length = session.window.entries[-1].chunk.length
        cost.images += encoded
        cost.tokens += length * (encoded + len(forwards))
        cost.flops += sum(each.flops for each in session.last)
        cost.flops += encoded * forward_flops(vlm, length, int(vlm.preamble.length))
    return session.window


def memory(vlm: VisionLanguageModel, *, segments: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """The process's memory while a session's window slides over a long video, one segment rendered at a time."""
    stream = sample_stream(np.random.default_rng((HELD_OUT_SEED, segments)), segments)
    lengths = [chunk.cells for chunk, _ in stream if chunk.cells is not None]
    first = int(vlm.prepare(shown(lengths[0])).length)
    capacity = aligned(int(vlm.preamble.length)) + WINDOW * aligned(first)
    session = kj.Session(vlm, capacity, memory_bytes=MEMORY)
    rows = []
    for number, cells in enumerate(lengths, start=1):
        session.add(shown(cells))
        if number % EVERY == 0:
            stats = session.stats
            rows.append({"segments": number, "resident": resident(), "evicted_bytes": stats.evicted_bytes})
            progress(f"segments {number} of {segments}")
    stats = session.stats
    return {
        "segments": segments,
        "frames": sum(FRAMES * len(cells) for cells in lengths),
        "encoded": stats.encoded,
        "forgotten": stats.forgotten,
        "memory_bytes": MEMORY,
        "rows": rows,
    }


def resident() -> int:
    """Bytes of this process in memory."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure windows that slide over images and video.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure")
    one.add_argument("--users", type=int, default=USERS)
    one.add_argument("--segments", type=int, default=SEGMENTS)
    one.add_argument("--json", type=Path, required=True)
    again = commands.add_parser("rows", help="measure shared rows alone, and put them into what was measured")
    for each in (one, again):
        each.add_argument("--episodes", type=int, default=video_rows.EPISODES)
    again.add_argument("--json", type=Path, required=True)
    page = commands.add_parser("page", help="write the page of results")
    page.add_argument("demo", type=Path, help="what kamera demo --video wrote")
    page.add_argument("measured", type=Path)
    page.add_argument("--page", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "page":
        demo, measured = (json.loads(path.read_text(encoding="utf-8")) for path in (options.demo, options.measured))
        options.page.write_text(page_of(demo, measured), encoding="utf-8")
        return
    start = time.perf_counter()

    def progress(what: str) -> None:
        print(f"{what}, {time.perf_counter() - start:.0f} s", flush=True)

    if options.command == "rows":
        result = json.loads(options.json.read_text(encoding="utf-8"))
        result["rows"] = video_rows.measure(load("kamera-tiny-video"), episodes=options.episodes, progress=progress)
        options.json.write_text(json.dumps(result) + "\n", encoding="utf-8")
        return
    result = {
        "memory": memory(load("kamera-tiny-video"), segments=options.segments, progress=progress),
        "sliding": sliding(load("kamera-tiny-gqa"), users=options.users, progress=progress),
        "rows": video_rows.measure(load("kamera-tiny-video"), episodes=options.episodes, progress=progress),
        "versions": {"kamera-jax": kj.__version__, "jax": jax.__version__},
    }
    options.json.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
