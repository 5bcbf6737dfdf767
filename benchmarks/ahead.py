"""Models compiled for TPUs and an H200 that are not here: what their programs keep, move and compute.

`make bench-ahead` writes docs/results/ahead.json and the table in docs/performance.md. An entry whose compiler is not
installed keeps what was compiled elsewhere. Where a GPU is at hand, `python -m benchmarks.device` measures.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from eval.ahead.chips import CHIPS, ROOFLINE, ChipError
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

BEGIN = "<!-- compiled ahead of time: begin -->"
END = "<!-- compiled ahead of time: end -->"

HEAD = (
    *("model", "chips", "GB in all", "fits", "prefill: temp. MB", "prefill: TFLOPs", "forming ÷ prefill, FLOPs"),
    *("decoding: bytes ÷ ideal", "reuse: MB", "prefill, reuse: roofline ms", "ratio", "measured"),
)

SECTION = """{begin}
## Whole models, compiled without the chips

`kamera doctor --compile MODEL --mesh CHIP-N` compiles, for a window of {window} slots, a chunk of {chunk} tokens and a
patch of rank {rank} in bfloat16: *prefill* of the chunk behind the window, *forming* of its patch (the same forward,
and the fit), *reuse* (the canonical chunk rotated, patched and written) and *decoding* of one token. Everything is of
one device. Bytes are counted in the optimised program, FLOPs from shapes; *ideal* is the weights, the KV and what comes
out, each moved once. No weight is needed, and nothing is run.

{head}
{rules}
{rows}

*GB in all* is the largest of the four programs with weights, towers and KV; *fits* compares it with what the chip has.
Times are a {roofline}: the larger of FLOPs over the peak and bytes over the bandwidth. *Ratio* is prefill over reuse;
*measured* is empty where no such device was at hand.

| chip | bfloat16 TFLOP/s | GB/s | GB | source |
|---|---|---|---|---|
{chips}
{end}"""


def section(entries: list[dict[str, Any]]) -> str:
    """The results as a section of docs/performance.md."""
    chips = [
        f"| {name} | {chip.flops / 1e12:.0f} | {chip.bandwidth / 1e9:.0f} | {chip.memory / 1e9:.0f} | {chip.source} |"
        for name, chip in CHIPS.items()
    ]
    sizes = {name: entries[0][name] for name in ("window", "chunk", "rank")}
    rows = "\n".join(map(row, entries))
    return SECTION.format(
        head="| " + " | ".join(HEAD) + " |",
        rules="|---" * len(HEAD) + "|",
        begin=BEGIN,
        end=END,
        rows=rows,
        chips="\n".join(chips),
        roofline=ROOFLINE.split(";")[0] + ")",
        **sizes,
    )


def row(entry: dict[str, Any]) -> str:
    """A model's line; a program that does not compile leaves its cells empty."""
    programs = {each["program"]: each for each in entry["programs"]}

    def cell(form: str, *wanted: tuple[str, str], scale: float = 1.0) -> str:
        values = [programs.get(program, {}).get(name) for program, name in wanted]
        if any(value is None for value in values):
            return "–"
        whole = [float(value) for value in values if value is not None]
        return format(whole[0] / whole[1] if len(whole) == 2 else whole[0] * scale, form)

    fits = [each["fits"] for each in entry["programs"]]
    sizes = [each["in_all"] for each in entry["programs"] if "in_all" in each]
    ratio = entry["reprefill_over_reuse"]
    times = [cell(".3g", (program, "roofline_seconds"), scale=1e3) for program in ("prefill", "reuse")]
    cells = (
        entry["model"],
        entry["mesh"],
        f"{max(sizes) / 1e9:.1f}" if sizes else "–",
        "no" if False in fits else "not known" if None in fits else "yes",
        cell(".0f", ("prefill", "temporaries"), scale=1e-6),
        cell(".1f", ("prefill", "flops"), scale=1e-12),
        cell(".3f", ("forming", "flops"), ("prefill", "flops")),
        cell(".2f", ("decoding", "hbm_bytes"), ("decoding", "ideal_bytes")),
        cell(".0f", ("reuse", "hbm_bytes"), scale=1e-6),
        ", ".join(times),
        "–" if ratio is None else f"{ratio:.0f}",
        entry.get("measured", ""),
    )
    return "| " + " | ".join(cells) + " |"


def with_section(page: str, text: str) -> str:
    """The page with the section in the place of the one it has, or at its end."""
    if BEGIN in page:
        return re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: text, page, flags=re.DOTALL)
    return page.rstrip("\n") + "\n\n" + text + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Compile models for chips that are not here.")
    parser.add_argument("--json", type=Path, default=Path("docs/results/ahead.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/performance.md"))
    parser.add_argument("--only", action="append", metavar="MODEL@MESH", help="these entries alone; the others stay")
    parser.add_argument("--draw", action="store_true", help="write the page of what was compiled before")
    arguments = parser.parse_args()
    stored = json.loads(arguments.json.read_text())["entries"] if arguments.json.exists() else []
    entries = {(entry["model"], entry["mesh"]): entry for entry in stored}
    for model, mesh in () if arguments.draw else ENTRIES:
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
    ordered = [entries[each] for each in ENTRIES if each in entries]
    page = arguments.page.read_text(encoding="utf-8")
    arguments.page.write_text(with_section(page, section(ordered)), encoding="utf-8")


if __name__ == "__main__":
    main()
