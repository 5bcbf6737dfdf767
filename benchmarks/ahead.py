"""Models compiled for TPUs and an H200 that are not here: what their programs keep, move and compute.

`make bench-ahead` writes docs/results/ahead.json and the table in docs/performance.md. An entry whose compiler is not
installed keeps what was compiled elsewhere, and so do programs that are not asked for (`--program`). Where a GPU is at
hand, `python -m benchmarks.device` measures.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from eval.ahead.chips import ChipError
from eval.ahead.examine import examine
from eval.ahead.programs import PROGRAMS

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


def joined(stored: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """An entry, with what is stored of the programs that were not compiled anew."""
    if stored is None:
        return new
    anew = {each["program"]: each for each in new["programs"]}
    rows = [anew.get(each["program"], each) for each in stored["programs"]]
    ratios = ("reprefill_over_reuse", "ideal_reprefill_over_reuse")
    kept = {} if {"prefill", "reuse"} & anew.keys() else {name: stored[name] for name in ratios}
    return {**new, **kept, "programs": rows}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compile models for chips that are not here.")
    parser.add_argument("--json", type=Path, default=Path("docs/results/ahead.json"))
    parser.add_argument("--only", action="append", metavar="MODEL@MESH", help="these entries alone; the others stay")
    parser.add_argument("--program", action="append", choices=PROGRAMS, help="of each entry these programs alone")
    arguments = parser.parse_args()
    stored = json.loads(arguments.json.read_text())["entries"] if arguments.json.exists() else []
    entries = {(entry["model"], entry["mesh"]): entry for entry in stored}
    wanted = set(arguments.program or PROGRAMS)
    for model, mesh in ENTRIES:
        if arguments.only and f"{model}@{mesh}" not in arguments.only:
            continue
        print(f"{model} for {mesh}", file=sys.stderr)
        try:
            # A ratio is of two programs: both of them, or none.
            pair = {"prefill", "reuse"}
            chosen = [each for each in PROGRAMS if each in wanted or (each in pair and pair & wanted)]
            found = examine(model, mesh, programs=chosen)
            entries[model, mesh] = joined(entries.get((model, mesh)), found)
        except ChipError as error:
            print(error, file=sys.stderr)
            continue
        ordered = [entries[each] for each in ENTRIES if each in entries]
        arguments.json.write_text(json.dumps({"entries": ordered}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
