"""The tables and the figure of `kamera demo` on a language model."""

from pathlib import Path
from textwrap import fill
from typing import Any

from rich.console import Console

from eval.report.console import kibibytes, show
from eval.report.figures import STYLES, family

WORDS = {"full": "full prefill", "blind": "blind reuse", "cacheblend": "CacheBlend", "patch": "patch"}
"""How families of methods are called in the figure."""


def label(row: dict[str, Any]) -> str:
    """A method in words, as ``patch of 1`` or ``CacheBlend 15 %``."""
    kind, _, number = row["name"].partition(":")
    if kind == "patch" and number.isdigit():
        return f"patch of {number}"
    if kind == "cacheblend":
        return f"CacheBlend {100 * float(number):g} %"
    return WORDS[kind] if kind in WORDS else str(row["name"])


def print_text(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the tables of `kamera demo --model`, within 80 columns."""
    console = console or Console(emoji=False, highlight=False)
    first, second = result["tokens"]
    ahead = result["next_tokens"]
    what = "page, a picture of" if result.get("pages") else "passage of"
    story = (
        f"A is a {what} {first} tokens of real text. B is a copy of its first half, which stops ({second} tokens). "
        "How does B go on? Run together (full), B's tokens meet their originals in A, and the model copies on. Encoded "
        "apart and put behind A (blind), they never met. A patch, formed once, adds what B would have taken from A."
    )
    console.print(fill(story, 79) + "\n")
    show(
        console,
        f"{result['model']['name']}: {result['cases']} quotations, {ahead} next tokens of each",
        ("method", "right", f"all {ahead}", "KL", "η", "stored", "of B", "run", "ms"),
        [
            [
                row["name"],
                f"{row['accuracy']:.2f}",
                f"{row['so_far'][-1]:.2f}",
                f"{row['kl']:.4f}",
                f"{row['eta']:.3f}",
                kibibytes(row["bytes"]),
                f"{row['bytes_share']:.1%}" if row["bytes"] else "–",
                f"{row['computed_tokens']:.0f}",
                f"{row['milliseconds']:.0f}",
            ]
            for row in result["methods"]
        ],
        f"right: of the next tokens, given those before. all {ahead}: quotations that greedy\n"
        "decoding writes to the end. KL: to full, nats. η: share of blind's KL closed.\n"
        "patch: of the default size, no forward; patch:M: M components a layer.\n"
        "stored: beside B's KV, and of its bytes.\n"
        "run: tokens run to fill a window. ms: to fill it; encoding A and B, and forming\n"
        "the patch, which happens once, are not in it.",
    )
    _print_example(result["example"], console)
    keys, values = (result["change"][name] for name in ("keys", "values"))
    show(
        console,
        "How much A changes the KV of B, by depth of the layer",
        ("layer", *(str(layer) for layer in _layers(len(keys)))),
        [
            [name, *(f"{own[layer]:.0%}" for layer in _layers(len(keys)))]
            for name, own in (("keys", keys), ("values", values))
        ],
        "Of the KV's own size; of keys without their mean. Blind reuse lacks this.",
    )


def _layers(count: int) -> list[int]:
    """At most seven layers from the first to the last."""
    shown = min(count, 7)
    return [round(i * (count - 1) / max(shown - 1, 1)) for i in range(shown)]


def _print_example(example: dict[str, Any], console: Console) -> None:
    """One quotation in words, as far as each method writes it."""
    console.print("The quotation in which full prefill and blind reuse differ most", style="bold")
    end = _one_line((example["copy"] + example["given"])[-200:])[-62:]
    console.print(f"{'B ends':<15} …{end}", markup=False)
    console.print(f"{'the passage':<15} {_one_line(example['next'])[:61]}", markup=False)
    for name in ("full", "blind", "cacheblend:0.15", "patch", "patch:1"):
        if name in example["written"]:
            written = example["written"][name]
            wrong = "" if written == example["next"] else " ✗"
            console.print(f"{name:<15} {_one_line(written)[:61]}{wrong}", markup=False)
    console.print("Each as far as the first token that is wrong (✗).\n", style="dim")


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "(white space)"


def plot_text(result: dict[str, Any], path: Path) -> None:
    """Draw how quotations go on, KL against bytes, and the change by depth; PNG or SVG, by the file's ending."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {"font.size": 10, "axes.titlesize": 11.5, "axes.labelcolor": "#333333"}
    with rc_context(settings):
        figure = Figure(figsize=(13, 4.7), layout="constrained")
        panels = figure.subplots(1, 3, width_ratios=(1.1, 1, 1))
        for axes in panels:
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="#e6e6e6", linewidth=0.7)
            axes.set_axisbelow(True)
        _draw_quotation(panels[0], result)
        _draw_bytes(panels[1], result)
        _draw_depth(panels[2], result)
        first, second = result["tokens"]
        what = "page" if result.get("pages") else "passage"
        figure.suptitle(
            f"{result['model']['name']}, {result['cases']} {what}s of real text. A: a {what} of {first} tokens. B: a "
            f"copy of its first half ({second} tokens), encoded apart from A.",
            x=0.01,
            ha="left",
            fontsize=11.5,
            fontweight="bold",
        )
        engine: Any = figure.get_layout_engine()
        engine.set(wspace=0.06, w_pad=0.08)
        figure.savefig(path, dpi=150)


