"""What a run will take, before it is run: tokens, FLOPs, hours and bytes."""

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from eval.methods import parse_all
from eval.run.folder import Record
from eval.tasks import Task
from eval.tasks.tokens import segment_of
from kamera_jax.backbone import Backbone, forward_flops
from kamera_jax.inference.encode import encode_segment
from kamera_jax.kv import bucket
from kamera_jax.window.window import aligned

LOOKED_AT = 8
"""Contexts whose tokens are counted, evenly spread; the others are taken to be as long."""


def forecast(vlm: Backbone, task: Task, methods: Sequence[str], seeds: Sequence[int], limit: int | None) -> Record:
    """What a run will take, from some of its contexts; of these one chunk is run, to see how fast the device is.

    FLOPs are of forwards of the language model: encoding every chunk alone, full prefill, what methods run again, and
    the questions with their answers, of every method. Towers of media and patches' decompositions are not in them.

    Args:
        vlm: the model.
        task: the task, for the model.
        methods: names; ``full`` and ``blind`` are added.
        seeds, limit: as `eval.run.runner.Run` has them.

    Returns:
        ``contexts``, ``questions``, ``chunks``, ``tokens`` (of all contexts), ``longest`` (tokens of a context),
        ``window_slots`` and ``window_bytes`` (of the longest), ``flops`` by step, ``flops_total``,
        ``flops_per_second`` as measured, ``hours`` and ``looked_at``.
    """
    outlines = task.outline(seeds, task.contexts if limit is None else limit)
    places = np.unique(np.linspace(0, len(outlines) - 1, min(LOOKED_AT, len(outlines))).round().astype(int))
    names = [method.name for method in parse_all(methods)]
    seen: list[Record] = []
    timed = None
    for place in places:
        context = task.draw(outlines[place])
        segments = [segment_of(vlm, item) for item in context.items]
        timed = timed or _timed(vlm, max(segments, key=lambda segment: int(segment.length)))
        lengths = [int(segment.length) for segment in segments]
        tails = [len(question.tail) or int(vlm.tail(question.text).length) for question in context.questions]
        seen.append(_flops(vlm, lengths, tails, task.max_new_tokens, names))
    assert timed is not None
    scale = len(outlines) / len(seen)
    steps = {name: scale * math.fsum(each["flops"][name] for each in seen) for name in seen[0]["flops"]}
    longest = max(each["tokens"] for each in seen)
    slots = max(each["slots"] for each in seen)
    total = math.fsum(steps.values())
    return {
        "contexts": len(outlines),
        "questions": round(scale * sum(each["questions"] for each in seen)),
        "chunks": round(scale * sum(each["chunks"] for each in seen)),
        "tokens": round(scale * sum(each["tokens"] for each in seen)),
        "longest": longest,
        "window_slots": bucket(slots),
        "window_bytes": bucket(slots) * vlm.spec.token_bytes,
        "flops": steps,
        "flops_total": total,
        "flops_per_second": timed,
        "hours": total / timed / 3600,
        "looked_at": len(seen),
    }


def _flops(vlm: Backbone, lengths: Sequence[int], tails: Sequence[int], new: int, methods: Sequence[str]) -> Record:
    head = int(vlm.preamble.length)
    alone = math.fsum(forward_flops(vlm, length, head) for length in lengths)
    full = 0.0
    slots = head
    for length in lengths:
        full += forward_flops(vlm, length, slots)
        slots += length
    asking = math.fsum(forward_flops(vlm, tail + new - 1, slots) for tail in tails)
    again = math.fsum(_share(name, lengths) for name in methods) * full
    return {
        "flops": {"encoding": alone, "full prefill": full, "running again": again, "asking": asking * len(methods)},
        "questions": len(tails),
        "chunks": len(lengths),
        "tokens": sum(lengths),
        "slots": aligned(head) + sum(map(aligned, lengths)),
    }


def _share(name: str, lengths: Sequence[int]) -> float:
    """The share of full prefill that a method runs again, as its name says."""
    total = 0.0
    for part in name.split("+"):
        kind, _, number = part.partition(":")
        if kind in ("cacheblend", "vlcache"):
            total += float(number)
        elif kind in ("epic", "mpic"):
            total += sum(min(int(number), length) for length in lengths[1:]) / sum(lengths)
    return total


def _timed(vlm: Backbone, segment: Any) -> float:
    """FLOPs a second of encoding a chunk; what is run first compiles."""
    seconds = math.inf
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(encode_segment(vlm, segment).kv)
        seconds = min(seconds, time.perf_counter() - start)
    return forward_flops(vlm, int(segment.length), int(vlm.preamble.length)) / seconds


def lines(found: Record) -> list[str]:
    """A forecast in words, a line each."""
    steps = ", ".join(f"{name} {value:.2e}" for name, value in found["flops"].items())
    return [
        f"{found['contexts']} contexts, {found['chunks']} chunks, {found['questions']} questions "
        f"(from {found['looked_at']} of the contexts)",
        f"tokens: {found['tokens']:,} in all, {found['longest']:,} in the longest of these contexts",
        f"window: {found['window_slots']:,} slots, {found['window_bytes'] / 2**20:,.1f} MiB of KV",
        f"FLOPs: {found['flops_total']:.2e} ({steps})",
        f"hours: {found['hours']:.2g} on this device, at the {found['flops_per_second']:.2e} FLOPs a second that "
        "encoding one of the chunks reaches; compilation and media are not in it",
    ]
