"""`kamera eval`: every method on the same contexts, group by group, into a folder.

Every context is encoded once, and all its questions are asked of the windows that each method fills. Contexts of one
layout are run together, spread over the devices.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import kamera_jax as kj
from eval.methods import Batch, Method, parse_all
from eval.run import answering, layouts, records
from eval.run import config as run_config
from eval.run.encoder import Encoder
from eval.run.folder import CONTEXTS, TIMING, Record, RunFolder, expected, failures, read_json, read_lines, write_json
from eval.run.layouts import ContextTooLongError
from eval.run.rescoring import rescore, rescored
from eval.tasks import Context, InvalidTaskError, Outline, Task, for_model, get
from eval.tasks.tokens import segment_of
from kamera_jax.backbone import Backbone, with_defaults
from kamera_jax.batch.devices import mesh_of
from kamera_jax.batch.windows import BatchRunner, Stack, Windows
from kamera_jax.kv import bucket
from kamera_jax.window.window import aligned

__all__ = ["ContextTooLongError", "Progress", "Run", "evaluate", "rescore"]

Progress = Callable[[int, int], None]
"""Called with how many contexts are done, and how many there are."""


@dataclass(frozen=True)
class Run:
    """The arguments of a run.

    Attributes:
        task, model: their names; see `eval.tasks.get` and `models.load`.
        methods: their names; see `eval.methods.parse`. ``full`` and ``blind`` are always among them.
        seeds: data seeds.
        limit: contexts of every seed; the task's ``contexts`` by default.
        capacity: slots of every window; as many as the longest context takes by default.
        batch: how many contexts run together.
        devices: how many devices they are spread over; all by default. A model on a mesh has its devices already.
        repeats: how often windows are filled to time it; the fastest counts, and the first may compile. 0: times are
            not measured, and nothing is run that only they take.
        mesh: axes and sizes of the mesh that the model was loaded on, as in ``model=2,fsdp=4``; see
            `eval.commands.meshes`. None: the command line gave none.
    """

    task: str
    model: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    limit: int | None = None
    capacity: int | None = None
    batch: int = 10
    devices: int | None = None
    repeats: int = 3
    mesh: str | None = None


def evaluate(
    vlm: Backbone,
    run: Run,
    output: Path | Callable[[Record], Path],
    progress: Progress = lambda *_: None,
    *,
    task: Task | None = None,
    named: bool = True,
) -> Record:
    """Run what is not done yet, and score everything.

    A method that fails is left out from then on, and said with its reason under ``failed`` of the scores; ``full`` and
    ``blind`` have to succeed.

    Args:
        vlm: the model.
        run: the arguments.
        output: an empty or new folder, or the folder of this run where it was stopped; or a function that gives it for
            the run's arguments and versions.
        progress: called after every group of contexts.
        task: the task, where it cannot be found by its name.
        named: whether the model can be loaded by its name.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: an unknown task or method, seeds or a batch that cannot be, a task whose contexts cannot be run
            (`eval.tasks.InvalidTaskError`), a context that does not fit the window (`ContextTooLongError`), or a folder
            of another run (`eval.run.folder.OtherRunError`).
    """
    own = for_model(get(run.task) if task is None else task, vlm)
    methods = parse_all(run.methods)
    limit = own.contexts if run.limit is None else run.limit
    _check_numbers(run, limit)
    placement = with_defaults(vlm).placement
    mesh = mesh_of(run.devices) if placement is None else None  # else the devices are the model's
    devices = _devices(mesh if placement is None else placement.mesh)
    by_layout = layouts.of(own, own.outline(run.seeds, limit))
    groups = [group for outlines in by_layout.values() for group in layouts.groups(outlines, run.batch)]
    total = sum(map(len, groups))
    resolved: Record = {"limit": limit, "capacity": run.capacity, "devices": devices}
    if getattr(own, "by_context", False):
        runners = Runners(vlm, mesh, run.capacity)
        resolved["contexts"] = total
    else:
        sizes = {layout: layouts.slots(vlm, own, outlines[0]) for layout, outlines in by_layout.items()}
        capacity = max(slots for slots, _ in sizes.values()) if run.capacity is None else run.capacity
        runners = Runners(vlm, mesh, capacity, max(capacity, *(with_history for _, with_history in sizes.values())))
        for layout, (needed, _) in sizes.items():
            layouts.check_fits(by_layout[layout][0].context, needed, capacity)
        resolved["capacity"] = capacity
    identity = _identity(vlm, own, run, methods, resolved)
    path = output if isinstance(output, Path) else output(identity)
    with RunFolder.opened(path, identity) as folder:
        objects = [name for name, given in (("task", task is not None), ("model", not named)) if given]
        run_config.write(path, run, identity["versions"], objects)
        done = folder.resume([[outline.context for outline in group] for group in groups])
        timing = read_json(path / TIMING) if done and (path / TIMING).exists() else {}
        failed = failures(read_lines(path / CONTEXTS)) if done else {}
        for number, group in enumerate(groups):
            if number >= done:
                size = -(-min(run.batch, len(by_layout[group[0].layout])) // _devices(mesh)) * _devices(mesh)
                left = [method for method in methods if method.name not in failed]
                contexts, samples, seconds = _run_group(own, left, runners, group, size, run.repeats)
                failed |= failures(contexts)
                folder.append(contexts, samples)
                with expected(path / TIMING):
                    timing[str(number)] = seconds
                write_json(path / TIMING, timing)
            progress(sum(map(len, groups[: number + 1])), total)
        return rescored(path, task=task)


def _check_numbers(run: Run, limit: int) -> None:
    """Raise ValueError if a run's numbers cannot be."""
    if limit < 1 or run.batch < 1 or run.repeats < 0 or not run.seeds or len(set(run.seeds)) < len(run.seeds):
        raise ValueError(
            f"limit and batch must be at least 1, repeats at least 0 and the seeds different; got {limit}, "
            f"{run.batch}, {run.repeats}, {run.seeds}"
        )


