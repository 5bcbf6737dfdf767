"""What a model's programs keep, move and compute on chips that are not here."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import jax

from eval.ahead import hlo
from eval.ahead.chips import ROOFLINE, Target, compile_for, target
from eval.ahead.programs import PROGRAMS, Program, Shapes, device_bytes
from eval.ahead.published import configuration
from kamera_jax.dtypes import floating
from models.hub.refusals import check_architecture
from models.registry import ARCHITECTURES

WINDOW = 32768
CHUNK = 1024
RANK = 32

Progress = Callable[[int, int, str], None]
"""Called with how many programs are compiled, how many there are, and the name of the next one."""


def examine(
    model: str,
    mesh: str,
    *,
    window: int = WINDOW,
    chunk: int = CHUNK,
    rank: int = RANK,
    dtype: str = "bfloat16",
    programs: Sequence[str] = PROGRAMS,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Compile a model's programs for chips that are not here.

    Args:
        model: a name in `eval.ahead.published.CONFIGURATIONS`, a folder with a config.json, or such a file.
        mesh: the chips, as ``"v5e-8"``; see `eval.ahead.chips.parse`.
        window: slots of the window.
        chunk: tokens of the chunk.
        rank: components of its patch.
        dtype: of parameters and KV.
        programs: which of `PROGRAMS`.
        progress: see `Progress`.

    Returns:
        What ``--json`` writes. A program that cannot be compiled has its ``error``; one that is too large does not fit.

    Raises:
        ChipError: there is no such mesh, or its compiler is not installed.
        ValueError: the model is not known or not served.
    """
    mapping = configuration(model)
    check_architecture(model, mapping, ARCHITECTURES)
    on = target(mesh)
    kind = floating(dtype, "--dtype").name
    shapes = Shapes.of(mapping, on.mesh, dtype=kind, window=window, chunk=chunk, rank=rank)
    rows = []
    for done, name in enumerate(programs):
        progress(done, len(programs), name)
        rows.append(measured(on, shapes, shapes.programs[name]()))
    progress(len(programs), len(programs), "")
    found = {row["program"]: row for row in rows}
    limit = shapes.spec.max_positions
    return {
        "model": model,
        "mesh": on.name,
        "devices": on.mesh.size,
        "chip": {"flops": on.chip.flops, "bandwidth": on.chip.bandwidth, "memory": on.chip.memory}
        | {"source": on.chip.source},
        "device_memory": on.memory,
        "window": window,
        "chunk": chunk,
        "rank": rank,
        "dtype": kind,
        "max_positions": limit,
        "weights": device_bytes(shapes.params) + shapes.towers,
        "kv": device_bytes(shapes.kv(window)),
        "layout": "one device" if shapes.placement is None else str(shapes.placement),
        "roofline": ROOFLINE,
        **_ratios(on, found.get("prefill", {}), found.get("reuse", {})),
        "programs": rows,
        "versions": {"jax": version("jax"), **_compiler(on)},
    }


def _ratios(on: Target, prefill: dict[str, Any], reuse: dict[str, Any]) -> dict[str, float | None]:
    """How many times longer a prefill takes than a reuse: as compiled, and of one that moves no byte more than it must.

    None where one of them is missing.
    """
    took = reuse.get("roofline_seconds")
    if not took or not prefill.get("roofline_seconds"):
        return {"reprefill_over_reuse": None, "ideal_reprefill_over_reuse": None}
    ideal = on.seconds(prefill["flops"], prefill["ideal_bytes"])
    return {
        "reprefill_over_reuse": prefill["roofline_seconds"] / took,
        "ideal_reprefill_over_reuse": ideal / took,
    }


def _compiler(on: Target) -> dict[str, str]:
    package = "libtpu" if on.chip.platform == "tpu" else "jax-cuda13-plugin"
    try:
        return {package: version(package)}
    except ImportError:
        return {}


def measured(on: Target, shapes: Shapes, program: Program) -> dict[str, Any]:
    """One program compiled: its memory, bytes, FLOPs and roofline time, of one device."""
    row: dict[str, Any] = {
        "program": program.name,
        "flops": program.flops,
        "flops_counted": "from shapes",
        "ideal_bytes": program.ideal,
    }
    try:
        compiled = compile_for(on, program.function, program.arguments, program.donate)
    except jax.errors.JaxRuntimeError as error:
        reason = _reason(str(error))
        return row | {"error": reason, "fits": False if "RESOURCE_EXHAUSTED" in str(error) else None}
    memory = compiled.memory_analysis()
    kept = {
        "arguments": memory.argument_size_in_bytes,
        "output": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    peak = sum(kept.values()) - 2 * kept["aliased"]
    beside = shapes.towers + (0 if program.reads_weights else device_bytes(shapes.params))
    row |= kept | {"peak": peak, "in_all": peak + beside, "fits": bool(peak + beside <= on.memory)}
    try:
        moved: float | None = float(hlo.hbm_bytes(compiled.as_text()))
    except (jax.errors.JaxRuntimeError, hlo.UncountedError, KeyError, IndexError, StopIteration) as error:
        # Some programs with asynchronous copies are compiled by libtpu and cannot be read by jaxlib.
        moved = None
        row["uncounted"] = _reason(str(error))
    counted = program.ideal if moved is None else moved
    return row | {"hbm_bytes": moved, "roofline_seconds": on.seconds(program.flops, counted)}


def _reason(text: str) -> str:
    """The first lines of a compiler's error that say what is missing."""
    return " ".join(text.split())[:300]
