"""Tables in the terminal, and figures of `kamera demo` and `kamera bench`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eval.report import style

COLOURS = {"full": "#222222", "blind": "#d55e00", "patch": "#0072b2", "one_hop": "#009e73"}
"""Colours of Okabe and Ito, which colour-blind readers can distinguish."""


PLAIN_ROWS = 500
"""Tables of more rows are written without colours."""


def show(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    note: str = "",
    *,
    right: bool = True,
) -> None:
    """Print a table.

    Args:
        console: where to.
        title: printed above it.
        columns: the columns' titles.
        rows: texts, one for each column.
        note: printed below it.
        right: whether all columns but the first are aligned to the right.
    """
    if len(rows) > PLAIN_ROWS:
        console.print(title, style="bold")
        _show_plain(console, [columns, *rows], note, right=right)
        return
    table = Table(box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if right and i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(title, style="bold")
    console.print(table)
    if note:
        console.print(note, style="dim")
    console.print()


def _show_plain(console: Console, rows: Sequence[Sequence[str]], note: str, *, right: bool) -> None:
    """The table as it is, one line a row: laying out takes rich seconds for some thousand rows."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            text.rjust(width) if right and i else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        console.file.write("  ".join(cells).rstrip() + "\n")
    console.file.write(f"{note}\n\n" if note else "\n")


def counted(count: int, one: str, several: str = "") -> str:
    """A number of things, in words: ``1 chunk``, ``2 chunks``."""
    return f"{count} {one if count == 1 else several or one + 's'}"


def kibibytes(count: int | float) -> str:
    """A number of bytes in KiB."""
    return f"{count / 1024:.1f} KiB" if count else "–"


