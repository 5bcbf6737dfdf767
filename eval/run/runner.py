"""`kamera eval`: every method on the same contexts, group by group, into a folder.

A context is encoded once and asked all its questions; contexts of one layout are run together, spread over the devices.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import kamera_jax as kj
from eval.methods import Batch, Method, parse_all
from eval.run import records, scores
from eval.run.folder import CONTEXTS, SAMPLES, TIMING, Record, RunFolder, read_json, read_lines, write_json
from eval.tasks import Context, Outline, Task, get
from kamera_jax.backbone import Backbone, with_defaults
from kamera_jax.batch.devices import mesh_of
from kamera_jax.batch.windows import BatchRunner, Stack
from kamera_jax.inference.encode import encode_segment
from kamera_jax.kv import Segment
from kamera_jax.window.window import aligned

Progress = Callable[[int, int], None]
"""Told how many contexts are done, and how many there are."""


@dataclass(frozen=True)
class Run:
    """What is run.

    Attributes:
        task, model: names.
        methods: names; ``full`` and ``blind`` are always among them.
        seeds: of the data.
        limit: contexts of every seed; the task's own number by default.
        capacity: slots of every window; what the longest context takes by default.
        batch: contexts run together.
        devices: to spread them over; all by default.
    """

    task: str
    model: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    limit: int | None = None
    capacity: int | None = None
    batch: int = 10
    devices: int | None = None


REPEATS = 3
"""How often a window is filled to time it; the fastest counts."""


class ContextTooLongError(ValueError):
    """A context that does not fit the window."""


def evaluate(vlm: Backbone, run: Run, output: Path, progress: Progress = lambda *_: None) -> Record:
    """Run what is not done yet, and score everything.

    Args:
        vlm: the model.
        run: what is asked for.
        output: a folder of its own, or one that holds the beginning of this run.
        progress: told how far it is.

    Returns:
        What ``results.json`` holds.

    Raises:
        ValueError: an unknown task or method, seeds or a batch that are no good, a context that does not fit the window
            (`ContextTooLongError`), or a folder of another run (`eval.run.folder.OtherRunError`).
    """
    task = get(run.task)
    methods = parse_all(run.methods)
    limit = task.contexts if run.limit is None else run.limit
    if limit < 1 or run.batch < 1 or not run.seeds or len(set(run.seeds)) < len(run.seeds):
        raise ValueError(
            f"limit and batch must be at least 1 and the seeds different; got {limit}, {run.batch}, {run.seeds}"
        )
    mesh = mesh_of(run.devices)
    layouts: dict[str, list[Outline]] = {}
    for outline in task.outline(run.seeds, limit):
        layouts.setdefault(outline.layout, []).append(outline)
    slots = {layout: _slots(vlm, task, outlines[0]) for layout, outlines in layouts.items()}
    capacity = max(slots.values()) if run.capacity is None else run.capacity
    for layout, needed in slots.items():
        _check_fits(layouts[layout][0].context, needed, capacity)
    identity = {
        "config": {
            **asdict(run),
            "methods": [method.name for method in methods],
            "seeds": list(run.seeds),
            "limit": limit,
            "capacity": capacity,
            "devices": 1 if mesh is None else mesh.size,
            "task_version": task.version,
            "fingerprint": vlm.fingerprint,
        },
        "versions": {"kamera-jax": kj.__version__} | {name: version(name) for name in ("jax", "jaxlib", "numpy")},
    }
    folder = RunFolder.open(output, identity)
    groups = [group for outlines in layouts.values() for group in _groups(outlines, run.batch)]
    done = folder.resume([[outline.context for outline in group] for group in groups])
    timing = read_json(output / TIMING) if done and (output / TIMING).exists() else {}
    total = sum(map(len, groups))
    shallow = with_defaults(vlm).leading(2)
    runners = [BatchRunner(model, capacity=capacity, mesh=mesh) for model in (vlm, shallow)]
    for number, group in enumerate(groups):
        if number >= done:
            size = min(run.batch, len(layouts[group[0].layout]))
            size = -(-size // (1 if mesh is None else mesh.size)) * (1 if mesh is None else mesh.size)
            contexts, samples, seconds = _run_group(task, methods, runners, group, size)
            folder.append(contexts, samples)
            timing[str(number)] = seconds
            write_json(output / TIMING, timing)
        progress(sum(map(len, groups[: number + 1])), total)
    return rescore(output)


def rescore(output: Path) -> Record:
    """The scores of a run from its lines: nothing is run.

    Raises:
        ValueError: the folder holds no run.
    """
    held = read_json(output / "results.json")
    identity = {"config": held["config"], "versions": held["versions"]}
    contexts = read_lines(output / CONTEXTS)
    samples = read_lines(output / SAMPLES)
    if sum(len(record["samples"]) for record in contexts) != len(samples):
        raise ValueError(f"{output} holds a run that was cut off; run kamera eval with the same arguments to finish it")
    RunFolder(output, identity).finish(scores.score(held["config"]["methods"], contexts, samples))
    return read_json(output / "results.json")


def _groups(outlines: Sequence[Outline], size: int) -> Iterator[list[Outline]]:
    for start in range(0, len(outlines), size):
        yield list(outlines[start : start + size])


def _slots(vlm: Backbone, task: Task, outline: Outline) -> int:
    """Slots that the chunks of a context take, behind the preamble."""
    segments = [vlm.prepare(item) for item in task.draw(outline).items]
    return aligned(int(vlm.preamble.length)) + sum(aligned(int(segment.length)) for segment in segments)


def _check_fits(context: str, needed: int, capacity: int) -> None:
    if needed > capacity:
        raise ContextTooLongError(
            f"sample {context} takes {needed} slots with the preamble, the window has {capacity}; raise --capacity, or "
            "leave it away for a window that fits the longest"
        )


def _encoded(vlm: Backbone, contexts: Sequence[Context]) -> list[Stack]:
    """Every item encoded once, however often it is shown; stacked by place."""
    known: dict[str, kj.Chunk] = {}

    def encode(item: Any) -> kj.Chunk:
        segment: Segment = vlm.prepare(item)
        if segment.content not in known:
            known[segment.content] = encode_segment(vlm, segment)
        return known[segment.content]

    rows = [[encode(item) for item in context.items] for context in contexts]
    return [Stack.of(place) for place in zip(*rows, strict=True)]


def _timed(build: Callable[[], Any], arrays: Callable[[Any], Any]) -> tuple[Any, float]:
    """What it builds, and the seconds of the fastest of `REPEATS`, of which the first may compile.

    Args:
        build: what is timed.
        arrays: of what it builds, those that must be there for it to be done.
    """
    fastest = math.inf
    result = None
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = build()
        jax.block_until_ready(arrays(result))
        fastest = min(fastest, time.perf_counter() - start)
    return result, fastest


def _run_group(
    task: Task, methods: Sequence[Method], runners: Sequence[BatchRunner], group: Sequence[Outline], size: int
) -> tuple[list[Record], list[Record], Record]:
    """Lines of a group's contexts and samples, and its times. The group is filled up to ``size`` with its last."""
    runner = runners[0]
    drawn = [task.draw(outline) for outline in group]
    padded = drawn + [drawn[-1]] * (size - len(drawn))
    chunks = _encoded(runner.vlm, padded)
    needed = aligned(runner.preamble_length) + sum(aligned(chunk.length) for chunk in chunks)
    _check_fits(group[0].context, needed, runner.capacity)
    batch = Batch.of(runner, runners[1], chunks)
    tails = runner.tails([[question.text for question in context.questions] for context in padded])
    first = jax.tree.map(lambda leaf: leaf[:, :1], tails)
    _, asking = _timed(lambda: runner.ask(batch.full, first), lambda logits: logits)
    reference = runner.ask(batch.full, tails)
    contexts = records.contexts(batch, group, drawn)
    samples = records.samples(batch, group, drawn)
    seconds = {}
    for method in methods:
        prepared = method.prepare(batch)
        windows, filling = _timed(partial(method.fill, batch, prepared), lambda windows: windows.state)
        records.note_costs(contexts, batch, method, prepared, windows)
        records.note_answers(samples, drawn, method.name, reference, runner.ask(windows, tails), runner.vlm)
        seconds[method.name] = (filling + asking) / size
    timing = {"layout": group[0].layout, "chunks": len(chunks), "contexts": len(group), "ttft_s": seconds}
    return contexts, samples, timing
