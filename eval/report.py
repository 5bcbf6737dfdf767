"""Results for people: tables in the terminal, and figures."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

COLOURS = {"full": "#222222", "blind": "#d55e00", "patch": "#0072b2", "one_hop": "#009e73"}
"""Okabe–Ito: told apart by colour-blind readers too."""


def _show(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> None:
    table = Table(box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(title, style="bold")
    console.print(table)
    if note:
        console.print(note, style="dim")
    console.print()


def _kibibytes(count: int | float) -> str:
    return f"{count / 1024:.1f} KiB" if count else "–"


def print_demo(result: dict[str, Any], console: Console | None = None) -> None:
    """The demo's tables, within 80 columns."""
    console = console or Console(emoji=False, highlight=False)
    _show(
        console,
        f"Three pages ({_kibibytes(result['methods'][0]['kv_bytes'])} of KV), {result['episodes']} held-out episodes",
        ("method", "one hop", "two hops", "KL", "η", "patches", "of KV", "ms"),
        [
            [
                row["name"],
                f"{row['one_hop']:.3f}",
                f"{row['two_hop']:.3f}",
                f"{row['kl']:.4f}",
                f"{row['eta']:.3f}",
                _kibibytes(row["patch_bytes"]),
                f"{row['patch_share']:.0%}" if row["patch_bytes"] else "–",
                f"{row['milliseconds']:.2f}",
            ]
            for row in result["methods"]
        ],
        "full: pages prefilled together. blind: encoded alone, rotated into place.\n"
        "patch:M: blind plus a rank-M patch, no forward. KL and η (against full, over\n"
        "blind): two-hop questions. of KV: of the two patched pages. ms: per window.",
    )
    _show(
        console,
        f"Reorder ({result['operation_episodes']} episodes): one orbit patch per page, used in every order",
        ("order", "two hops", "full prefill", "η"),
        [
            [
                " → ".join(row["order"]) + ("" if row["antecedents_first"] else " *"),
                f"{row['two_hop']:.3f}",
                f"{row['two_hop_full']:.3f}",
                f"{row['eta']:.3f}",
            ]
            for row in result["reorder"]
        ],
        "* references stand before what they refer to: full prefill cannot bind them",
    )
    slide, recall = result["slide"], result["recall"]
    _show(
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
    _show(
        console,
        "Recall: the third page comes back behind a new one, with its old patch",
        ("blind", "patch", "full prefill"),
        [[f"{recall['blind']:.3f}", f"{recall['patch']:.3f}", f"{recall['full']:.3f}"]],
    )


def plot_demo(result: dict[str, Any], path: Path) -> None:
    """Accuracy against patch bytes, with full and blind as lines; PNG or SVG by the file's ending."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    by_name = {row["name"]: row for row in result["methods"]}
    patches = [by_name["blind"], *(row for row in result["methods"] if row["name"].startswith("patch"))]
    shares = [100 * row["patch_share"] for row in patches]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
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
    axes.set_xlabel("patch bytes, % of the patched pages' KV")
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1.1)
    axes.set_title("Blind reuse loses the second hop; a low-rank patch gives it back", loc="left", fontsize=12)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.2), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def markdown_demo(result: dict[str, Any]) -> str:
    """The demo's result as Markdown tables, for the README; without times, which are this machine's."""
    lines = [
        "| | one hop | two hops | KL | η | bytes of patches, of the patched pages' KV |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["methods"]:
        share = f"{_kibibytes(row['patch_bytes'])}, {row['patch_share']:.1%}" if row["patch_bytes"] else "–"
        figures = f"{row['one_hop']:.3f} | {row['two_hop']:.3f} | {row['kl']:.4f} | {row['eta']:.3f}"
        lines.append(f"| {row['name']} | {figures} | {share} |")
    first = [row for row in result["reorder"] if row["antecedents_first"]]
    last = [row for row in result["reorder"] if not row["antecedents_first"]]

    def span(rows: Sequence[dict[str, Any]], field: str) -> str:
        values = [row[field] for row in rows]
        return f"{min(values):.3f} – {max(values):.3f}"

    slide, recall = result["slide"], result["recall"]
    lines += ["", "| window operation, two hops | reuse | full prefill |", "|---|---|---|"]
    for name, rows in (("antecedents first", first), ("a dependant before its antecedents", last)):
        lines.append(
            f"| reorder, {len(rows)} orders: {name} | {span(rows, 'two_hop')} | {span(rows, 'two_hop_full')} |"
        )
    references = f"history {slide['history']:.3f}, present {slide['present']:.3f}"
    lines.append(f"| slide: survivors | {slide['survivors']:.3f} | {references} |")
    lines.append(
        f"| recall with its old patch (blind: {recall['blind']:.3f}) | {recall['patch']:.3f} | {recall['full']:.3f} |"
    )
    episodes, moved, version = result["episodes"], result["operation_episodes"], result["versions"]["jax"]
    lines += [
        "",
        f"{episodes} held-out episodes, {moved} for the window operations; f32, jax {version} on CPU; chance is 0.125. "
        "`make results` draws this anew.",
    ]
    return "\n".join(lines)


MARKS = ("<!-- demo: written by `make results` -->", "<!-- /demo -->")


def put_demo(text: str, result: dict[str, Any]) -> str:
    """A page with the demo's tables between its marks.

    Raises:
        ValueError: the page lacks the marks.
    """
    before, start, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (start and end):
        raise ValueError(f"the page has no place for the demo's tables; expected the lines {MARKS[0]} and {MARKS[1]}")
    return f"{before}{start}\n{markdown_demo(result)}\n{end}{after}"


def main() -> None:
    """``python -m eval.report RESULT.json PAGE.md``: put a demo's tables into a page."""
    result, page = (Path(argument) for argument in sys.argv[1:])
    page.write_text(put_demo(page.read_text(encoding="utf-8"), json.loads(result.read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