def _spread(heights: list[float], gap: float) -> list[float]:
    """Heights of labels, in the same order, at least ``gap`` apart."""
    order = sorted(range(len(heights)), key=lambda i: (heights[i], -i))  # of equals the first is the highest
    moved = list(heights)
    for below, above in zip(order, order[1:], strict=False):
        moved[above] = max(moved[above], moved[below] + gap)
    return moved


def _draw_quotation(axes: Any, result: dict[str, Any]) -> None:
    """Share of quotations that are right so far, by the number of next tokens."""
    names = ("full", "blind", "cacheblend:0.15", "patch:1", "patch")
    rows = [row for row in result["methods"] if row["name"] in names]
    count = result["next_tokens"]
    for row in rows:
        colour, marker = STYLES[family(row["name"])]
        dashed = row["name"] in ("patch", "cacheblend:0.15")  # where two lines are one, both are seen
        axes.plot(
            range(1, count + 1),
            [100 * value for value in row["so_far"]],
            "--" if dashed else "-",
            color=colour,
            linewidth=2,
            marker=marker,
            markevery=(count - 1, count),
            markersize=6,
            markerfacecolor="white" if dashed else colour,
            clip_on=False,
            zorder=3,
        )
    heights = _spread([100 * row["so_far"][-1] for row in rows], 6.0)
    for row, height in zip(rows, heights, strict=True):
        colour = STYLES[family(row["name"])][0]
        axes.annotate(label(row), (count + 0.5, height), color=colour, va="center", fontsize=9, annotation_clip=False)
    axes.set(xlim=(1, count * 1.38), ylim=(0, 104), xlabel="next tokens", ylabel="quotations right so far, %")
    axes.set_xticks([1, *range(4, count + 1, 4)])
    axes.spines["bottom"].set_bounds(1, count)
    axes.set_title("The quotation, written on greedily", loc="left")


def _draw_bytes(axes: Any, result: dict[str, Any]) -> None:
    """KL to full prefill against stored bytes; methods without any stand at 0."""
    from matplotlib.ticker import LogLocator, NullLocator

    rows = [row for row in result["methods"] if row["name"] != "full"]
    patches = sorted((row for row in rows if family(row["name"]) == "patch"), key=lambda row: row["bytes_share"])
    blind = next(row for row in rows if row["name"] == "blind")
    colour = STYLES["patch"][0]
    line = [blind, *patches]
    axes.plot([100 * row["bytes_share"] for row in line], [row["kl"] for row in line], color=colour, linewidth=1.5)
    widest = max(100 * row["bytes_share"] for row in rows) or 1.0
    for row in rows:
        colour, marker = STYLES[family(row["name"])]
        axes.plot(100 * row["bytes_share"], row["kl"], marker, color=colour, markersize=8, clip_on=False, zorder=3)
        kind = family(row["name"])
        below = kind == "cacheblend"
        text = label(row)
        text += f": {row['computed_tokens']:.0f} tokens run" if row["computed_tokens"] else ""
        offset = (8, -13) if below else (8, 5)
        axes.annotate(
            text, (100 * row["bytes_share"], row["kl"]), offset, textcoords="offset points", color=colour, fontsize=9
        )
    axes.set(xlim=(-0.03 * widest, 1.25 * widest), yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("stored beside B's KV, % of its bytes")
    axes.set_ylabel("KL to full prefill, nats")
    axes.set_title("Distance to full prefill, and its price", loc="left")


def _draw_depth(axes: Any, result: dict[str, Any]) -> None:
    """The relative change of keys and values by layer."""
    change = result["change"]
    layers = range(len(change["keys"]))
    for name, colour in (("values", "#8c2d04"), ("keys", "#cc79a7")):
        own = [100 * value for value in change[name]]
        axes.plot(layers, own, color=colour, linewidth=2)
        axes.annotate(
            name, (len(own) - 1, own[-1]), (5, 0), textcoords="offset points", color=colour, va="center", fontsize=9
        )
    axes.set(xlabel="layer", xlim=(0, 1.15 * (len(change["keys"]) - 1)), ylim=(0, None))
    axes.set_ylabel("change of B's KV by A, % of its size")
    axes.set_title("Where A changes the KV of B", loc="left")


SHOWN = ("full", "blind", "cacheblend:0.15", "patch", "patch:1")
"""The methods that the README has room for; `kamera demo` and its JSON show all."""


def markdown_text(result: dict[str, Any]) -> str:
    """The result as a Markdown table, for the README, without times, which differ from machine to machine."""
    ahead = result["next_tokens"]
    lines = [
        f"| `{result['model']['name']}` | next tokens right | all {ahead} right | KL | η | stored, of B's KV | run |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in [row for row in result["methods"] if row["name"] in SHOWN]:
        stored = f"{kibibytes(row['bytes'])}, {row['bytes_share']:.1%}" if row["bytes"] else "–"
        scores = f"{row['accuracy']:.3f} | {row['so_far'][-1]:.3f} | {row['kl']:.4f} | {row['eta']:.3f}"
        lines.append(f"| {row['name']} | {scores} | {stored} | {row['computed_tokens']:.0f} |")
    first, second = result["tokens"]
    lines += [
        "",
        f"{result['cases']} quotations from Python's own documentation, A of {first} and B of {second} tokens; f32, "
        f"jax {result['versions']['jax']} on CPU. `make results-text` measures this again.",
    ]
    return "\n".join(lines)
