"""`kamera demo` on a language model: how a quotation goes on behind chunks of real text that were encoded apart.

The chunks are tokens, or pictures of pages where the model reads those.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

import kamera_jax as kj
from eval.methods import Batch, Method, parse_all
from eval.run import change, metrics
from eval.run.answering import asked_of
from eval.tasks.text.quotation import Quotation
from eval.tasks.text.seen import SeenQuotation
from eval.tasks.text.task import TextTask
from eval.tasks.tokens import segment_of
from kamera_jax.backbone import Backbone, with_defaults
from kamera_jax.batch.windows import BatchRunner, Stack, Windows
from kamera_jax.inference.encode import encode_segment

METHODS = ("full", "blind", "cacheblend:0.15", "patch", "patch:1", "patch:2", "patch:4", "patch:8")
"""The reference, the baseline, recomputing 15 % of the tokens, patches of the default size, and of few components a
layer."""

CASES = 12
"""Quotations: two cores run so many in about a minute."""

Progress = Callable[[str, int, int], None]
"""Called with the name of a step, how many steps are done, and how many there are."""


def run(
    vlm: Backbone,
    *,
    cases: int = CASES,
    pages: bool = False,
    tokens: int | None = None,
    corpus: str | None = None,
    methods: Sequence[str] = METHODS,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Run the demo.

    Args:
        vlm: a language model.
        cases: passages and quotations of them.
        pages: whether the passages are seen as pictures, as kamera-smol-vl reads them.
        tokens: of each passage, 256 by default and 64 of pages; a quotation begins with half of them.
        corpus: where the passages are from; see `eval.tasks.text.corpus.read`. By default ``"pydoc"``, and of pages
            ``"docstrings"``, which kamera-smol-vl was not trained on.
        methods: to compare; full and blind come first.
        progress: called after every step.

    Returns:
        What ``--json`` writes, except for the model.

    Raises:
        ValueError: full and blind are not the first methods.
        CorpusTooSmallError: the corpus has too few passages.
    """
    if tuple(methods[:2]) != ("full", "blind"):
        raise ValueError(f"the demo compares with full and blind, which stand first; got {', '.join(methods)}")
    steps = iter(range(1, cases + len(methods) + 3))
    total = cases + len(methods) + 2

    def done(name: str) -> None:
        progress(name, next(steps), total)

    kind = SeenQuotation if pages else Quotation
    task: TextTask = kind(
        tokens=tokens or (64 if pages else 256), corpus=corpus or ("docstrings" if pages else "pydoc")
    ).for_model(vlm)
    outlines = task.outline([0], cases)
    contexts = [task.draw(outline) for outline in outlines]
    encoded = []
    for context in contexts:
        encoded.append([encode_segment(vlm, segment_of(vlm, item)) for item in context.items])
        done("encoding passages")
    chunks = [Stack.of(place) for place in zip(*encoded, strict=True)]
    batch = Batch.of(BatchRunner(vlm), BatchRunner(with_defaults(vlm).leading(2)), chunks)
    jax.block_until_ready((batch.full.state, batch.blind.state))
    done("full prefill")
    asked = asked_of(vlm, contexts)
    right = np.array([[question.next_token for question in context.questions] for context in contexts])

    answers: dict[str, np.ndarray] = {}
    rows = []
    reference = blind = None
    for method in parse_all(methods):
        prepared = method.prepare(batch)
        windows, seconds = _filled(batch, method, prepared)
        logits = asked.logits(batch.runner, windows)
        reference = logits if reference is None else reference
        blind = logits if method.name == "blind" else blind
        answers[method.name] = np.asarray(logits.argmax(-1))
        row = _scores(answers[method.name], right) | _costs(batch, method, prepared, seconds)
        row["kl"] = float(metrics.kl(reference, logits).mean())
        row["eta"] = None if blind is None else metrics.eta(reference, logits, blind)
        rows.append({"name": method.name, **row})
        done(method.name)
    rows[0]["eta"] = 1.0
    depth = change.relative(batch)
    done("change of the KV")
    spelled = replace(task, form="text") if isinstance(task, SeenQuotation) else task
    most = _most_telling(answers["full"] == right, answers["blind"] == right)
    return {
        "kind": "text",
        "pages": pages,
        "methods": rows,
        "change": {"keys": depth["rot"].mean(0).tolist(), "values": depth["free"].mean(0).tolist()},
        "example": _example(
            task, spelled.draw(outlines[most]), {name: own[most] for name, own in answers.items()}, right[most]
        ),
        "cases": cases,
        "tokens": [chunk.length for chunk in chunks],
        "next_tokens": right.shape[1],
        "corpus": dict(task.sources),
        "versions": {"kamera-jax": kj.__version__} | {name: version(name) for name in ("jax", "numpy")},
    }


def _filled(batch: Batch, method: Method, prepared: Any) -> tuple[Windows, float]:
    """The windows that a method fills, and the seconds of it once everything is compiled."""
    if method.name not in ("full", "blind"):  # those two are compiled: the batch has them
        jax.block_until_ready(method.fill(batch, prepared).state)
    start = time.perf_counter()
    windows = method.fill(batch, prepared)
    jax.block_until_ready(windows.state)
    return windows, time.perf_counter() - start


def _scores(answers: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """How often next tokens [E, Q] are right, and how often they and all before them are: what is written greedily."""
    hits = answers == right
    so_far = np.cumprod(hits, axis=1).mean(0)
    return {"accuracy": float(hits.mean()), "first": float(hits[:, 0].mean()), "so_far": so_far.tolist()}


def _costs(batch: Batch, method: Method, prepared: Any, seconds: float) -> dict[str, Any]:
    """What a window takes: stored bytes, also as a share of the second chunk's KV, tokens run, and milliseconds."""
    cost = method.cost(batch, prepared)
    stored = float(np.mean(cost.stored_bytes))
    return {
        "bytes": stored,
        "bytes_share": stored / (batch.reused_tokens * batch.runner.vlm.spec.token_bytes),
        "computed_tokens": cost.computed_tokens,
        "milliseconds": 1e3 * seconds / batch.count,
    }


def _most_telling(full: np.ndarray, blind: np.ndarray) -> int:
    """The case in which full prefill writes most tokens more than blind reuse before the first that is wrong."""
    return int((np.cumprod(full, axis=1).sum(1) - np.cumprod(blind, axis=1).sum(1)).argmax())


def _example(task: TextTask, context: Any, answers: dict[str, np.ndarray], right: np.ndarray) -> dict[str, Any]:
    """A quotation in words: both passages, what follows, and what each method predicts token by token."""
    assert task.reader is not None
    passage, copy = (task.reader.text(item.ids) for item in context.items)
    return {
        "passage": passage,
        "copy": copy,
        "given": task.reader.text([context.questions[0].tail[0]]),
        "next": task.reader.text(right),
        "written": {name: _greedy(task, own, right) for name, own in answers.items()},
    }


def _greedy(task: TextTask, answers: np.ndarray, right: np.ndarray) -> str:
    """The next tokens up to the first that is wrong, with it: from there on a method's own text would differ."""
    assert task.reader is not None
    wrong = np.flatnonzero(answers != right)
    return task.reader.text(answers[: wrong[0] + 1] if len(wrong) else answers)
