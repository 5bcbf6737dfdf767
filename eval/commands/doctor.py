"""`kamera doctor`: what is installed, what it runs on, and which kernels will run there, and why."""

import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from kamera_jax.kv import KVSpec
from kamera_jax.window.window import Mode
from models.blocks.flash import NO_GPU_KERNEL
from pallas_kernels import relocate_patch
from pallas_kernels.chunk_attention.api import refusals as attention_refusals
from pallas_kernels.chunk_attention.shapes import Heads
from pallas_kernels.dispatch import IMPLEMENTATIONS, Implementation, choose, unavailable
from pallas_kernels.flash_attention.limits import splash_refusal
from pallas_kernels.relocate_patch.api import refusals as relocation_refusals
from pallas_kernels.relocate_patch.shapes import SHAPES, Shape

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
BACKBONES = ("qwen2.5-vl-7b", "qwen2.5-vl-3b", "kimi-vl", "llava-1.5-7b")
"""The models that are examined where none is named, in bf16."""

OPERATIONS = ("relocate_patch_into", "chunk_attention", "attention")
"""``"attention"`` is that of prefill, long tails and forming a patch, and of the tower, which has narrower heads."""

LATENT_WIDTHS = (192, 128)
"""Keys and values of a head to which DeepSeek's models expand a latent."""

RANK = 32
CHUNK = 512


@dataclass(frozen=True)
class Choice:
    """The implementation that serves one operation of one model.

    Attributes:
        model, operation: their names.
        here: the implementation on this machine.
        refusals: for every implementation but ``"xla"``, why it cannot serve the call on its own kind of device; None
            where it can.
    """

    model: str
    operation: str
    here: Implementation
    refusals: dict[Implementation, str | None]


def shape_of(spec: KVSpec) -> Shape:
    """The shape of a model's call of relocate_patch, for a chunk of `CHUNK` tokens and a patch of rank `RANK`."""
    rope = spec.rope
    return Shape(
        layers=spec.layers,
        tokens=CHUNK,
        heads=spec.rot_dim // rope.head_dim,
        head_dim=rope.head_dim,
        free=spec.free_dim,
        rank=RANK,
        rotary_dim=rope.rotary_dim,
        layout=rope.layout,
    )


