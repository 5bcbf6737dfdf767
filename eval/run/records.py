"""The lines a run writes: one for each context, with every method's cost and error, and one for each sample."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from eval.methods import Batch, Method
from eval.methods.recompute import deviation
from eval.run import metrics
from eval.run.folder import Record
from eval.run.spectrum import spectra
from eval.tasks import Context, Outline
from kamera_jax.batch.windows import Windows
from kamera_jax.kv import WindowState

DIGITS = 6
"""Significant digits that are written: more than any comparison needs, fewer than rounding errors reach."""


def contexts(batch: Batch, group: Sequence[Outline], drawn: Sequence[Context]) -> list[Record]:
    """The contexts' lines, with what is the same for all methods."""
    absorbed = spectra(batch)
    spec = batch.runner.vlm.spec
    tokens = sum(chunk.length for chunk in batch.chunks)
    served = sum(batch.chunks[place].length for place in {*batch.reused, *batch.patched})
    return [
        {
            "id": outline.context,
            "layout": outline.layout,
            "seed": outline.seed,
            "samples": [f"{outline.context}/{i}" for i in range(len(context.questions))],
            "chunks": len(batch.chunks),
            "tokens": tokens,
            "reused_tokens": batch.reused_tokens,
            "reused_bytes": served * spec.token_bytes,
            "kv_bytes": tokens * spec.token_bytes,
            "kv_bytes_16_bits": tokens * 2 * spec.layers * (spec.rot_dim + spec.free_dim),
            "absorbed": {
                name: [[_rounded(value) for value in layer] for layer in values[e]] for name, values in absorbed.items()
            },
            "methods": {},
        }
        for e, (outline, context) in enumerate(zip(group, drawn, strict=True))
    ]


def samples(batch: Batch, group: Sequence[Outline], drawn: Sequence[Context]) -> list[Record]:
    """The questions, with the answers that count as right; of known text also which tail a token follows, and where."""
    lines = []
    for outline, context in zip(group, drawn, strict=True):
        tails = {tail: number for number, tail in enumerate(dict.fromkeys(each.tail for each in context.questions))}
        for i, question in enumerate(context.questions):
            line = {
                "id": f"{outline.context}/{i}",
                "context": outline.context,
                "seed": outline.seed,
                "chunks": len(batch.chunks),
                **question.record(),
            }
            if question.next_token is not None:
                line["follows"] = [tails[question.tail], question.at % len(question.tail)]
            lines.append({**line, "methods": {}})
    return lines


def note_costs(contexts: Sequence[Record], batch: Batch, method: Method, prepared: Any, windows: Windows) -> None:
    """Put a method's cost and KV error into the contexts' lines."""
    cost = method.cost(batch, prepared)
    error = np.asarray(kv_error(batch, windows, batch.served(method.codec)))
    for e, record in enumerate(contexts):
        record["methods"][method.name] = {
            "bytes": _rounded(np.broadcast_to(cost.stored_bytes, batch.count)[e]),
            "computed_tokens": _rounded(cost.computed_tokens),
            "flops": _rounded(np.broadcast_to(cost.flops, batch.count)[e]),
            "kv_error": [_rounded(each) for each in error[e]],
        }
        if cost.kept_bytes is not None:
            record["methods"][method.name]["kept_bytes"] = _rounded(cost.kept_bytes)
        if cost.model_bytes:
            record["methods"][method.name]["model_bytes"] = _rounded(cost.model_bytes)


def note_answers(
    samples: Sequence[Record],
    name: str,
    reference: Float[Array, "E Q V"],
    logits: Float[Array, "E Q V"],
    answers: Sequence[Sequence[str]],
) -> None:
    """Put a method's answers, and its KL(reference ‖ method) at the first answer token, into the samples' lines.

    Where the token that follows is known, its negative log-likelihood and the id of the most likely token stand beside
    them, and the most likely of those that it is to be chosen from.

    Args:
        samples: the lines.
        name: the method's name.
        reference: logits of full prefill.
        logits: logits of the method.
        answers: answers of the method, by context; contexts behind them are padding.
    """
    kl = np.asarray(metrics.kl(reference, logits))
    places = [(e, q) for e, row in enumerate(answers) for q in range(len(row))]
    known = np.zeros(logits.shape[:2], np.int32)
    for sample, place in zip(samples, places, strict=True):
        known[place] = sample.get("next_token", 0)
    nll = np.asarray(metrics.nll(logits, known))
    likeliest = np.asarray(logits.argmax(-1))
    for sample, (e, q) in zip(samples, places, strict=True):
        sample["methods"][name] = {"said": answers[e][q], "kl": _rounded(kl[e, q])}
        if "next_token" in sample:
            sample["methods"][name] |= {"token": int(likeliest[e, q]), "nll": _rounded(nll[e, q])}
        if among := sample.get("among"):
            sample["methods"][name]["chosen"] = among[int(logits[e, q, np.asarray(among)].argmax())]


def note_failure(contexts: Sequence[Record], samples: Sequence[Record], name: str, error: Exception) -> None:
    """Put into the contexts' lines why a method failed; what it left of itself in the lines is removed.

    Args:
        contexts, samples: the lines.
        name: the method's name.
        error: what it raised.
    """
    reason = str(error).strip().partition("\n")[0]
    for record in contexts:
        record["methods"].pop(name, None)
        record.setdefault("failed", {})[name] = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    for sample in samples:
        sample["methods"].pop(name, None)


def kv_error(batch: Batch, windows: Windows, served: Batch | None = None) -> Float[Array, "E L"]:
    """Frobenius error of the KV behind the first chunk, relative to the reference's, by context and layer.

    It is measured on rotated and patched KV; rotation changes no norm. Where chunks keep a share of their rows, these
    are held against the same tokens' rows.

    Args:
        batch: the contexts.
        windows: filled by a method.
        served: the contexts as the method serves them, where that says which rows there are.
    """
    served = batch if served is None else served
    true = _at(batch.full.state, jnp.asarray(served.true_slots, jnp.int32))
    ours = _at(windows.state, jnp.broadcast_to(jnp.asarray(served.reused_slots, jnp.int32), served.true_slots.shape))
    wrong = deviation(ours, true).sum(-1)
    return jnp.sqrt(wrong / deviation(true, jax.tree.map(jnp.zeros_like, true)).sum(-1))


def _at(state: WindowState, slots: Int[Array, "E n"]) -> WindowState:
    """The KV at some slots of each context's window; the rest of the state is left as it is."""
    rot, free = (jnp.take_along_axis(part, slots[:, None, :, None], axis=2) for part in (state.rot, state.free))
    return replace(state, rot=rot, free=free)


def _rounded(value: Any) -> float:
    return float(f"{float(value):.{DIGITS}g}")
