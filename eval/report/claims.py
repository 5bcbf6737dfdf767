"""The claims of the Kamera paper (arXiv 2606.23581), each with what was measured on a model, and whether it holds."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.tasks.binding_findings import share_for
from eval.tasks.comparison import SLACK, Scores, main_score, patches, recomputing
from eval.tasks.finding import judged
from eval.tasks.text import findings as text_findings
from eval.tasks.text.continuation import OTHER
from eval.tasks.text.moving import ORBIT, RECALLS

FEW = 0.1
"""The share of a chunk's KV bytes within which a patch is called small here."""

QUARTER = 0.25
"""The share of bytes, of tokens, and of full prefill's FLOPs, at which methods are compared."""

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Claim:
    """A claim and what was measured.

    What has a figure that is none was not measured, and what is compared with nothing has no verdict; see
    `eval.tasks.Finding`.

    Attributes:
        statement: what is claimed, with the bound that it is judged by here.
        paper: the paper's figure.
        measured: the figure here; `NOT_MEASURED` where there is none.
        holds: whether it holds; None where it was not measured, or cannot be compared.
    """

    statement: str
    paper: str
    measured: str = NOT_MEASURED
    holds: bool | None = None

    def __post_init__(self) -> None:
        """Take back a verdict that says nothing."""
        measured, holds = judged(self.measured, self.holds, NOT_MEASURED)
        object.__setattr__(self, "measured", measured)
        object.__setattr__(self, "holds", holds)


@dataclass(frozen=True)
class Evidence:
    """What was measured on one model.

    Attributes:
        model: its name.
        runs: scores of finished runs of `kamera eval`, by task, without settings.
        demo: the result of `kamera demo`; None where it was not run.
    """

    model: str
    runs: Mapping[str, Scores] = field(default_factory=dict)
    demo: Mapping[str, Any] | None = None

    @property
    def main(self) -> Scores | None:
        """The run that methods are compared on: natural text, or pages."""
        return self.runs.get("continuation") or self.runs.get("binding")

    @property
    def text_demo(self) -> Mapping[str, Any] | None:
        """The demo, where it is that of a language model."""
        return self.demo if self.demo and self.demo.get("kind") == "text" else None

    @property
    def pages_demo(self) -> Mapping[str, Any] | None:
        """The demo, where it is that of pages."""
        return self.demo if self.demo and "reorder" in self.demo else None


def claims(evidence: Evidence) -> list[Claim]:
    """Every claim of the paper that is known here, also those that nothing was measured of."""
    return [claim for group in GROUPS for claim in group(evidence)]


def _eta(scores: Scores, name: str) -> float:
    value = scores["methods"][name]["eta"]
    return float("nan") if value is None else value


def _closest(scores: Scores, names: Sequence[str]) -> str | None:
    return max(names, key=lambda name: _eta(scores, name), default=None)


def _change(evidence: Evidence) -> list[Claim]:
    """How the change of a chunk's KV lies in layers, features and tokens."""
    grows = ("the change grows with depth: larger in the deep half of the layers", "0.08 shallow, 0.49 deep")
    rank = (
        "it is low-rank over features: 90 % of its energy in ≤ a quarter of the components",
        "about 120 components have 90 %",
    )
    diffuse = ("it is diffuse over tokens: 90 % of its energy takes ≥ half of the tokens", "diffuse")
    scores = evidence.main
    demo = evidence.text_demo
    error = scores["methods"]["blind"]["kv_error"] if scores else demo["change"]["values"] if demo else None
    found = [Claim(*grows)]
    if error:
        half = len(error) // 2
        changed = [value for value in error[:half] if value > 1e-4]
        shallow = sum(changed) / max(len(changed), 1)
        deep = sum(error[half:]) / len(error[half:])
        what = "" if scores else " (values)"
        measured = f"{shallow:.2f} in the shallow half, {deep:.2f} in the deep{what}; {error[-1]:.2f} in the last layer"
        found = [Claim(*grows, measured, deep > shallow if max(shallow, deep) > 1e-4 else None)]
    if not scores:
        return [*found, Claim(*rank), Claim(*diffuse)]
    ninety, fifty = (
        {name: share_for(scores, name, energy) for name in ("components", "tokens")} for energy in (0.9, 0.5)
    )
    for claim, name in ((rank, "components"), (diffuse, "tokens")):
        measured = f"50 % in {fifty[name]:.0%}, 90 % in {ninety[name]:.0%} of the {name}"
        holds = ninety[name] <= QUARTER if name == "components" else ninety[name] >= 0.5
        found.append(Claim(*claim, measured, holds))
    return found