def _devices(mesh: jax.sharding.Mesh | None) -> int:
    return 1 if mesh is None else mesh.size


def _identity(vlm: Backbone, task: Task, run: Run, methods: Sequence[Method], resolved: Mapping[str, Any]) -> Record:
    """What a folder says of its run from the beginning: its arguments, as they turn out, and versions."""
    arguments = asdict(run)
    del arguments["repeats"]  # it changes times alone
    if run.mesh is None:  # as in folders of before there were any
        del arguments["mesh"]
    sources = dict(getattr(task, "sources", None) or {})
    return {
        "config": {
            **arguments,
            "methods": [method.name for method in methods],
            "seeds": list(run.seeds),
            **resolved,
            "task_version": task.version,
            "max_new_tokens": task.max_new_tokens,
            "fingerprint": vlm.fingerprint,
        },
        "versions": {"kamera-jax": kj.__version__} | {name: version(name) for name in ("jax", "jaxlib", "numpy")},
        **({"sources": sources} if sources else {}),
    }


class Runners:
    """What encodes items, and what fills windows: of one size, or of each context's own.

    Args:
        vlm: the model.
        mesh: devices to spread contexts over.
        capacity: slots of every window; None for the context's own, rounded up to a bucket, so that few are compiled.
        longest: slots where a history stands before; as ``capacity`` by default.
    """

    def __init__(
        self, vlm: Backbone, mesh: jax.sharding.Mesh | None, capacity: int | None, longest: int | None = None
    ) -> None:
        self.vlm = vlm
        self.capacity = capacity
        self.encode = Encoder(vlm)
        self._longest = longest
        self._mesh = mesh
        self._shallow = with_defaults(vlm).leading(2)
        self._made: dict[int, list[BatchRunner]] = {}

    def of(self, needed: int) -> list[BatchRunner]:
        """For windows that have room for so many slots: of the model, of its first layers, and with a history."""
        slots = bucket(needed) if self.capacity is None else self.capacity
        if slots not in self._made:
            kinds = ((self.vlm, slots), (self._shallow, slots), (self.vlm, self._longest or slots))
            self._made[slots] = [BatchRunner(model, capacity=each, mesh=self._mesh) for model, each in kinds]
        return self._made[slots]


def _antecedents(
    task: Task, group: Sequence[Outline], contexts: Sequence[Context], encode: Encoder
) -> dict[int, list[Stack]]:
    """By place, the chunks that patches are formed behind, where the contexts say so; stacked.

    Raises:
        InvalidTaskError: some contexts of the layout say so and others do not, or other numbers of chunks.
    """
    counts = [[len(behind) for behind in context.antecedents] for context in contexts]
    _check_alike(task, group, counts, "antecedents", "chunks")
    return {
        place: _stacked(task, group, [encode(context.antecedents[place]) for context in contexts])
        for place in range(len(counts[0]))
    }


def _check_alike(task: Task, group: Sequence[Outline], sizes: Sequence[list[int]], what: str, unit: str) -> None:
    """Raise InvalidTaskError unless all contexts of a layout have as much of something."""
    for outline, own in zip(group, sizes, strict=False):
        if own != sizes[0]:
            raise InvalidTaskError(
                f"contexts {group[0].context!r} and {outline.context!r} of the task {task.name} have the layout "
                f"{outline.layout!r}, and {what} of {sizes[0]} and {own} {unit}; give contexts that differ in "
                "that layouts of their own"
            )