def print_demo(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the tables of `kamera demo`, within 80 columns."""
    console = console or Console(emoji=False, highlight=False)
    show(
        console,
        f"Three pages ({kibibytes(result['methods'][0]['kv_bytes'])} of KV), {result['episodes']} held-out episodes",
        ("method", "one hop", "two hops", "KL", "η", "patches", "of KV", "ms"),
        [
            [
                row["name"],
                f"{row['one_hop']:.3f}",
                f"{row['two_hop']:.3f}",
                f"{row['kl']:.4f}",
                f"{row['eta']:.3f}",
                kibibytes(row["patch_bytes"]),
                f"{row['patch_share']:.0%}" if row["patch_bytes"] else "–",
                f"{row['milliseconds']:.2f}",
            ]
            for row in result["methods"]
        ],
        "full: pages prefilled together. blind: encoded alone, rotated into place.\n"
        "patch: blind plus a patch of the default size, no forward; patch:M of rank M.\n"
        "KL and η (against full, over blind): two-hop questions. of KV: of the two\n"
        "patched pages. ms: per window.",
    )
    show(
        console,
        f"Reorder ({result['operation_episodes']} episodes): one orbit patch per page, used in every order",
        ("order", "two hops", "full prefill", "η"),
        [
            [
                " → ".join(row["order"]) + ("" if row["antecedents_first"] else " *"),
                f"{row['two_hop']:.3f}",
                f"{row['two_hop_full']:.3f}",
                f"{row['eta']:.3f}" if row["antecedents_first"] else "–",
            ]
            for row in result["reorder"]
        ],
        "* references stand before what they refer to: full prefill cannot bind them,\n"
        "and is nothing that reuse should come near",
    )
    slide = result["slide"]
    recall = result["recall"]
    show(
        console,
        "Slide: the first page leaves; questions on what only it showed",
        ("survivors", "history reference", "present reference", "KL to history"),
        [
            [
                f"{slide['survivors']:.3f}",
                f"{slide['history']:.3f}",
                f"{slide['present']:.3f}",
                f"{slide['kl_history']:.4f}",
            ]
        ],
        "history: full prefill, the page hidden from the question. present: prefill\nof what is left.",
    )
    show(
        console,
        "Recall: the third page comes back behind a new one, with its old patch",
        ("blind", "patch", "full prefill"),
        [[f"{recall['blind']:.3f}", f"{recall['patch']:.3f}", f"{recall['full']:.3f}"]],
    )


def print_form(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the table of `kamera bench form`, within 80 columns."""
    console = console or Console(emoji=False, highlight=False)
    size = f"rank {result['rank']}" if result["rank"] else "default size"
    show(
        console,
        f"Forming a patch, {size}: {result['layers']} layers, {result['dtype']}, {result['device']}; milliseconds",
        ("tokens", "encode", "form", "of forward", "apply", "re-prefill", "pays after", "of KV"),
        [
            [
                str(row["tokens"]),
                *(f"{row[name]:.1f}" for name in ("encode_ms", "form_ms")),
                f"{row['form_of_forward']:.2f}",
                *(f"{row[name]:.1f}" for name in ("apply_ms", "reprefill_ms")),
                f"{row['break_even']:.2f}",
                f"{row['patch_share']:.1%}",
            ]
            for row in result["rows"]
        ],
        "of forward: form against the forward it needs. pays after: reuses, form /\n"
        "(re-prefill - apply); encode is paid once, patch or none.",
    )


def print_relocate(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the table of `kamera bench relocate`, within 80 columns."""
    show(
        console or Console(emoji=False, highlight=False),
        f"Writing a chunk into a window, rotated and patched: {result['dtype']}, {result['device']}",
        ("shape", "layers", "tokens", "rank", "MB", "ms", "GB/s", "a copy, GB/s"),
        [
            [
                row["shape"],
                *(str(row[name]) for name in ("layers", "tokens", "rank")),
                *(f"{row['ideal'] / 1e6:.1f}", f"{row['ms']:.2f}", f"{row['gb_s']:.1f}", f"{row['copy_gb_s']:.1f}"),
            ]
            for row in result["rows"]
        ],
        "MB: what must be read and written, each byte once; GB/s: by that. The copy\nmoves as much, in turns with it.",
    )


def print_attention(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the table of `kamera bench attention`, within 80 columns."""
    show(
        console or Console(emoji=False, highlight=False),
        f"Attention in one layer: {result['dtype']}, {result['device']}",
        ("shape", "what", "queries", "keys", "ms", "GB/s", "GFLOP/s"),
        [
            [
                row["shape"],
                row["kind"],
                *(str(row[name]) for name in ("queries", "keys")),
                *(f"{row['ms']:.2f}", f"{row['gb_s']:.1f}", f"{row['gflop_s']:.1f}"),
            ]
            for row in result["rows"]
        ],
        "GB/s: of bytes that must be read and written; GFLOP/s: of scores and\n"
        "weighted sums, without what patches add.",
    )


def print_look_back(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the table of `kamera bench e2e`, within 80 columns."""
    show(
        console or Console(emoji=False, highlight=False),
        f"To the first answer token: {result['layers']} layers, {result['dtype']}, {result['device']}; milliseconds",
        ("tokens", "behind", "reuse", "re-prefill", "times faster", "of KV"),
        [
            [
                *(str(row[name]) for name in ("tokens", "before")),
                *(f"{row[name]:.1f}" for name in ("reuse_ms", "reprefill_ms")),
                f"{row['ratio']:.2f}",
                f"{row['patch_share']:.1%}",
            ]
            for row in result["rows"]
        ],
        "A chunk comes back: written with its patch, or run again; then the question is\nrun.",
    )


def plot_form(result: dict[str, Any], path: Path) -> None:
    """Draw milliseconds of every step against tokens; the file's ending says whether as PNG or SVG."""
    tokens = [row["tokens"] for row in result["rows"]]
    with style.drawing(path, 4) as figure:
        axes = style.panels(figure, ["Forming a patch costs one forward; applying it next to nothing"])[0][0]
        for step, name, colour, marker in (
            ("reprefill", "re-prefill", COLOURS["full"], "s"),
            ("form", "form", COLOURS["blind"], "^"),
            ("encode", "encode", COLOURS["one_hop"], "v"),
            ("apply", "apply", COLOURS["patch"], "o"),
        ):
            times = [row[f"{step}_ms"] for row in result["rows"]]
            axes.plot(tokens, times, f"{marker}-", color=colour, label=name)
        axes.set(xscale="log", yscale="log", xlabel="tokens of the chunk", ylabel="ms")
        axes.set_xticks(tokens, [str(count) for count in tokens])
        axes.minorticks_off()
        style.legend(figure, [axes])


def plot_demo(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw accuracy against patch bytes, one panel for each result, with full prefill and chance as lines."""
    with style.drawing(path, 2.7 if len(results) > 1 else 3.6) as figure:
        panels = style.panels(figure, [result["model"]["name"] for result in results])[0]
        for axes, result in zip(panels, results, strict=True):
            _plot_panel(axes, result)
        panels[0].set_ylabel("accuracy")
        panels[len(panels) // 2].set_xlabel("bytes of patches, % of the patched pages' KV")
        style.legend(figure, panels, columns=3)
        figure.draw_without_rendering()
        for axes, result in zip(panels, results, strict=True):
            rows = [row for row in result["methods"] if row["name"].startswith("patch:")]
            style.label(axes, [(100 * row["patch_share"], row["two_hop"], row["name"]) for row in rows[:2]])


def _plot_panel(axes: Any, result: dict[str, Any]) -> None:
    by_name = {row["name"]: row for row in result["methods"]}
    blind = by_name["blind"]
    patches = [blind, *(row for row in result["methods"] if row["name"].startswith("patch:"))]
    shares = [100 * row["patch_share"] for row in patches]
    axes.axhline(by_name["full"]["two_hop"], color=style.BLACK, linestyle="--", label="full prefill, two hops")
    axes.axhline(1 / 8, color=style.GREY, linestyle=":", label="chance")
    axes.plot(shares, [row["one_hop"] for row in patches], "s-", color=style.GREEN, label="one hop, by rank")
    axes.plot(shares, [row["two_hop"] for row in patches], "o-", color=style.BLUE, label="two hops, by rank")
    axes.plot(0, blind["two_hop"], "X", color=style.VERMILION, markersize=8, zorder=3, label="blind reuse, two hops")
    if "patch" in by_name:
        default = by_name["patch"]
        axes.plot(
            100 * default["patch_share"],
            default["two_hop"],
            "*",
            color=style.ORANGE,
            markeredgecolor=style.BLACK,
            markersize=12,
            zorder=4,
            label="patch of the default size, two hops",
        )
    axes.set_ylim(0, 1.08)
    style.whole_numbers(axes.xaxis, 6)