def _halves(evidence: Evidence) -> list[Claim]:
    """Which layers the loss comes from."""
    claim = ("the deep half of the layers explains the loss: η ≥ 0.7, the shallow half ≤ 0.35", "97 %; 27 %")
    scores = evidence.main
    if not scores or not {"patch:deep", "patch:shallow"} <= scores["methods"].keys():
        return [Claim(*claim)]
    deep, shallow = (_eta(scores, name) for name in ("patch:deep", "patch:shallow"))
    return [Claim(*claim, f"deep η {deep:.3f}, shallow η {shallow:.3f}", deep >= 0.7 and shallow <= 0.35)]


def _tokens(evidence: Evidence) -> list[Claim]:
    """What an oracle and methods that recompute tokens recover."""
    oracle = ("an oracle of tokens needs about half of them: η ≤ 0.8 with fewer", "about half")
    scores = evidence.main
    found = [Claim(*oracle)]
    if scores:
        shares = {
            name: float(name.partition(":")[2])
            for name in scores["methods"]
            if re.fullmatch(r"oracle-tokens:[\d.]+", name)
        }
        fewer = {name: share for name, share in shares.items() if share < 0.5}
        if fewer:
            largest = max(fewer, key=fewer.__getitem__)
            measured = ", ".join(f"η {_eta(scores, name):.2f} with {share:.0%}" for name, share in shares.items())
            found = [Claim(*oracle, measured, _eta(scores, largest) <= 0.8)]
    named = {"cacheblend": "CacheBlend", "epic": "EPIC", "mpic": "MPIC", "vlcache": "VLCache"}
    for kind, title in named.items():
        found.append(_recomputed(scores, f"{title} with ≤ 25 % of the tokens", kind, QUARTER, 1.0))
    found.append(_recomputed(scores, "all of these within 25 % of full prefill's FLOPs", "", 1.0, QUARTER))
    return found


def _recomputed(scores: Scores | None, title: str, kind: str, tokens: float, flops: float) -> Claim:
    """What one kind of recomputation recovers at most, against the best patch within a quarter of the bytes."""
    statement = f"{title}: at most half of the η of a patch of ≤ 25 % of the bytes"
    paper = "KL closed 10–71 % against 98–100 %; about 20 % of flips on average"
    if not scores:
        return Claim(statement, paper)
    names = [
        name
        for name in recomputing(scores, tokens)
        if name.startswith(kind) and scores["methods"][name]["cost"]["flops_share"] <= flops * SLACK
    ]
    best = _closest(scores, names)
    patch = _closest(scores, patches(scores, QUARTER))
    beyond = [name for name in recomputing(scores, 1.0) if kind and name.startswith(kind)]
    if best is None and beyond:
        share = min(scores["methods"][name]["cost"]["recomputed_share"] for name in beyond)
        return Claim(statement, paper, f"not comparable: it runs {share:.0%} of the tokens here")
    if best is None or patch is None:
        return Claim(statement, paper)
    theirs = _eta(scores, best)
    ours = _eta(scores, patch)
    cost = scores["methods"][best]["cost"]
    measured = (
        f"η {theirs:.2f} (`{best}`: {cost['recomputed_share']:.0%} of the tokens, {cost['flops_share']:.0%} of the "
        f"FLOPs) against {ours:.2f} (`{patch}`)"
    )
    return Claim(statement, paper, measured, theirs <= 0.5 * ours if ours > 0 else None)


def _patches(evidence: Evidence) -> list[Claim]:
    """What patches recover, for how many bytes."""
    scores = evidence.main
    found = []
    for share, paper in (
        (FEW, "rank 16, 6 %: 0.72 of 0.74 (blind 0.38)"),
        (QUARTER, "rank 64, 25 %: η 0.85–0.96"),
    ):
        claim = (f"a patch of ≤ {share:.0%} of the bytes recovers most: η ≥ 0.8", paper)
        name = _closest(scores, patches(scores, share)) if scores else None
        if scores is None or name is None:
            found.append(Claim(*claim))
            continue
        own = scores["methods"][name]
        measured = f"η {_eta(scores, name):.2f} (`{name}`, {own['cost']['bytes_share']:.1%} of the bytes)"
        found.append(Claim(*claim, measured, _eta(scores, name) >= 0.8))
    return found


