"""Models compiled for TPUs and an H200 that are not here: what their programs keep, move and compute.

`make bench-ahead` writes docs/results/ahead.json and the table in docs/performance.md. An entry whose compiler is not
installed keeps what was compiled elsewhere. Where a GPU is at hand, `python -m benchmarks.device` measures.
"""

import argparse
import json
import sys
from pathlib import Path

from eval.ahead.chips import ChipError
from eval.ahead.examine import examine

ENTRIES = (
    ("qwen2.5-vl-3b", "v5e-1"),
    ("qwen2.5-vl-7b", "v6e-1"),
    ("qwen3-vl-8b", "v5e-8"),
    ("kimi-vl-a3b", "v5e-8"),
    ("qwen2.5-vl-7b", "h200"),
    ("qwen3-vl-8b", "h200"),
    ("kimi-vl-a3b", "h200"),
    ("qwen3-vl-30b-a3b", "v5e-8"),
    ("internvl3-8b", "v6e-1"),
    ("deepseek-vl-7b", "v5e-8"),
    ("llava-1.5-7b", "v5e-8"),
    ("qwen3-vl-4b", "v6e-1"),
    ("smollm2-135m", "v5e-1"),
)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compile models for chips that are not here.")
    parser.add_argument("--json", type=Path, default=Path("docs/results/ahead.json"))
    parser.add_argument("--only", action="append", metavar="MODEL@MESH", help="these entries alone; the others stay")
    arguments = parser.parse_args()
    stored = json.loads(arguments.json.read_text())["entries"] if arguments.json.exists() else []
    entries = {(entry["model"], entry["mesh"]): entry for entry in stored}
    for model, mesh in ENTRIES:
        if arguments.only and f"{model}@{mesh}" not in arguments.only:
            continue
        print(f"{model} for {mesh}", file=sys.stderr)
        try:
            entries[model, mesh] = examine(model, mesh)
        except ChipError as error:
            print(error, file=sys.stderr)
            continue
        ordered = [entries[each] for each in ENTRIES if each in entries]
        arguments.json.write_text(json.dumps({"entries": ordered}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