def _reference(
    task: Task, group: Sequence[Outline], contexts: Sequence[Context], batch: Batch, runner: BatchRunner
) -> Windows:
    """The windows that methods are compared with.

    Args:
        task, group, contexts: of the batch; those of a layout have equally much history.
        batch: what is in the windows now.
        runner: of windows that have room for the history too.

    Raises:
        InvalidTaskError: some contexts of the layout have a history of other lengths than others.
    """
    before = [[segment_of(runner.vlm, item) for item in context.history] for context in contexts]
    lengths = [[int(segment.length) for segment in own] for own in before]
    _check_alike(task, group, lengths, "histories", "tokens")
    if not lengths[0]:
        return batch.full
    unread = batch.chunks[0].kv  # prefill runs the tokens again: no chunk's own KV is read
    history = [
        Stack(unread, jax.tree.map(lambda *leaves: jnp.stack(leaves), *own), int(own[0].length), float(own[0].advance))
        for own in zip(*before, strict=True)
    ]
    windows = runner.prefill([*history, *batch.chunks])
    for place, chunk in enumerate(history):
        windows = runner.hide(windows, place, chunk.length)
    return windows


def _stacked(task: Task, group: Sequence[Outline], chunks: Sequence[Sequence[kj.Chunk]]) -> list[Stack]:
    """Chunks stacked by place."""
    for outline, row in zip(group, chunks, strict=False):
        lengths, expected = ([chunk.length for chunk in each] for each in (row, chunks[0]))
        if lengths != expected:
            raise InvalidTaskError(
                f"contexts {group[0].context!r} and {outline.context!r} of the task {task.name} have the layout "
                f"{outline.layout!r}, and chunks of {expected} and {lengths} tokens; give contexts that differ in that "
                "layouts of their own"
            )
    return [Stack.of(place) for place in zip(*chunks, strict=True)]


def _timed(build: Callable[[], Any], arrays: Callable[[Any], Any], repeats: int = 3) -> tuple[Any, float]:
    """The result of a call, and the seconds of the fastest of several, of which the first may compile.

    Args:
        build: the call.
        arrays: the arrays of its result that have to be computed for it to be done.
        repeats: how many calls.
    """
    fastest = math.inf
    result = None
    for _ in range(repeats):
        start = time.perf_counter()
        result = build()
        jax.block_until_ready(arrays(result))
        fastest = min(fastest, time.perf_counter() - start)
    return result, fastest


def _run_group(
    task: Task,
    methods: Sequence[Method],
    sizes: Runners,
    group: Sequence[Outline],
    size: int,
    repeats: int,
) -> tuple[list[Record], list[Record], Record]:
    """Lines of a group's contexts and samples, and its times. The group is filled up to ``size`` with its last."""
    drawn = layouts.drawn(task, group)
    padded = drawn + [drawn[-1]] * (size - len(drawn))
    encoded = [sizes.encode(context.items) for context in padded]
    chunks = _stacked(task, group, encoded)
    needed = aligned(int(sizes.vlm.preamble.length)) + sum(aligned(chunk.length) for chunk in chunks)
    layouts.check_fits(group[0].context, needed, sizes.capacity)
    runners = sizes.of(needed)
    runner = runners[0]
    behind = _antecedents(task, group, padded, sizes.encode)
    batch = Batch.of(runner, runners[1], chunks, behind, padded[0].any_order)
    asked = answering.asked_of(runner.vlm, padded)
    asking = 0.0
    if repeats:
        _, asking = _timed(lambda: asked.first.logits(runner, batch.full), lambda logits: logits, repeats)
    reference = asked.logits(runner, _reference(task, group, padded, batch, runners[2]))
    contexts = records.contexts(batch, group, drawn)
    samples = records.samples(batch, group, drawn)
    seconds = {}
    known = {"full": batch.full, "blind": batch.blind}

    def measured(method: Method) -> None:
        prepared = method.prepare(batch)
        fill = partial(method.fill, batch, prepared)
        if repeats:
            windows, filling = _timed(fill, lambda windows: windows.state, repeats)
            seconds[method.name] = (filling + asking) / size
        else:
            windows = known.get(method.name) or fill()
        logits = asked.logits(runner, windows)
        if task.max_new_tokens > 1:
            answers = answering.generated(batch, encoded, windows, drawn, task.max_new_tokens)
        else:
            answers = answering.first_tokens(logits, drawn, runner.vlm)
        records.note_costs(contexts, batch, method, prepared, windows)
        records.note_answers(samples, method.name, reference, logits, answers)

    for method in methods:
        try:
            measured(method)
        except Exception as error:
            if method.name in known:
                raise
            seconds.pop(method.name, None)
            records.note_failure(contexts, samples, method.name, error)
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    timing = {
        "layout": group[0].layout,
        "chunks": len(chunks),
        "contexts": len(group),
        "ttft_s": seconds,
        "finished": finished,
    }
    return contexts, samples, timing
