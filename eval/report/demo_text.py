"""The tables and the figure of `kamera demo` on a language model."""

from pathlib import Path
from textwrap import fill
from typing import Any

from rich.console import Console

from eval.report import style
from eval.report.console import kibibytes, show
from eval.report.figures import STYLES, family, styles

WORDS = {"full": "full prefill", "blind": "blind reuse", "cacheblend": "CacheBlend", "patch": "patch, default size"}
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
    with style.drawing(path, 3.0) as figure:
        panels = figure.subplots(1, 3)
        titles = ("Right so far, %", "KL to full prefill, nats", "Change of B's KV, %")
        for place, (axes, title) in enumerate(zip(panels, titles, strict=True)):
            axes.set_title(style.lettered(place, title, len(titles)))
        _draw_quotation(panels[0], result)
        _draw_bytes(panels[1], result)
        _draw_depth(panels[2], result)
        style.legend(figure, panels, columns=4)


def _draw_quotation(axes: Any, result: dict[str, Any]) -> None:
    """Share of quotations that are right so far, by the number of next tokens."""
    rows = [row for row in result["methods"] if row["name"] in SHOWN or family(row["name"]) not in STYLES]
    marks = styles([row["name"] for row in rows])
    count = result["next_tokens"]
    for row in rows:
        colour, marker = marks[family(row["name"])]
        default = row["name"] == "patch"
        dashed = default or row["name"] == "cacheblend:0.15"  # where two lines are one, both are seen
        axes.plot(
            range(1, count + 1),
            [100 * value for value in row["so_far"]],
            "--" if dashed else "-",
            color=style.ORANGE if default else colour,
            marker="*" if default else marker,
            markevery=(count - 1, count),
            label=style.plain(style.shortened(label(row))),
        )
    axes.set(ylim=(0, 104), xlabel="next tokens")
    axes.set_xticks([1, *range(4, count + 1, 4)])


def _draw_bytes(axes: Any, result: dict[str, Any]) -> None:
    """KL to full prefill against stored bytes; methods without any stand at 0."""
    from matplotlib.ticker import LogLocator, NullLocator

    rows = [row for row in result["methods"] if row["name"] != "full"]
    by_rank = [row for row in rows if family(row["name"]) == "patch" and row["name"] != "patch"]
    line = [next(row for row in rows if row["name"] == "blind"), *by_rank]
    axes.plot([100 * row["bytes_share"] for row in line], [row["kl"] for row in line], "-", color=style.BLUE)
    marks = styles([row["name"] for row in rows])
    for row in rows:
        colour, marker = marks[family(row["name"])]
        default = row["name"] == "patch"
        axes.plot(
            100 * row["bytes_share"],
            row["kl"],
            "*" if default else marker,
            color=style.ORANGE if default else colour,
            markersize=11 if default else 6,
            clip_on=False,
            zorder=3,
        )
    axes.set(yscale="log", xlabel="stored, % of B's bytes")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    style.whole_numbers(axes.xaxis, 6)


def _draw_depth(axes: Any, result: dict[str, Any]) -> None:
    """The relative change of keys and values by layer."""
    change = result["change"]
    for name, colour in (("values", "#8c2d04"), ("keys", style.PURPLE)):
        axes.plot([100 * value for value in change[name]], color=colour, label=f"{name} (c)")
    axes.set(xlabel="layer", ylim=(0, None))
    style.whole_numbers(axes.xaxis, 6)


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
