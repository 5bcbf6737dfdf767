"""What a patch costs and what its bytes keep: forming against a forward, and choices of where the bytes go.

`make bench-patch` writes docs/results/patch.json, docs/figures/patch.png and docs/patches.md; a part that is not
measured anew keeps what was measured before. `--only text` measures choices of bytes on a language model.
"""

import argparse
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import patch_text
from benchmarks.placements import CHOICES, RANKS, SHARES, curves
from eval.commands import bench as forming
from eval.commands.main import ATTENTIONS, EMBEDDED
from eval.report import style
from models import load

SEEDS = (110_000_000, 110_000_001, 110_000_002)
"""Far from every seed of training, the demo and the other measurements."""

UNEVEN = (0, 16, 96, 64, 32, 32, 16, 0)
EVEN = (32,) * 8
"""Ranks of a mean of 32 over 8 layers."""

STYLES = {
    "uniform": ("#222222", "o"),
    "uniform, int8": ("#999999", "s"),
    "global energy": (style.BLUE, "o"),
    "global energy, int8": (style.GREEN, "s"),
    "deep half": (style.VERMILION, "v"),
    "weighted": (style.PURPLE, "^"),
    "weighted, global energy": (style.ORANGE, "D"),
}
"""A colour and a marker for each choice of components."""


CAPTION = (
    "Two-hop accuracy (above) and η (below) against the bytes of the patches, by which components are kept. Bars are "
    "standard errors over the seeds; η below −0.3 is not shown."
)
"""Of the figure."""


def averaged(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the mean over seeds, and each seed's own beside it."""
    rows = []
    for each in zip(*(result["rows"] for result in found), strict=True):
        means = {name: float(np.mean([row[name] for row in each])) for name in ("bytes", "accuracy", "eta")}
        seeds = {f"{name}_seeds": [row[name] for row in each] for name in ("accuracy", "eta")}
        rows.append({name: each[0][name] for name in ("choice", "rank", "of_uniform")} | means | seeds)
    return rows


def applied(runs: int) -> dict[str, Any]:
    """Milliseconds to apply patches of one mean rank to a chunk of 1024 tokens: alike in all layers, and not."""
    vlm = forming.RandomDecoder()
    return forming.apply_ranks(vlm, 1024, {"even": EVEN, "uneven": UNEVEN}, runs) | {
        "even_ranks": EVEN,
        "uneven_ranks": UNEVEN,
    }


PAGE = """# Patches: what they cost, and where their bytes go

`make bench-patch` measures this again. jax {jax}.

## Forming

{forming}

{text}## Where the bytes go on the embedded models

Two-hop accuracy and η of the demo's pages on the embedded models, {episodes} episodes of each
seed, {seeds}. KV and factors are f32, bytes are shares of the patched pages' KV.

{curves}

{figure}

*uniform*: the same rank in every layer. *global energy*: the components of most energy, whatever their layer.
*deep half*: the deep half of the layers alone. *weighted*: K and V weighted by what attention does with them, second
moments of the queries and the output projection (`benchmarks/weights.py`). *int8*: factors in 8 bits, with a scale for
each component; against bf16 factors it halves the bytes, and not, as here, quarters them.

{verdict}

So the library has global energy and int8; weights and a choice of layers did not help, and are in the benchmark only.
On these models the deep half of the layers alone gives back next to nothing: what multi-hop answers depend on lies in
the shallow half, where the KV changes most ([claims](claims.md)).
"""


FORMING = """{device}; a decoder of random weights, 8 layers of width 1024, f32, {features} features a token. The chunk
stands behind another of its length. Medians of {runs} runs in turns, milliseconds.

{table}

*of forward*: forming against the forward of the chunk on its window that it needs. A patch has *paid* after
form ÷ (re-prefill − apply) reuses; a chunk is encoded once, with a patch or without. The factorisation is a randomised
subspace iteration; the tests require its residual to be within 1 % of the least possible.

Patches whose ranks differ per layer ({uneven_ranks}) are applied in {uneven_ms:.1f} ms, of their mean rank
({even_ranks}) in {even_ms:.1f} ms."""

DEFAULT_NOT_TIMED = """

The default size, which has no bound of 32 components a layer any more, is not timed yet: of long chunks with many
features it takes several times as long to form as rank 32."""

NOT_TIMED = """Not timed yet: the machine was not idle. `make bench-patch ARGS="--only form"` fills this in."""


def page(result: dict[str, Any]) -> str:
    """The measurements as a page of the documentation."""
    models = result["models"]
    return PAGE.format(
        jax=result["versions"]["jax"],
        text=patch_text.section(result["text"]) + "\n\n" if "text" in result else "",
        forming=_forming(result) if {"form", "apply"} <= result.keys() else NOT_TIMED,
        episodes=min(found["episodes"] for found in models.values()),
        seeds=" and ".join(f"{len(found['seeds'])} seeds (`{name}`)" for name, found in models.items()),
        curves="\n\n".join(_curve_table(name, found) for name, found in models.items()),
        verdict=_verdict(models),
        figure=style.figure_block("Two-hop accuracy and η against the bytes of a patch", "figures/patch.png", CAPTION),
    )


def _forming(result: dict[str, Any]) -> str:
    times = result["apply"]
    missing = "" if any(each["rank"] is None for each in result["form"]) else DEFAULT_NOT_TIMED
    timed = FORMING.format(
        **{name: result["form"][0][name] for name in ("device", "features", "runs")},
        table=_forming_table(result["form"]),
        even_ms=times["even_ms"],
        uneven_ms=times["uneven_ms"],
        even_ranks=_ranks(times["even_ranks"]),
        uneven_ranks=_ranks(times["uneven_ranks"]),
    )
    return timed + missing


def _ranks(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks)) if len(set(ranks)) > 1 else f"{ranks[0]} everywhere"