def choices(name: str, shape: Shape, dtype: Any, slots: int) -> list[Choice]:
    """The implementations that serve a model's calls, in a window of so many slots."""
    rot, free, cos, _, u, v, _, _ = shape.arguments(dtype)
    cache_rot, cache_free, _ = shape.cache(slots, dtype)
    heads = Heads(shape.heads, shape.heads, shape.head_dim, shape.free // shape.heads, latent=False)
    refused: dict[str, dict[Implementation, str | None]] = {
        "relocate_patch_into": relocation_refusals(
            rot, free, cos, u, v, rotary_dim=shape.rotary_dim, layout=shape.layout, cache=(cache_rot, cache_free)
        ),
        "chunk_attention": attention_refusals(
            heads,
            shape.rotary_dim // 2,
            [dtype],
            layout=shape.layout,
            tokens=shape.tokens,
            rank=shape.rank,
        ),
        "attention": {
            "pallas_tpu": splash_refusal(*_expanded(shape), [dtype]),
            "mosaic_gpu": NO_GPU_KERNEL,
            "xla": None,
        },
    }
    return [_choice(name, operation, refused[operation]) for operation in OPERATIONS]


def _expanded(shape: Shape) -> tuple[int, int]:
    """Widths of a head of keys and of values, as prefill attends to them."""
    latent = shape.free != shape.heads * shape.head_dim
    return LATENT_WIDTHS if latent else (shape.head_dim, shape.head_dim)


def _choice(model: str, operation: str, refusals: dict[Implementation, str | None]) -> Choice:
    kernels: list[Implementation] = [name for name in IMPLEMENTATIONS if name != "xla"]
    reasons: dict[Implementation, str | None] = {
        name: refusals.get(name, f"{operation} has no such kernel") for name in kernels
    }
    return Choice(model, operation, choose(operation, None, refusals), reasons)


def devices() -> list[dict[str, Any]]:
    """The devices that JAX computes on."""
    listed = []
    for device in jax.devices():
        stats = device.memory_stats() if device.platform != "cpu" else None
        listed.append(
            {
                "id": device.id,
                "platform": device.platform,
                "kind": device.device_kind,
                "memory_bytes": None if stats is None else stats.get("bytes_limit"),
            }
        )
    return listed


def advice() -> list[str]:
    """What to install or change, so that something works or is faster."""
    hints = []
    if jax.default_backend() == "cpu":
        if shutil.which("nvidia-smi"):
            hints.append("an NVIDIA driver is here, and jax does not use it: pip install --upgrade 'jax[cuda13]'")
        if Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists():
            hints.append("a TPU seems to be here, and jax does not use it: pip install --upgrade 'jax[tpu]'")
    if jax.default_backend() == "gpu" and (reason := unavailable("mosaic_gpu")):
        hints.append(f"the GPU kernels do not run: {reason}")
    if not jax.config.values.get("jax_compilation_cache_dir"):
        hints.append(
            "compiled programs are forgotten at exit: KAMERA_CACHE is off, or the user's cache folder cannot be written"
        )
    return hints


def check() -> float:
    """The largest relative error of relocate_patch on the default device against float64, on random arrays.

    Multiplications in full precision, as the models' own patches take them.
    """
    rng = np.random.default_rng(0)
    tokens = 64
    dim = 64
    rank = 8
    rot, free = (rng.standard_normal((1, tokens, width)) for width in (dim, 32))
    u, v = (rng.standard_normal((1, rank, width)) for width in (tokens, dim + 32))
    angles = np.outer(np.arange(tokens), 10_000.0 ** (-np.arange(dim // 2) / (dim // 2)))
    cos = np.cos(np.tile(angles, 2))
    sin = np.sin(np.tile(angles, 2)) * np.repeat([-1.0, 1.0], dim // 2)
    patched = np.concatenate([rot, free], -1) + np.einsum("lmt,lmf->ltf", u, v)
    keys = patched[..., :dim]
    exact = (keys * cos + np.roll(keys, dim // 2, -1) * sin, patched[..., dim:])
    computed = relocate_patch(*(jnp.asarray(x, jnp.float32) for x in (rot, free, cos, sin, u, v)))
    return max(float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()) for a, b in zip(computed, exact, strict=True))


def examine(models: Sequence[str] = (), slots: int = 4096) -> dict[str, Any]:
    """The result of `kamera doctor`.

    Args:
        models: names of models to load and examine; a few well-known backbones, in bf16, where none is named.
        slots: slots of the window that chunks are written to.

    Raises:
        ValueError: a model cannot be loaded.
    """
    from models import load

    kernels: list[Choice] = []
    for name in models:
        spec = load(name).spec
        kernels += choices(name, shape_of(spec), jnp.dtype(spec.dtype), slots)
    if not models:
        for name in BACKBONES:
            kernels += choices(name, SHAPES[name], jnp.bfloat16, slots)
    return {
        "versions": {"python": platform.python_version(), "kamera-jax": _version("kamera-jax")}
        | {name: _version(name) for name in PACKAGES},
        "devices": devices(),
        "backend": jax.default_backend(),
        "error": check(),
        "slots": slots,
        "unavailable": {name: unavailable(name) for name in IMPLEMENTATIONS},
        "kernels": [vars(choice) for choice in kernels],
        "advice": advice(),
    }


def warm(name: str, slots: int, mode: Mode) -> None:
    """Compile what a session of a model runs, and show how far that is.

    Raises:
        ValueError: the model cannot be loaded.
    """
    from models import load

    vlm = load(name)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"compiling for {name}", total=None)
        vlm.warm(slots, mode=mode, progress=lambda step, steps, what: bar.update(task, completed=step, total=steps))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the result, within 80 columns."""
    console = console or Console(emoji=False, highlight=False)
    versions = [f"{name} {version}" for name, version in result["versions"].items() if version]
    console.print("Versions", style="bold")
    _item(console, ", ".join(versions))
    console.print("\nDevices", style="bold")
    for device in result["devices"]:
        memory = f", {device['memory_bytes'] / 2**30:.1f} GiB" if device["memory_bytes"] else ""
        console.print(f"  {device['platform']}:{device['id']}  {device['kind']}{memory}")
    console.print(f"  relocate_patch on {result['backend']} against float64: error {result['error']:.1e}")
    console.print(f"\nKernels, in a window of {result['slots']} slots", style="bold")
    machines = {name: reason for name, reason in result["unavailable"].items() if name != "xla"}
    table = Table(box=None, pad_edge=False)
    for column in ("  model", "operation", "here", "on a TPU", "on an H100, H200"):
        table.add_column(column, no_wrap=True)
    notes: list[str] = []
    for row in result["kernels"]:
        cells = [_cell(name, row["refusals"][name], notes) for name in machines]
        table.add_row(f"  {row['model']}", row["operation"], row["here"], *map(Text, cells))
    console.print(table)
    for name, reason in machines.items():
        if reason is not None:
            _item(console, f"{name} does not run here: {reason}")
    for number, note in enumerate(notes, start=1):
        _item(console, f"[{number}] {note}")
    for hint in result["advice"]:
        console.print()
        _item(console, f"Hint: {hint}")


def _cell(name: str, refusal: str | None, notes: list[str]) -> str:
    if refusal is None:
        return name
    if refusal not in notes:
        notes.append(refusal)
    return f"xla [{notes.index(refusal) + 1}]"


def _item(console: Console, text: str) -> None:
    console.print(Padding(Text(text), (0, 0, 0, 2)))
