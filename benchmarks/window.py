"""What a window's operations keep: orders with orbit patches, slides, recalls, and the recall cascade.

python -m benchmarks.window --json docs/results/window.json --page docs/window.md --plot docs/figures/window.png
"""

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import kamera_jax as kj
from benchmarks import report
from eval.commands.demo import PAGES, Scene, answer_token, mean_bytes, orbit_factors, sample_story, slid, stage
from eval.commands.main import ATTENTIONS, EMBEDDED
from eval.report import style
from eval.run import metrics
from eval.tiny import pages
from eval.tiny.episodes import Recipe, draw_page, passage, question_text
from eval.tiny.glyphs import COLOUR_NAMES, NAMES
from kamera_jax.batch.windows import BatchRunner, fit
from kamera_jax.guard.planning import Action, Recall, execute, plan
from kamera_jax.guard.policy import ReusePolicy
from kamera_jax.inference.generate import query
from models import load

SEED = 70_000_000
"""Far from every seed of training, the demo, the assessment and the guard."""

RANK = 12
CAPACITY = 1024
OLD = 5
NEW = 4
"""Chunks that came before the eviction (a page, and passages) and passages that came after it; none is referred to."""

FACTS = 6
"""Facts of a page of the cascade; those of a passage are fewer."""


def orders(runner: BatchRunner, scene: Scene) -> list[dict[str, Any]]:
    """Every order of three and of four pages in which antecedents precede, and the others apart."""
    rows = []
    tails, answers = scene.two_hop
    for count in (3, 4):
        chunks = [scene.chunks[name] for name in PAGES[:count]]
        orbit = orbit_factors(runner, chunks, RANK)
        for order in itertools.permutations(range(count)):
            placed = [chunks[i] for i in order]
            prefilled = runner.prefill(placed)
            exact = [
                fit(kv, chunk.kv, chunk.length, rank=RANK)
                for kv, chunk in zip(prefilled.conditioned, placed, strict=True)
            ]
            full, blind, with_orbit, with_exact = (
                runner.ask(windows, tails)
                for windows in (
                    prefilled,
                    runner.reuse(placed, [None] * count),
                    runner.reuse(placed, [orbit[i] for i in order]),
                    runner.reuse(placed, exact),
                )
            )
            rows.append(
                {
                    "pages": [PAGES[i] for i in order],
                    "antecedents_first": order.index(2) > max(order.index(0), order.index(1)),
                    "orbit_eta": metrics.eta(full, with_orbit, blind),
                    "exact_eta": metrics.eta(full, with_exact, blind),
                    "orbit": metrics.accuracy(with_orbit, answers),
                    "exact": metrics.accuracy(with_exact, answers),
                    "full": metrics.accuracy(full, answers),
                    "blind": metrics.accuracy(blind, answers),
                }
            )
    return rows


def recalled(runner: BatchRunner, scene: Scene) -> dict[str, Any]:
    """The page with the references leaves, and comes back to its old place with the patch it had."""
    window = [scene.chunks[name] for name in PAGES]
    tails, answers = scene.two_hop
    prefilled = runner.prefill(window)
    patches = [
        None if i == 0 else fit(kv, chunk.kv, chunk.length, rank=RANK)
        for i, (kv, chunk) in enumerate(zip(prefilled.conditioned, window, strict=True))
    ]
    without = runner.reuse([window[0], window[1], window[3]], [None, patches[1], patches[3]])
    back = runner.reuse(window, patches)
    full, gone, here, blind = (
        runner.ask(windows, tails) for windows in (prefilled, without, back, runner.reuse(window, [None] * 4))
    )
    patch_bytes = mean_bytes([None, None, patches[2], None], window)
    return {
        "eta": metrics.eta(full, here, gone),
        "eta_blind": metrics.eta(full, blind, gone),
        "full": metrics.accuracy(full, answers),
        "patch": metrics.accuracy(here, answers),
        "without": metrics.accuracy(gone, answers),
        "patch_share": patch_bytes / (window[2].length * runner.vlm.spec.token_bytes),
    }


