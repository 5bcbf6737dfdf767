"""Scores of a run, from its lines alone: by method, and within it by hops, condition, length and depth."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eval.run.folder import Record
from eval.run.metrics import mean_and_error

DEPTHS = (0.25, 0.5, 0.75)
"""Where the quarters of a window end."""


def score(methods: Sequence[str], contexts: Sequence[Record], samples: Sequence[Record]) -> Record:
    """Everything that is reported but times.

    Accuracies by hops are over the samples that are marked as learned; KL, η and flips over those of several hops.
    """
    learned = [sample for sample in samples if sample["learned"]]
    several = [sample for sample in learned if sample["hops"] > 1]
    return {
        "contexts": len(contexts),
        "samples": len(samples),
        "flips": sum(map(_flipped, several)),
        "several_hops": len(several),
        "methods": {name: _method(name, contexts, samples, learned, several) for name in methods},
        "absorbed": {
            name: _means([record["absorbed"][name] for record in contexts]) for name in ("components", "tokens")
        },
    }


def _method(
    name: str,
    contexts: Sequence[Record],
    samples: Sequence[Record],
    learned: Sequence[Record],
    several: Sequence[Record],
) -> Record:
    flipped = [sample for sample in several if _flipped(sample)]
    kl = [_kl(sample, name) for sample in several]
    return {
        "hops": _by(learned, name, lambda sample: sample["hops"]),
        "seeds": _by(several, name, lambda sample: sample["seed"]),
        "conditions": {
            condition: _by(own, name, lambda sample: sample["hops"])
            for condition, own in _split(samples, lambda sample: sample["condition"]).items()
        },
        "lengths": {
            length: _by(own, name, lambda sample: quarter(sample["depth"]))
            for length, own in _split(several, lambda sample: sample["chunks"]).items()
        },
        "distances": _by(several, name, lambda sample: sample.get("distance", "")),
        "eta": _eta(kl, [_kl(sample, "blind") for sample in several]),
        "flips": sum(_said(sample, name) != _said(sample, "full") for sample in several),
        "recovered": _share([_said(sample, name) == _said(sample, "full") for sample in flipped]),
        "cost": _cost(name, contexts),
        "kv_error": _means([record["methods"][name]["kv_error"] for record in contexts]),
    }


def quarter(depth: float) -> str:
    """Which quarter of the window it is in, the last's end included."""
    place = sum(depth >= end for end in DEPTHS)
    bounds = (0, *DEPTHS, 1)
    return f"{bounds[place]:g} – {bounds[place + 1]:g}"


def _cost(name: str, contexts: Sequence[Record]) -> Record:
    """Means over contexts; shares are of what stands behind the first chunk, and of full prefill."""
    own, full = ([record["methods"][method] for record in contexts] for method in (name, "full"))
    tokens, computed, flops = (
        _total([record[key] for record in rows])
        for rows, key in ((contexts, "tokens"), (own, "computed_tokens"), (own, "flops"))
    )
    stored = _total([record["bytes"] for record in own])
    return {
        "bytes": stored / len(contexts),
        "bytes_share": stored / _total([record["reused_bytes"] for record in contexts]),
        "tokens_avoided": (tokens - computed) / len(contexts),
        "tokens_avoided_share": 1 - computed / tokens,
        "recomputed_share": computed / _total([record["reused_tokens"] for record in contexts]),
        "flops": flops / len(contexts),
        "flops_share": flops / _total([record["flops"] for record in full]),
    }


def _total(values: Sequence[float | int]) -> float:
    return math.fsum(values)


def _split(samples: Sequence[Record], by: Callable[[Record], Any]) -> dict[str, list[Record]]:
    found: dict[Any, list[Record]] = {}
    for sample in samples:
        found.setdefault(by(sample), []).append(sample)
    return {str(key): found[key] for key in sorted(found)}


def _by(samples: Sequence[Record], name: str, by: Callable[[Record], Any]) -> dict[str, Record]:
    return {key: _cell(own, name) for key, own in _split(samples, by).items()}


def _cell(samples: Sequence[Record], name: str) -> Record:
    """Accuracy with its standard error, and mean KL. One context alone has no error to tell: then it is None."""
    right = [float(_said(sample, name) == sample["answer"]) for sample in samples]
    mean, error = mean_and_error(right, [sample["context"] for sample in samples])
    return {
        "accuracy": round(mean, 6),
        "error": None if math.isnan(error) else round(error, 6),
        "kl": round(_total([_kl(sample, name) for sample in samples]) / len(samples), 6),
        "samples": len(samples),
    }


def _said(sample: Record, name: str) -> str:
    return sample["methods"][name]["said"].strip().lower()


def _kl(sample: Record, name: str) -> float:
    return sample["methods"][name]["kl"]


def _flipped(sample: Record) -> bool:
    return _said(sample, "blind") != _said(sample, "full")


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


def _eta(kl: Sequence[float], baseline: Sequence[float]) -> float | None:
    """η; None where the baseline loses nothing."""
    return 1 - _total(kl) / _total(baseline) if _total(baseline) else None


def _means(rows: Sequence[Any]) -> Any:
    return [] if not rows else np.mean(np.asarray(rows, np.float64), axis=0).round(6).tolist()