def _answers(evidence: Evidence) -> list[Claim]:
    """Answers that need one chunk, or several."""
    one = ("blind reuse keeps what one chunk alone shows: ≥ 0.97 × full", "0.57 of 0.57 (doc-QA, single hop)")
    several = ("blind reuse loses what a chunk takes from another: ≤ 0.75 × full", "0.38 of 0.74 (MM-NIAH)")
    back = (f"a patch of ≤ {QUARTER:.0%} of the bytes gives it back: ≥ 0.9 × full", "0.72 of 0.74 (rank 16)")
    scores = evidence.runs.get("binding")
    if scores:
        full, blind = (main_score(scores, name, 1) for name in ("full", "blind"))
        found = [Claim(*one, f"{blind:.3f} of {full:.3f} (one hop)", blind >= 0.97 * full)]
        right = {name: main_score(scores, name) for name in scores["methods"]}
        small = patches(scores, QUARTER)
        what = "two hops"
    elif evidence.text_demo or "quotation" in evidence.runs:
        found = [_alone(evidence, one)]
        right, small = _quotation(evidence)
        what = "16 next tokens of quotations, right so far"
    else:
        return [_alone(evidence, one), Claim(*several), Claim(*back)]
    full, blind = (right[name] for name in ("full", "blind"))
    found.append(Claim(*several, f"{blind:.3f} of {full:.3f} ({what})", blind <= 0.75 * full))
    name = max(small, key=right.__getitem__, default=None)
    if name is None:
        return [*found, Claim(*back)]
    if blind >= full:
        return [*found, Claim(*back, "not comparable: blind reuse lost nothing")]
    return [*found, Claim(*back, f"{right[name]:.3f} of {full:.3f} (`{name}`)", right[name] >= 0.9 * full)]


def _alone(evidence: Evidence, claim: tuple[str, str]) -> Claim:
    """What blind reuse keeps of the next tokens of natural text that do not need an earlier chunk."""
    scores = evidence.runs.get("needs-context")
    if not scores or OTHER not in scores["methods"]["full"]["conditions"]:
        return Claim(*claim)
    full, blind = (text_findings.mean(scores, name, "accuracy", OTHER) for name in ("full", "blind"))
    measured = f"{blind:.3f} of {full:.3f} (next tokens of natural text that do not need an earlier passage)"
    return Claim(*claim, measured, blind >= 0.97 * full)


def _quotation(evidence: Evidence) -> tuple[dict[str, float], list[str]]:
    """By method, the share of a quotation's next tokens right with all before them; and patches of a quarter."""
    if scores := evidence.runs.get("quotation"):
        right = {name: text_findings.mean(scores, name, "so far") for name in scores["methods"]}
        return right, patches(scores, QUARTER)
    rows = evidence.text_demo["methods"] if evidence.text_demo else []
    right = {row["name"]: sum(row["so_far"]) / len(row["so_far"]) for row in rows}
    small = [row["name"] for row in rows if row["name"].startswith("patch:") and row["bytes_share"] <= QUARTER]
    return right, small


def _windows(evidence: Evidence) -> list[Claim]:
    """Reorder, slide and recall."""
    return [*_orders(evidence), *_slide(evidence), *_recall(evidence)]