def cascade(vlm: Any, episodes: int, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    """A and B leave a window of twelve chunks and come back; a page that came meanwhile refers to both.

    B refers to A, and C to what B refers to: a chain of three. What the plan reaches and costs is held against full
    prefill, and against recalling both without a plan, with C in the window and without.
    """
    policy = ReusePolicy(calibration=vlm.calibration)
    sums: dict[str, list[float]] = {}
    for index in range(episodes):
        for with_c in (True, False):
            for name, value in _cascade(vlm, np.random.default_rng((SEED, index)), with_c, policy).items():
                sums.setdefault(name, []).append(value)
        progress("cascade", index + 1, episodes)
    means = {name: float(np.mean(values)) for name, values in sums.items()}
    means |= {f"{name}_with_c": float(np.mean(values[0::2])) for name, values in sums.items()}
    means |= {f"{name}_without_c": float(np.mean(values[1::2])) for name, values in sums.items()}
    return {"windows": 2 * episodes, "worst_flops": float(max(sums["flops"])), **means}


def _cascade(vlm: Any, rng: np.random.Generator, with_c: bool, policy: ReusePolicy) -> dict[str, float]:
    items, probes = _chain(rng)
    chunks = {name: kj.encode(vlm, item) for name, item in items.items()}
    sketch = policy.calibration.sketch
    window = kj.Window.empty(vlm, CAPACITY)
    patches: dict[str, kj.Patch] = {}

    def arrive(name: str) -> None:
        nonlocal window
        patches[name] = kj.form_patch(vlm, chunks[name], context=window, rank=RANK, sketch=sketch)
        window = kj.append(window, chunks[name], patches[name])

    early = ["A", "B", *(["C"] if with_c else []), *(name for name in chunks if name.startswith("old"))]
    for name in early:
        arrive(name)
    window = kj.slide(window, 2)
    late = [*(name for name in chunks if name.startswith("new")), "E"]
    for name in late:
        arrive(name)
    back = [Recall(chunks[name], patches[name], at=place) for place, name in enumerate("AB")]
    done = execute(vlm, plan(vlm, window, back, policy=policy))
    unplanned = window
    for change in back:
        unplanned = kj.recall(unplanned, change.chunk, change.patch, at=change.at)
    full = kj.prefill(vlm, [chunks[name] for name in (*early, *late)], capacity=CAPACITY)
    result = {
        "chunks": len(done.window.entries),
        "flops": done.flops / done.prefill_flops,
        "forwards": done.count(Action.FORM) + done.count(Action.PREFILL),
    }
    for name, asked in (("full", full), ("plan", done.window), ("unplanned", unplanned), ("evicted", window)):
        hits = [int(query(vlm, asked, question).argmax()) == answer_token(vlm, colour) for question, colour in probes]
        result[name] = float(np.mean(hits))
    return result


def _chain(rng: np.random.Generator) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """Pages A (facts), B (references to A, and facts), C (references to B's), E (references to both), and others."""
    glyphs = [int(glyph) for glyph in rng.permutation(len(NAMES))]
    truth: dict[int, int] = {}

    def facts(count: int) -> dict[int, tuple[str, int]]:
        drawn = {glyphs.pop(): int(rng.integers(len(COLOUR_NAMES))) for _ in range(count)}
        truth.update(drawn)
        return {glyph: ("fact", colour) for glyph, colour in drawn.items()}

    def references(count: int, targets: Sequence[int]) -> dict[int, tuple[str, int]]:
        drawn = {glyphs.pop(): int(rng.choice(list(targets))) for _ in range(count)}
        truth.update({glyph: truth[target] for glyph, target in drawn.items()})
        return {glyph: ("reference", target) for glyph, target in drawn.items()}

    first = facts(FACTS)
    to_first = references(4, list(first))
    shown = facts(4)
    to_both = references(6, [*first, *shown])
    third = references(4, list(to_first))
    entries = {"A": first, "B": to_first | shown, "C": third, "E": to_both}
    items: dict[str, Any] = {name: pages.render(draw_page(rng, Recipe(), shown)) for name, shown in entries.items()}
    items["old0"] = pages.render(draw_page(rng, Recipe(), facts(2)))
    for name in (*(f"old{i}" for i in range(1, OLD)), *(f"new{i}" for i in range(NEW))):
        items[name] = passage(facts(2))
    probes = [(question_text(glyph), truth[glyph]) for glyph in (*to_first, *to_both)]
    return items, probes


def measure(name: str, episodes: int, windows: int) -> dict[str, Any]:
    """Everything on one embedded model."""
    vlm = load(name)
    runner = BatchRunner(vlm)

    def progress(what: str, done: int, whole: int) -> None:
        if done == whole:
            print(f"{name}: {what} {done}/{whole}", flush=True)

    stories = [sample_story(np.random.default_rng((SEED, i))) for i in range(episodes)]
    scene = stage(vlm, runner, stories, progress)
    return {
        "model": name,
        "episodes": episodes,
        "rank": RANK,
        "orders": orders(runner, scene),
        "slide": slid(runner, scene),
        "recall": recalled(runner, scene),
        "cascade": cascade(vlm, windows, progress),
    }


PAGE = """# What a window keeps

`make bench-window` measures this again, on the embedded models: {episodes} episodes of pages, rank-{rank} patches, f32
on CPU. η is over two-hop questions; its reference is full prefill of the same window, its baseline blind reuse, if no
other is named.

## Orders

Orbit patches are formed once, behind the other pages in one order, and used in every order; exact patches are formed
anew for each. Each cell has the lowest and the highest of the orders. η compares with full prefill, and so it is worth
what full prefill is: where a dependant stands before its antecedents full prefill cannot bind them and an orbit patch
can. Its η is then far below zero, though its answers are right. So accuracy stands beside η.

Antecedents first:

{antecedents_first}

A dependant first:

{dependant_first}

## What stands first

A chunk that an operation places first, with nothing but the preamble before it, stands without its patch if that was
formed behind other chunks: its canonical KV is then what full prefill gives, and the patch would add what the chunk
read elsewhere. On SmolLM2, three passages of text in all orders, patches on all chunks cost .0317 nats, and .0155 with
the first one bare; a chunk recalled to the front .051 with its patch, and .025 without. So it is in `append` to an
empty window, `reorder`, `recall(at=0)` and `replace(0)`, and in a plan of these. The window's entry then has no patch,
and `reorder` does not bring it back: keep it, and give it again with `replace` or `recall`, or go on from the window as
it was, which stays as it is.

What comes to stand first because all before it were evicted keeps its patch: it did read them, as in the history
reference. So does a session that is saved and restored, and what `append(as_it_stood=True)` puts back as it stood. A
patch that was formed behind no chunk is left too, and one whose names a JAX transformation dropped.

## Slide, recall, and the recall cascade

{moves}

*Slide*: KL of the survivors, in nats, to the history reference. *Recall*: a page comes back to its old place with the
patch it had; η's baseline is the window without it.

{cascade}

*The recall cascade*: of {chunks:.0f} and more chunks, A and B leave; a page that refers to both arrives; A and B come
back to their old places. The questions are those that only they answer.
`planning.plan` finds what has gone stale by the guard below, with C (which refers to what B refers to) in the
window and without.

## The guard

{guard}

A drift is a change of what stands before a patched page: order, deletion, insertion, edit, distance, or two of them.
It is harmful if reusing the stored patch, of at most {patch_share:.0%} of the page's bytes, costs more than {max_kl}
nats, the mean over the page's multi-hop questions.
The guard compares what a few of the page's tokens read in a layer or two, then and now; no forward is run.
Calibrated on other seeds. Intervals are Clopper and Pearson's.{older}{unsafe}

{figure}

What the guard cannot detect: a change that reaches the page only through what its neighbours' own KV should have become
and has not; one that other layers, heads or tokens than the sketch's would read; and drifts unlike those it was
calibrated on. It holds on average over a page's questions; a single question can cost more.
"""


CAPTION = (
    "Each point is a drift: what the guard saw without a forward, against what reusing the stored patch cost. Above "
    "the dashed budget it is harmful; left of the line the guard accepts. On a panel without a line it accepts nothing."
)

OLDER = """

Measured before sketches kept what the patched page reads, by which staleness is 0 where nothing changed, and before
the prior took part in calibrations: {models}. Since then the calibrations of `kamera-tiny-gqa` and `kamera-tiny-mla`
were measured anew; that of `kamera-tiny-mha` is the old one, without shares of attention. `make guard` measures all
of it."""

UNSAFE = """

On `{model}` no change is safe by this calibration: harmful drifts lie among the smallest changes, because the model is
itself unsure of what stands behind so many pages. A policy then reuses a patch behind unchanged antecedents alone."""


def page(results: Sequence[dict[str, Any]], guards: Sequence[dict[str, Any]]) -> str:
    """The measurements as a page of the documentation."""
    moves = [
        "| model | slide: KL | recall: η | accuracy | full prefill | without the page | patch, of the KV |",
        "|---|---|---|---|---|---|---|",
    ]
    table = [
        "| model | accuracy: full | plan | recalled without a plan | evicted | FLOPs of full prefill, mean (worst) | "
        "forwards |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        found = result["cascade"]
        back = result["recall"]
        moves.append(
            f"| `{result['model']}` | {result['slide']['kl_history']:.1e} | {back['eta']:.3f} | {back['patch']:.3f} | "
            f"{back['full']:.3f} | {back['without']:.3f} | {back['patch_share']:.1%} |"
        )
        table.append(
            f"| `{result['model']}` | {found['full']:.3f} | {found['plan']:.3f} | {found['unplanned']:.3f} | "
            f"{found['evicted']:.3f} | {found['flops']:.1%} ({found['worst_flops']:.1%}) | {found['forwards']:.2f} |"
        )
    return PAGE.format(
        episodes=results[0]["episodes"],
        rank=results[0]["rank"],
        antecedents_first=_orders(results, antecedents_first=True),
        dependant_first=_orders(results, antecedents_first=False),
        moves="\n".join(moves),
        cascade="\n".join(table),
        figure=style.figure_block("KL of reused patches against what the guard saw", "figures/guard.png", CAPTION),
        chunks=results[0]["cascade"]["chunks_without_c"],
        guard=report.table(guards),
        max_kl=guards[0]["max_kl"],
        patch_share=guards[0]["patch_share"],
        older=_older(guards),
        unsafe="".join(UNSAFE.format(model=guard["model"]) for guard in guards if guard["threshold"] < 0),
    )


def _orders(results: Sequence[dict[str, Any]], *, antecedents_first: bool) -> str:
    """The table of orders of one kind."""
    lines = [
        "| model | pages, orders | η: orbit | exact | accuracy: orbit | exact | full prefill |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        own = [row for row in result["orders"] if row["antecedents_first"] is antecedents_first]
        for count in (3, 4):
            rows = [row for row in own if len(row["pages"]) == count]
            found = ("orbit_eta", "exact_eta", "orbit", "exact", "full")
            cells = " | ".join(_range([row[kind] for row in rows]) for kind in found)
            lines.append(f"| `{result['model']}` | {count}, {len(rows)} | {cells} |")
    return "\n".join(lines)


def _older(guards: Sequence[dict[str, Any]]) -> str:
    """What is said of results that were measured with the guard as it was before."""
    models = [f"`{guard['model']}`" for guard in guards if "estimate" not in guard["points"]]
    return OLDER.format(models=", ".join(models)) if models else ""


def _range(values: Sequence[float]) -> str:
    """The lowest and the highest, as precisely as they can be compared: far below 0 they are not."""
    low, high = (f"{value:.2f}" if value > -1 else f"{value:.1f}" for value in (min(values), max(values)))
    return (low if low == high else f"{low} to {high}").replace("-", "−")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attention", choices=ATTENTIONS, nargs="+", default=list(ATTENTIONS))
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--windows", type=int, default=30, help="episodes of the cascade, each with C and without")
    parser.add_argument("--json", type=Path, default=Path("docs/results/window.json"))
    parser.add_argument("--guards", type=Path, default=Path("docs/results"), help="where the guard's results are")
    parser.add_argument("--page", type=Path, default=Path("docs/window.md"))
    arguments = parser.parse_args()
    known = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.exists() else {}
    for attention in arguments.attention:
        known[attention] = measure(EMBEDDED + attention, arguments.episodes, arguments.windows)
        arguments.json.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    paths = [arguments.guards / f"guard-{attention}.json" for attention in ATTENTIONS]
    guards = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    measured = [known[attention] for attention in ATTENTIONS if attention in known]
    arguments.page.write_text(page(measured, guards), encoding="utf-8")


if __name__ == "__main__":
    main()
