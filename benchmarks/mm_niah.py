"""Needles of our own in MM-NIAH's format, run through the whole path: `python -m benchmarks.mm_niah FOLDER`.

Documents are pages of the task `binding`, written as MM-NIAH's files: a question about one page is of its task
retrieval, one that leads from a page to another of its task reasoning. `make results-mm-niah` runs it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.report.readme import put
from eval.report.run_tables import cell, markdown
from eval.report.suite import paired
from eval.run import runner
from eval.tasks import TASKS
from eval.tasks.published.base import Published
from models import load

MODEL = "kamera-tiny-gqa"
METHODS = ("full", "blind", "patch:4", "patch:16", "cacheblend:0.15")
LAYOUTS = ("plain", "distractors")
DOCUMENTS = 8
"""Documents of each layout."""

ASKED = {1: 1, 2: 2}
"""Questions of one hop and of two about each document."""

PARTS = {1: "retrieval-image", 2: "reasoning-image"}


def write(root: Path, documents: int = DOCUMENTS) -> Path:
    """Write the documents as ``mm_niah_val`` has them: images, and a line for each question.

    Args:
        root: a new folder.
        documents: of each layout.
    """
    base = root / "mm_niah_val"
    (base / "images").mkdir(parents=True)
    (base / "annotations").mkdir()
    binding = TASKS["binding"]
    outlines = [each for each in binding.outline([0], 9 * documents) if each.layout in LAYOUTS]
    lines: dict[int, list[dict[str, Any]]] = {hops: [] for hops in PARTS}
    for number, outline in enumerate(outlines):
        context = binding.draw(outline)
        names = [f"{number:03d}-{place}.png" for place in range(len(context.items))]
        for name, item in zip(names, context.items, strict=True):
            item.save(base / "images" / name)
        for hops, count in ASKED.items():
            for question in [each for each in context.questions if each.hops == hops][:count]:
                meta = {"placed_depth": question.depth, "context_length": 1000, "num_images": len(names)}
                meta |= {"choices": None, "choices_image_path": None, "needles": []}
                text = "\n".join(["<image>"] * len(names))
                record = {"id": len(lines[hops]), "images_list": names, "context": text, "question": question.text}
                lines[hops].append({**record, "answer": question.answers[0], "meta": meta})
    for hops, part in PARTS.items():
        text = "".join(json.dumps(each) + "\n" for each in lines[hops])
        (base / "annotations" / f"{part}.jsonl").write_text(text, encoding="utf-8")
    return root


def measure(root: Path, output: Path) -> dict[str, Any]:
    """Run both tasks, and give what the page shows.

    Args:
        root: what `write` wrote.
        output: the run's folder, which is gone on with.
    """
    from eval.report import samples

    task = f"mm-niah:part={'+'.join(PARTS.values())},data={root}"
    record = runner.evaluate(load(MODEL), runner.Run(task, MODEL, METHODS, seeds=(0,), repeats=0), output)
    lines = samples.read(output)
    scores = record["scores"]
    tests = {}
    for part in PARTS.values():
        own = [each for each in lines if each["condition"] == part]
        values = {name: [each["methods"][name]["scores"]["score"] for each in own] for name in METHODS}
        clusters = [each["context"] for each in own]
        tests[part] = {name: paired(values[name], values["blind"], clusters) for name in METHODS}
    return {
        "model": MODEL,
        "documents": len(list((root / "mm_niah_val/images").glob("*-0.png"))),
        "contexts": scores["contexts"],
        "versions": record["versions"],
        "variant": record["sources"]["variant"],
        "conditions": {name: own["conditions"] for name, own in scores["methods"].items()},
        "eta": {name: own["eta"] for name, own in scores["methods"].items()},
        "cost": {name: own["cost"] for name, own in scores["methods"].items()},
        "official": scores["official"],
        "to_blind": tests,
    }


def table(measured: dict[str, Any]) -> str:
    """The rows of the page."""
    names = list(PARTS.values())
    columns = ["method", *(each for name in names for each in (name, "p against blind")), "η", "bytes"]
    body: list[Sequence[str]] = []
    for method, conditions in measured["conditions"].items():
        row = [f"`{method}`"]
        for part in names:
            p = measured["to_blind"][part][method]["p"]
            row += [cell(conditions[part]["1"], "score"), "–" if method == "blind" else f"{p:.2g}"]
        eta = measured["eta"][method]
        row += ["–" if eta is None else f"{eta:.3f}", f"{measured['cost'][method]['bytes_share']:.1%}"]
        body.append(row)
    counts = {part: measured["conditions"]["full"][part]["1"]["samples"] for part in names}
    above = ", ".join(f"{count} questions of {part}" for part, count in counts.items())
    return "\n".join(
        [
            f"`{measured['model']}`, {measured['documents']} documents of 3 or 5 pages, {above}; score ± its error.",
            "",
            *markdown(columns, body),
        ]
    )


def listed() -> str:
    """What the page says of each task."""
    parts = []
    for task in TASKS.values():
        if isinstance(task, Published):
            settings = [each for each in task.settings if each != "data"]
            parts += [f"### `{task.name}`", "", f"Scored as: {task.VARIANT}. From {task.SOURCE}.", ""]
            parts += [f"Settings: {', '.join(f'`{each}=`' for each in settings)}.", ""] if settings else []
            parts += ["```text", task.LAYOUT.strip(), "```", ""]
    return "\n".join(parts)


def page(text: str, measured: dict[str, Any]) -> str:
    """The page with what there is, and what was measured."""
    text = put(text, "tasks", listed(), "results-mm-niah")
    return put(text, "measured", table(measured), "results-mm-niah")


def main() -> None:
    """Write the files, run, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the files and the run go")
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="of each layout")
    parser.add_argument("--json", type=Path, default=Path("docs/results/mm-niah.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/benchmarks.md"))
    options = parser.parse_args()
    data = options.folder / "data"
    if not data.exists():
        write(data, options.documents)
    found = measure(data, options.folder / "run")
    options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    written = page(options.page.read_text(encoding="utf-8"), found)
    options.page.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
