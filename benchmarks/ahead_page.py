"""The section of docs/performance.md about whole models compiled without the chips; see `benchmarks.ahead`."""

from typing import Any

from eval.ahead.chips import CHIPS, ROOFLINE

HEAD = (
    *("model", "chips", "GB in all", "fits", "prefill: temp. MB", "prefill: TFLOPs", "forming ÷ prefill, FLOPs"),
    *(
        "decoding: bytes ÷ ideal",
        "reuse: MB",
        "prefill, reuse: roofline ms",
        "ratio",
        "ratio, ideal prefill",
        "measured",
    ),
)

TABLES = ((0, 1, 2, 3, 4), (0, 1, 5, 6, 7), (0, 1, 8, 9, 10, 11, 12))
"""The columns of each table: what a page has room for."""

SECTION = """## Whole models, compiled without the chips

`kamera doctor --compile MODEL --mesh CHIP-N` compiles, for a window of {window} slots, a chunk of {chunk} tokens and a
patch of rank {rank} in bfloat16: *prefill* of the chunk behind the window, *forming* of its patch (the same forward,
and the fit), *reuse* (the canonical chunk rotated, patched and written) and *decoding* of one token. Everything is of
one device. Bytes are counted in the optimised program, FLOPs from shapes; *ideal* is the weights, the KV and what comes
out, each moved once. No weight is needed, and nothing is run.

{tables}

*GB in all* is the largest of the four programs with weights, towers and KV; *fits* compares it with what the chip has.
Times are a {roofline}:
the larger of FLOPs over the peak and bytes over the bandwidth. *Ratio* is prefill over reuse as they are compiled, then
with a prefill that moves its ideal bytes: XLA's attention on GPUs passes its scores through memory, and bytes that a
cache would keep count too. *Measured* is empty where no such device was at hand. Of a model with experts, *ideal* has
those that a token reaches.
{longer}

| chip | bfloat16 TFLOP/s | GB/s | GB | source |
|---|---|---|---|---|
{chips}
"""


def section(entries: list[dict[str, Any]]) -> str:
    """The results as a section of docs/performance.md."""
    chips = [
        f"| {name} | {chip.flops / 1e12:.0f} | {chip.bandwidth / 1e9:.0f} | {chip.memory / 1e9:.0f} | {chip.source} |"
        for name, chip in CHIPS.items()
    ]
    window = entries[0]["window"]
    beyond = [f"{entry['model']} {entry['max_positions']}" for entry in entries if entry["max_positions"] < window]
    longer = f"The window is as large for all, also beyond a model's own length: {', '.join(beyond)} tokens."
    sizes = {name: entries[0][name] for name in ("window", "chunk", "rank")}
    cells = [row(entry) for entry in entries]
    tables = []
    for columns in TABLES:
        lines = [[HEAD[i] for i in columns], ["---"] * len(columns), *([own[i] for i in columns] for own in cells)]
        tables.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return SECTION.format(
        tables="\n\n".join(tables),
        chips="\n".join(chips),
        roofline=ROOFLINE,
        longer=longer if beyond else "",
        **sizes,
    )


def row(entry: dict[str, Any]) -> tuple[str, ...]:
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
    ratios = [entry["reprefill_over_reuse"], entry["ideal_reprefill_over_reuse"]]
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
        *("–" if each is None else f"{each:.0f}" for each in ratios),
        entry.get("measured", ""),
    )
    return cells