def _forming_table(results: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| patch | tokens | encode | forward | form | of forward | apply | re-prefill | paid after | bytes, of KV |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        size = f"rank {result['rank']}" if result["rank"] else "default"
        lines += [
            f"| {size} | {row['tokens']} | {row['encode_ms']:.1f} | {row['forward_ms']:.1f} | {row['form_ms']:.1f} | "
            f"{row['form_of_forward']:.2f} | {row['apply_ms']:.1f} | {row['reprefill_ms']:.1f} | "
            f"{row['break_even']:.2f} | {row['patch_share']:.1%} |"
            for row in result["rows"]
        ]
    return "\n".join(lines)


def _curve_table(name: str, found: dict[str, Any]) -> str:
    ranks = " | ".join(f"bytes of rank {rank}" for rank in RANKS)
    lines = [f"| `{name}`: accuracy, η | of the bytes | {ranks} |", "|---|---|" + "---|" * len(RANKS)]
    for choice in CHOICES:
        rows = [row for row in found["rows"] if row["choice"] == choice]
        for share in sorted({row["of_uniform"] for row in rows}, reverse=True):
            cells = [f"{row['accuracy']:.3f}, {row['eta']:.3f}" for row in rows if row["of_uniform"] == share]
            lines.append(f"| {choice} | {share:.0%} | " + " | ".join(cells) + " |")
    lines += ["", f"Full prefill: {found['full']:.3f}; blind reuse: {found['blind']:.3f}."]
    return "\n".join(lines)


def reached(rows: Sequence[dict[str, Any]], choice: str, share: float) -> list[bool]:
    """Whether, at ``share`` of its bytes, a choice is as accurate as each uniform patch, and closes as much KL."""
    by_key = {(row["choice"], row["rank"], row["of_uniform"]): row for row in rows}
    pairs = [(by_key[choice, rank, share], by_key["uniform", rank, 1.0]) for rank in RANKS]
    return [ours["accuracy"] >= plain["accuracy"] and ours["eta"] >= plain["eta"] for ours, plain in pairs]


def _verdict(models: dict[str, Any]) -> str:
    lines = ["| at least the uniform patch's accuracy and η at | " + " | ".join(f"`{name}`" for name in models) + " |"]
    lines.append("|---|" + "---|" * len(models))
    for choice, (_, _, int8) in CHOICES.items():
        if choice == "uniform":
            continue
        for share in SHARES[int8]:
            cells = []
            for found in models.values():
                held = reached(found["rows"], choice, share)
                cells.append(f"{sum(held)} of {len(held)}")
            lines.append(f"| {share:.0%} of its bytes: {choice} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(models: dict[str, Any], path: Path) -> None:
    """Accuracy and η against bytes, a column for every model; bars are standard errors over the seeds."""
    values = {"accuracy": "two-hop accuracy", "eta": "η"}
    with style.drawing(path, 5.4) as figure:
        panels = style.panels(figure, list(models), rows=len(values))
        for column, found in zip(zip(*panels, strict=True), models.values(), strict=True):
            for axes, value in zip(column, values, strict=True):
                for choice, (colour, marker) in STYLES.items():
                    rows = [row for row in found["rows"] if row["choice"] == choice]
                    rows.sort(key=lambda row: row["bytes"])
                    axes.errorbar(
                        [100 * row["bytes"] for row in rows],
                        [row[value] for row in rows],
                        [standard_error(row[f"{value}_seeds"]) for row in rows],
                        fmt=f"{marker}-",
                        ms=4,
                        elinewidth=0.8,
                        color=colour,
                        label=choice,
                    )
            column[0].axhline(found["full"], color=style.GREY, linestyle="--", label="full prefill")
            column[0].set_ylim(0, 1.05)
            column[1].set(xlabel="bytes, % of the KV", ylim=(-0.3, 1.05))
        for axes, title in zip((row[0] for row in panels), values.values(), strict=True):
            axes.set_ylabel(title)
        style.legend(figure, panels[0], columns=4)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean over seeds; 0 where there is one."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", choices=("form", "curves", "text", "draw"), help="measure one part, or none, and draw"
    )
    parser.add_argument("--attention", choices=ATTENTIONS, nargs="+", default=list(ATTENTIONS))
    parser.add_argument("--episodes", type=int, default=12, help="of each seed")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(forming.LENGTHS), help="of the chunks")
    parser.add_argument("--model", default="smollm2-135m", help="the language model of --only text")
    parser.add_argument(
        "--passages", type=int, nargs="+", default=list(patch_text.LENGTHS), help="tokens of its passages"
    )
    parser.add_argument("--texts", type=int, default=16, help="how many of each")
    parser.add_argument("--json", type=Path, default=Path("docs/results/patch.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/patches.md"))
    parser.add_argument("--plot", type=Path, default=Path("docs/figures/patch.png"))
    arguments = parser.parse_args()
    result = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.exists() else {}

    def keep() -> None:
        result["versions"] = {"jax": version("jax")}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    if arguments.only in (None, "form"):
        vlm = forming.RandomDecoder()
        result["apply"] = applied(arguments.runs)
        result["form"] = []
        for rank in (forming.RANK, None):
            result["form"].append(forming.measure(vlm, lengths=arguments.tokens, rank=rank, runs=arguments.runs))
            keep()
    if arguments.only in (None, "curves"):
        for attention in arguments.attention:
            vlm = load(EMBEDDED + attention)
            found = [curves(vlm, seed, arguments.episodes) for seed in SEEDS]
            result.setdefault("models", {})[EMBEDDED + attention] = {
                "episodes": arguments.episodes,
                "seeds": SEEDS,
                "full": float(np.mean([each["full"] for each in found])),
                "blind": float(np.mean([each["blind"] for each in found])),
                "rows": averaged(found),
            }
            keep()
    if arguments.only == "text":
        vlm = load(arguments.model, dtype="float32")
        for found in patch_text.measure(vlm, arguments.passages, arguments.texts):
            result["text"] = patch_text.about(vlm, arguments.model) | {"lengths": found}
            keep()
    if "text" in result:
        patch_text.plot(result["text"], arguments.plot.with_name("patch-text.png"))
    if "models" in result:
        plot(result["models"], arguments.plot)
        arguments.page.write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
