"""Chunks that keep a share of their rows beside each other: `python -m benchmarks.selection measure | page`.

`make results-selection` runs both.
"""

from typing import Any

from benchmarks import section
from benchmarks.compression import ATTENTIONS, measured

LIMIT = 10
"""Contexts of each of three seeds: four fifths of six questions of each are of two hops."""

SHARES = (0.5, 0.25)
PATCH = "patch:10%"
SELECTS = ("kvzip", "keydiff", "leverage", "knorm", "expected", "tri", "lookm")
MERGES = ("average", "pivot", "weighted", "values")
RIVALS = (PATCH, "select:0.25", f"{PATCH}+select:0.25", "prophet:0.25", "shift:8", "prefix-cache", "encoder-cache")


def methods() -> tuple[str, ...]:
    """All that is compared: selections by their shares, merges and bits at the smaller, rivals."""
    names = [f"{select}:{share}+{PATCH}" for share in SHARES for select in SELECTS]
    names += [f"kvzip:{SHARES[-1]}+merge:{merge}+{PATCH}" for merge in MERGES]
    names += [f"expected:{share}:measured+{PATCH}" for share in SHARES]
    return *RIVALS, *names, f"kvzip:{SHARES[-1]}+kivi:4+{PATCH}"


def table(result: dict[str, Any]) -> str:
    """The tables of the page's section."""
    lines = []
    for model in result["models"]:
        two = model["methods"][0]["samples"]
        lines += [
            f"`{model['model']}`, {model['contexts']} contexts, {two} questions of two hops:",
            "",
            "| method | one hop | two hops | KL | all that is stored, of KV in 16 bits | tokens run again |",
            "|---|---|---|---|---|---|",
        ]
        for row in model["methods"]:
            again = f"{row['computed_share']:.0%}" if row["computed_share"] else "–"
            lines.append(
                f"| `{row['method']}` | {row['one_hop']} | {row['two_hops']} | {row['kl']:.4f} | "
                f"{row['total_share']:.1%} | {again} |"
            )
        lines.append("")
    return "\n".join(lines).rstrip()


def main() -> None:
    """Measure, or write the page's section."""

    def figures(options: Any) -> dict[str, Any]:
        return {"models": [measured(attention, options.limit, methods()) for attention in options.only]}

    def add(measure: Any) -> None:
        measure.add_argument("--only", choices=ATTENTIONS, nargs="*", default=ATTENTIONS)

    section.command(__doc__, "rows", "results-selection", LIMIT, figures, table, add)


if __name__ == "__main__":
    main()
