"""docs/performance.md of what was measured and compiled: `python -m benchmarks.performance_page`."""

import json
from pathlib import Path

from benchmarks import ahead_page, decoding, kernels, real_speed

DOCS = Path("docs")


def page(docs: Path) -> str:
    """The page, of docs/results: kernels, and sections on whole models, on prefill and on decoding."""

    def read(name: str) -> dict:
        return json.loads((docs / "results" / f"{name}.json").read_text(encoding="utf-8"))

    sections = (
        ahead_page.section(read("ahead")["entries"]),
        real_speed.section(read("real-speed")),
        decoding.section(read("decoding")),
    )
    return kernels.page(read("kernels")) + "".join(f"\n{section.strip()}\n" for section in sections)


if __name__ == "__main__":
    (DOCS / "performance.md").write_text(page(DOCS), encoding="utf-8")