def _orders(evidence: Evidence) -> list[Claim]:
    claim = ("one orbit patch a chunk serves all orders: η ≥ 0.8", "0.92 (own patches 0.94), 3 and 4 chunks")
    if demo := evidence.pages_demo:
        first = [row["eta"] for row in demo["reorder"] if row["antecedents_first"]]
        others = [row for row in demo["reorder"] if not row["antecedents_first"]]
        if not first:
            return [Claim(*claim)]
        measured = f"η ≥ {min(first):.2f} in {len(first)} orders with what is referred to first"
        if others:
            ours, full = (max(row[key] for row in others) for key in ("two_hop", "two_hop_full"))
            measured += (
                f"; in the {len(others)} others full prefill cannot tell (accuracy ≤ {full:.2f}), and the patches of "
                f"the first orders still can ({ours:.2f})"
            )
        return [Claim(*claim, measured, min(first) >= 0.8)]
    scores = evidence.runs.get("orders")
    name = _closest(scores, patches(scores, QUARTER)) if scores else None
    if scores is None or name is None:
        return [Claim(*claim)]
    etas = {}
    for kind in (ORBIT, "patches of this order"):
        for count in (2, 3):
            value = text_findings.eta(scores, name, f"{count} passages, {kind}")
            if value is not None and value == value:
                etas[kind, count] = value
    orbit = [value for (kind, _), value in etas.items() if kind == ORBIT]
    if not orbit:
        return [Claim(*claim)]
    written = ", ".join(f"{value:.2f} ({count} chunks, {kind})" for (kind, count), value in etas.items())
    return [Claim(*claim, f"η {written}; `{name}`", min(orbit) >= 0.8)]


def _slide(evidence: Evidence) -> list[Claim]:
    claim = ("survivors of a slide stay near re-prefill: KL ≤ 0.03", "0.015 (GQA), 0.023 (MLA)")
    if demo := evidence.pages_demo:
        value = demo["slide"]["kl_history"]
        present = demo["slide"]["present"]
        measured = f"KL {value:.1g} to the history reference (the present one is right in {present:.2f})"
        return [Claim(*claim, measured, value <= 0.03)]
    scores = evidence.runs.get("slide")
    name = _closest(scores, patches(scores, QUARTER)) if scores else None
    if scores is None or name is None:
        return [Claim(*claim)]
    ours, blind = (text_findings.mean(scores, each, "kl") for each in (name, "blind"))
    if not blind > 0:
        return [Claim(*claim, "not comparable: blind reuse lost nothing")]
    return [Claim(*claim, f"KL {ours:.4f} to the present reference (`{name}`; blind {blind:.4f})", ours <= 0.03)]


def _recall(evidence: Evidence) -> list[Claim]:
    fresh = ("a recalled chunk with a fresh patch: η ≥ 0.8", "0.87 (GQA), 0.81 (MLA), against the window without it")
    stale = (
        "an old patch goes stale when the antecedents change: it recovers less than a fresh one",
        "stated as a limit",
    )
    if demo := evidence.pages_demo:
        own = demo["recall"]
        measured = f"accuracy {own['patch']:.3f} of {own['full']:.3f} with the old patch, blind {own['blind']:.3f}"
        return [Claim(*fresh), Claim(*stale, measured, own["patch"] < 0.95 * own["full"])]
    scores = evidence.runs.get("recall")
    name = _closest(scores, patches(scores, QUARTER)) if scores else None
    if scores is None or name is None:
        return [Claim(*fresh), Claim(*stale)]
    old, new = (text_findings.eta(scores, name, condition) for condition in RECALLS[:2])
    if old is None or new is None or old != old or new != new:
        return [Claim(*fresh), Claim(*stale)]
    return [
        Claim(*fresh, f"η {new:.2f} against blind reuse, at the end of the window (`{name}`)", new >= 0.8),
        Claim(*stale, f"η {old:.2f} of the old patch, {new:.2f} of the fresh one (`{name}`)", old < new),
    ]


UNMEASURED = (
    ("without a preamble, as KV(B|∅), chunks are patched as well; a sink token alone is not what is lost", "canonical"),
    ("benchmarks of images, video and audio: MM-NIAH, MileBench, Video-MME, EgoSchema, doc-QA", "see the paper"),
    ("time to the first token on long video", "up to 29× less"),
    ("forming a patch pays off after a few reuses on accelerators", "about 9 (H100, MLA)"),
    ("no gap on dense text (MuSiQue)", "none"),
    ("audio: a smaller effect", "n = 40, Qwen2.5-Omni"),
)
"""Claims that no command here measures: what is claimed, and the paper's figure."""


def _unmeasured(evidence: Evidence) -> list[Claim]:
    return [Claim(*each) for each in UNMEASURED]


GROUPS: tuple[Callable[[Evidence], list[Claim]], ...] = (
    _change,
    _halves,
    _tokens,
    _patches,
    _answers,
    _windows,
    _unmeasured,
)
"""The claims in the order of the page."""
