"""Tables in the terminal, and figures of `kamera demo` and `kamera bench`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

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


def plot_form(result: dict[str, Any], path: Path) -> None:
    """Draw milliseconds of every step against tokens; the file's ending says whether as PNG or SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    tokens = [row["tokens"] for row in result["rows"]]
    for step, name, colour in (
        ("reprefill", "re-prefill", COLOURS["full"]),
        ("form", "form", COLOURS["blind"]),
        ("encode", "encode", COLOURS["one_hop"]),
        ("apply", "apply", COLOURS["patch"]),
    ):
        axes.plot(tokens, [row[f"{step}_ms"] for row in result["rows"]], "o-", color=colour, label=name)
    axes.set(xscale="log", yscale="log", xlabel="tokens of the chunk", ylabel="ms")
    axes.set_xticks(tokens, [str(count) for count in tokens])
    axes.legend(frameon=False)
    axes.set_title("Forming a patch costs one forward; applying it next to nothing", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def plot_demo(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw accuracy against patch bytes, one panel for each result, with full prefill and chance as lines."""
    from matplotlib.figure import Figure

    width = 7 if len(results) == 1 else 5 * len(results)
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)
    for axes, result in zip(panels[0], results, strict=True):
        _plot_panel(axes, result)
    panels[0, 0].set_ylabel("accuracy")
    panels[0, -1].legend(loc="lower right", bbox_to_anchor=(1, 0.2), frameon=False)
    figure.suptitle("Blind reuse loses the second hop; a low-rank patch gives it back", x=0.01, ha="left", fontsize=12)
    figure.savefig(path, dpi=150)


def _plot_panel(axes: Any, result: dict[str, Any]) -> None:
    by_name = {row["name"]: row for row in result["methods"]}
    default = by_name.get("patch")
    patches = [by_name["blind"], *(row for row in result["methods"] if row["name"].startswith("patch:"))]
    shares = [100 * row["patch_share"] for row in patches]
    axes.axhline(by_name["full"]["two_hop"], color=COLOURS["full"], linestyle="--", linewidth=1.5)
    axes.text(
        shares[-1], by_name["full"]["two_hop"] + 0.02, "full prefill, two hops", ha="right", color=COLOURS["full"]
    )
    axes.axhline(1 / 8, color="#999999", linestyle=":", linewidth=1.2)
    axes.text(shares[-1], 1 / 8 - 0.05, "chance", ha="right", color="#777777")
    axes.plot(shares, [row["one_hop"] for row in patches], "s-", color=COLOURS["one_hop"], label="one hop")
    axes.plot(shares, [row["two_hop"] for row in patches], "o-", color=COLOURS["patch"], label="two hops")
    axes.plot(shares[0], patches[0]["two_hop"], "o", color=COLOURS["blind"], markersize=9, zorder=3)
    axes.annotate(
        "blind reuse", (shares[0], patches[0]["two_hop"]), (24, 6), textcoords="offset points", color=COLOURS["blind"]
    )
    for share, row in zip(shares[1:], patches[1:], strict=True):
        axes.annotate(
            row["name"],
            (share, row["two_hop"]),
            (6, -14),
            textcoords="offset points",
            fontsize=9,
            color=COLOURS["patch"],
        )
    if default is not None:
        place = (100 * default["patch_share"], default["two_hop"])
        axes.plot(*place, "*", color=COLOURS["patch"], markersize=14, zorder=4)
        axes.annotate(
            "patch, default size", place, (6, -16), textcoords="offset points", fontsize=9, color=COLOURS["patch"]
        )
    axes.set_xlabel("patch bytes, % of the patched pages' KV")
    axes.set_ylim(0, 1.1)
    axes.set_title(result["model"]["name"], loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
