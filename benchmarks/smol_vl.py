"""What kamera-smol-vl reads of pages, and what reuse does to it: `python -m benchmarks.smol_vl`.

Give it the folders of runs of `seen-quotation` and `seen-page-break`; `make results-smol-vl` makes them.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.report.readme import put
from eval.smol_vl.words import FACES, HELD_OUT, SIZES
from eval.tasks.text import corpus
from eval.tasks.text.seen import PageReader
from models import load
from models.media.typeset import Face
from models.ports.smol_vl.pages import page_of

MODEL = "kamera-smol-vl"
TOKENS = 96
PAGES = 6
"""Pages of each typeface and size."""


def read(vlm: Any, ids: Sequence[int], face: Face) -> np.ndarray:
    """The tokens whose embeddings are nearest to those of a page of these."""
    segment = vlm.prepare(page_of(vlm, ids, face=face))
    seen = np.asarray(segment.inputs["media"], np.float32)[: int(segment.length)]
    table = np.asarray(vlm.params["text"]["embed"]["w"], np.float32)
    return ((table**2).sum(1) - 2 * seen @ table.T).argmin(1)


def reading(vlm: Any) -> list[dict[str, Any]]:
    """The share of tokens that are read, by what is drawn and in which typefaces."""
    rows = []
    for name in ("docstrings", "pydoc"):
        passages = PageReader(vlm, corpus.read(name)).chosen(0, TOKENS)
        for kind, faces in (("in training", FACES), ("held out", HELD_OUT)):
            right: list[np.ndarray] = []
            for number, (face, size) in enumerate((face, size) for face in faces for size in SIZES):
                for ids in passages[number * PAGES :][:PAGES]:
                    right.append(read(vlm, ids.tolist(), Face(face, size)) == ids)
            found = np.concatenate(right)
            rows.append({"corpus": name, "faces": kind, "tokens": len(found), "read": round(float(found.mean()), 4)})
    return rows


def run_rows(folder: Path) -> list[dict[str, Any]]:
    """The methods of a run, as the page has them."""
    result = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    rows = []
    for name, found in result["scores"]["methods"].items():
        (cell,) = found["hops"].values()
        first = found["conditions"].get("next token 1", {}).get("2", cell)
        rows.append(
            {"task": result["config"]["task"], "method": name, "eta": found["eta"]}
            | {key: cell[key] for key in ("accuracy", "error", "nll", "kl", "samples")}
            | {"first": first["accuracy"]}
        )
    return rows


def table(result: dict[str, Any]) -> str:
    """Both tables in Markdown."""
    lines = ["| pages of | typefaces | tokens | read |", "|---|---|---|---|"]
    lines += [
        f"| `{row['corpus']}` | {row['faces']} | {row['tokens']:,} | {row['read']:.3f} |" for row in result["reading"]
    ]
    task = None
    for row in result["runs"]:
        if row["task"] != task:
            task = row["task"]
            lines += [
                "",
                f"`{task}`, {row['samples']} questions:",
                "",
                "| method | right | first next token | nll | KL from full | η |",
                "|---|---|---|---|---|---|",
            ]
        eta = "–" if row["eta"] is None else f"{row['eta']:.2f}"
        lines.append(
            f"| `{row['method']}` | {row['accuracy']:.3f} ± {row['error']:.3f} | "
            f"{row['first']:.3f} | {row['nll']:.3f} | {row['kl']:.4f} | {eta} |"
        )
    full = {row["task"]: row["accuracy"] for row in result["runs"] if row["method"] == "full"}
    pages, text = (full.get(f"seen-quotation:tokens=64{form}") for form in ("", ",form=text"))
    if pages and text:
        lines += ["", f"Quotations across pages are right {pages / text:.3f} as often as the same tokens read as text."]
    return "\n".join(lines)


def main() -> None:
    """Measure what is read, take the runs, and put both into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--page", type=Path, required=True)
    options = parser.parse_args()
    result = {"reading": reading(load(MODEL)), "runs": [row for folder in options.runs for row in run_rows(folder)]}
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = put(options.page.read_text(encoding="utf-8"), "measured", table(result), "results-smol-vl")
    options.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
