"""Scores of a run, from its lines alone: by method, and within it by hops, condition, length and depth."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eval.run.folder import Record
from eval.run.metrics import mean_and_error
from eval.tasks import InvalidTaskError, Question, Task
from eval.tasks.base import checked_scores

DEPTHS = (0.25, 0.5, 0.75)
"""Where the quarters of a window end."""


def score(task: Task, methods: Sequence[str], contexts: Sequence[Record], samples: Sequence[Record]) -> Record:
    """Everything that is reported but times.

    Scores by hops are over the samples that are marked as learned. KL, η and flips are over those of them that are of
    several hops; where there are none, over all that are marked as learned.

    Args:
        task: what the samples are of; it scores the answers.
        methods: names, ``full`` and ``blind`` among them.
        contexts: the contexts' lines.
        samples: the samples' lines.

    Raises:
        InvalidTaskError: the task gives scores that cannot be averaged.
        ValueError: a sample lacks a method's answer.
    """
    if not samples:
        raise ValueError("the run has no samples, so there is nothing to score; run kamera eval with more contexts")
    scored = with_scores(task, methods, samples)
    learned = [sample for sample in scored if sample["learned"]]
    several = [sample for sample in learned if sample["hops"] > 1]
    compared = several or learned
    return {
        "measures": list(scored[0]["scores"][methods[0]]),
        "contexts": len(contexts),
        "samples": len(samples),
        "flips": sum(map(_flipped, compared)),
        "several_hops": len(several),
        "compared": len(compared),
        "methods": {name: _method(name, contexts, scored, learned, compared) for name in methods},
        "absorbed": {
            name: _means([record["absorbed"][name] for record in contexts]) for name in ("components", "tokens")
        },
    }


def with_scores(task: Task, methods: Sequence[str], samples: Sequence[Record]) -> list[Record]:
    """The samples, each with its scores by method under ``scores``; the lines stay as they are."""
    names = None
    scored = []
    for sample in samples:
        if missing := [name for name in methods if name not in sample["methods"]]:
            raise ValueError(
                f"sample {sample['id']} has no answer of {', '.join(missing)}: its line was changed; run kamera eval "
                "again into an empty folder"
            )
        question = Question.from_record(sample)
        own = {}
        for name in methods:
            answer = sample["methods"][name]
            if "next_token" not in sample:
                own[name] = checked_scores(task, question, answer["said"], names)
            else:
                right = float(answer["token"] == sample["next_token"])
                own[name] = {"accuracy": right, "so far": right, "nll": answer["nll"]}
                if "among" in sample:
                    own[name]["choice"] = float(answer["chosen"] == sample["next_token"])
                if names is not None and names != list(own[name]):
                    raise InvalidTaskError(
                        f"the task {task.name} has questions whose next token is known, scored by "
                        f"{', '.join(own[name])}, and others scored by {', '.join(names)}; every question needs the "
                        "same scores"
                    )
            names = names or list(own[name])
        scored.append({**sample, "scores": own})
    _score_so_far(scored)
    return scored


def _score_so_far(scored: Sequence[Record]) -> None:
    """Lower ``so far`` to 0 where a token before in the same known text was not the most likely one."""
    known = [sample for sample in scored if "follows" in sample]
    right: dict[tuple[Any, ...], float] = {}
    for sample in sorted(known, key=lambda sample: sample["follows"]):
        for name, own in sample["scores"].items():
            text = (sample["context"], sample["follows"][0], name)
            right[text] = own["so far"] = min(right.get(text, 1.0), own["accuracy"])


def _method(
    name: str,
    contexts: Sequence[Record],
    samples: Sequence[Record],
    learned: Sequence[Record],
    compared: Sequence[Record],
) -> Record:
    flipped = [sample for sample in compared if _flipped(sample)]
    kl = [_kl(sample, name) for sample in compared]
    return {
        "hops": _by(learned, name, lambda sample: sample["hops"]),
        "seeds": _by(compared, name, lambda sample: sample["seed"]),
        "conditions": {
            condition: _by(own, name, lambda sample: sample["hops"])
            for condition, own in _split(samples, lambda sample: sample["condition"]).items()
        },
        "lengths": {
            length: _by(own, name, lambda sample: quarter(sample["depth"]))
            for length, own in _split(compared, lambda sample: sample["chunks"]).items()
        },
        "distances": _by(compared, name, lambda sample: sample.get("distance", "")),
        "eta": _eta(kl, [_kl(sample, "blind") for sample in compared]),
        "flips": sum(_answer(sample, name) != _answer(sample, "full") for sample in compared),
        "recovered": _share([_answer(sample, name) == _answer(sample, "full") for sample in flipped]),
        "cost": _cost(name, contexts),
        "kv_error": _means([record["methods"][name]["kv_error"] for record in contexts]),
    }


def quarter(depth: float) -> str:
    """Which quarter of the window a depth lies in, as text; the last quarter has its end too."""
    place = sum(depth >= end for end in DEPTHS)
    bounds = (0, *DEPTHS, 1)
    return f"{bounds[place]:g} – {bounds[place + 1]:g}"


def _cost(name: str, contexts: Sequence[Record]) -> Record:
    """Means over contexts; shares are of what stands behind the first chunk, and of full prefill.

    ``total_share`` is of all that is stored, the chunks' KV too, of that KV in 16 bits a number. ``model_bytes``, where
    there are some, is stored once for the model, and in no share.
    """
    own, full = ([record["methods"][method] for record in contexts] for method in (name, "full"))
    tokens, computed, flops = (
        _total([record[key] for record in rows])
        for rows, key in ((contexts, "tokens"), (own, "computed_tokens"), (own, "flops"))
    )
    stored = _total([record["bytes"] for record in own])
    totals = {}
    if all("kv_bytes" in record for record in contexts):  # not in runs of earlier versions
        chunks = [mine.get("kept_bytes", record["kv_bytes"]) for mine, record in zip(own, contexts, strict=True)]
        whole = _total([record["kv_bytes_16_bits"] for record in contexts])
        totals = {"total_share": (_total(chunks) + stored) / whole, "codec": any("kept_bytes" in each for each in own)}
    return {
        **totals,
        **({"model_bytes": own[0]["model_bytes"]} if "model_bytes" in own[0] else {}),
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
    groups: dict[Any, list[Record]] = {}
    for sample in samples:
        groups.setdefault(by(sample), []).append(sample)
    return {str(key): groups[key] for key in sorted(groups, key=lambda key: (isinstance(key, str), key))}


def _by(samples: Sequence[Record], name: str, by: Callable[[Record], Any]) -> dict[str, Record]:
    return {key: _cell(own, name) for key, own in _split(samples, by).items()}


def _cell(samples: Sequence[Record], name: str) -> Record:
    """Mean scores with the main one's standard error, and mean KL.

    One context alone has no standard error: it is None. With several scores ``errors`` has each of theirs.
    """
    clusters = [sample["context"] for sample in samples]
    means = {}
    errors = {}
    for measure in samples[0]["scores"][name]:
        mean, error = mean_and_error([sample["scores"][name][measure] for sample in samples], clusters)
        means[measure] = round(mean, 6)
        errors[measure] = None if math.isnan(error) else round(error, 6)
    return {
        **means,
        "error": next(iter(errors.values())),
        **({"errors": errors} if len(errors) > 1 else {}),
        "kl": round(_total([_kl(sample, name) for sample in samples]) / len(samples), 6),
        "samples": len(samples),
    }


def _answer(sample: Record, name: str) -> str | int:
    """What is compared to see whether two answers are the same."""
    answer = sample["methods"][name]
    return answer["token"] if "token" in answer else answer["said"].strip().lower()


def _kl(sample: Record, name: str) -> float:
    return sample["methods"][name]["kl"]


def _flipped(sample: Record) -> bool:
    return _answer(sample, "blind") != _answer(sample, "full")


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


def _eta(kl: Sequence[float], baseline: Sequence[float]) -> float | None:
    """η; None where the baseline loses nothing."""
    return 1 - _total(kl) / _total(baseline) if _total(baseline) else None


def _means(rows: Sequence[Any]) -> Any:
    return [] if not rows else np.mean(np.asarray(rows, np.float64), axis=0).round(6).tolist()
