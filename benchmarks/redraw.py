"""Every page and figure of results, made anew from what was measured: docs/results. Nothing is measured.

`make pages` does this after a change of a template or of a figure's look.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    capsule,
    compression,
    compression_text,
    earlier,
    guard_text_page,
    library_page,
    mm_niah,
    patch,
    patch_text,
    performance_page,
    reliability_page,
    renewal_page,
    report,
    retrieval_page,
    selection,
    session,
    session_page,
    smol_vl,
    tiers_page,
    video_page,
    window,
)
from eval.commands.main import ATTENTIONS
from eval.report import claims_page, console, demo_text, demo_video, evaluation, figures, real_text
from eval.report.readme import put
from eval.tiny import assess

DOCS = Path("docs")


def pages(docs: Path) -> dict[Path, Callable[[], str]]:
    """What writes each generated page, by the page's path."""

    def read(name: str) -> Any:
        return json.loads((docs / "results" / f"{name}.json").read_text(encoding="utf-8"))

    def windows() -> str:
        results = read("window")
        own = [results[name] for name in ATTENTIONS if name in results]
        return window.page(own, [read(f"guard-{name}") for name in ATTENTIONS])

    def methods() -> str:
        runs = evaluation.load(docs / "results" / "eval-binding.json")
        return evaluation.page(runs, figures.files(runs, docs / "figures"), docs)

    def smol() -> str:
        return put((docs / "smol-vl.md").read_text(encoding="utf-8"), "measured", _smol(), "results-smol-vl")

    def codecs() -> str:
        text = (docs / "compression.md").read_text(encoding="utf-8")
        text = put(text, "measured", compression.table(read("compression")), "results-compression")
        text = put(text, "text", compression_text.table(read("compression-text")), "results-compression-text")
        text = put(text, "rows", selection.table(read("selection")), "results-selection")
        text = put(text, "capsule", capsule.table(read("capsule")), "results-capsule")
        return put(text, "earlier", earlier.table([read(name) for name in earlier.RESULTS]), "pages")

    def similar() -> str:
        text = (docs / "similar.md").read_text(encoding="utf-8")
        return put(text, "measured", renewal_page.table(read("renewal")), "bench-renewal")

    def _smol() -> str:
        return smol_vl.table(read("smol-vl"))

    def sessions() -> str:
        results = [read(path.stem) for path in sorted((docs / "results").glob("session-*.json"))]
        return session_page.page_of(results, session.NUMBERS)

    def benchmarks() -> str:
        return mm_niah.page((docs / "benchmarks.md").read_text(encoding="utf-8"), read("mm-niah"))

    found: dict[str, Callable[[], str]] = {
        "benchmarks": benchmarks,
        "claims": lambda: claims_page.page(claims_page.load([docs / "results" / "claims.json"])),
        "compression": codecs,
        "embedded-models": lambda: assess.page(read("embedded-models")),
        "guard": lambda: guard_text_page.page(read("guard-text")),
        "library": lambda: library_page.page(read("library"), read("library-soak"), read("library-scale")),
        "patches": lambda: patch.page(read("patch")),
        "performance": lambda: performance_page.page(docs),
        "real-text": lambda: real_text.page(read("real-text")),
        "reliability": lambda: reliability_page.page(read("reliability")),
        "results": methods,
        "retrieval": lambda: retrieval_page.page(read("retrieval")),
        "sessions": sessions,
        "similar": similar,
        "smol-vl": smol,
        "tiers": lambda: tiers_page.page(read("tiers")),
        "video": lambda: video_page.page_of(read("demo-video"), read("video")),
        "window": windows,
    }
    return {docs / f"{name}.md": write for name, write in found.items()}


def draw(docs: Path, folder: Path) -> list[Path]:
    """Draw the figures of these pages into ``folder``; returns their files."""

    def read(name: str) -> Any:
        return json.loads((docs / "results" / f"{name}.json").read_text(encoding="utf-8"))

    drawn = figures.draw(evaluation.load(docs / "results" / "eval-binding.json"), folder)
    files = [folder / f"{name}.png" for name in ("guard", "patch", "patch-text")]
    report.plot([read(f"guard-{name}") for name in ATTENTIONS], files[0])
    measured = read("patch")
    patch.plot(measured["models"], files[1])
    patch_text.plot(measured["text"], files[2])
    compression.plot(read("compression")["models"], folder / "compression.png")
    files.append(folder / "compression.png")
    demos = [folder / f"{name}.png" for name in ("demo", "quotation", "video")]
    console.plot_demo([read(f"demo-{name}") for name in ATTENTIONS], demos[0])
    demo_text.plot_text(read("demo-smollm2"), demos[1])
    demo_video.plot_stream(read("demo-video")["stream"], demos[2])
    return [*drawn.values(), *files, *demos]


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("pages", "figures"), help="the others stay as they are")
    options = parser.parse_args()
    if options.only != "figures":
        for path, write in pages(DOCS).items():
            path.write_text(write(), encoding="utf-8")
    if options.only != "pages":
        draw(DOCS, DOCS / "figures")


if __name__ == "__main__":
    main()
