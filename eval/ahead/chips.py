"""Chips that programs are compiled for without one: their published peaks, and meshes of them by name.

All times that are derived from this table are a roofline: what a program would take that reaches the published peak of
arithmetic or of memory, whichever takes longer. None of them is measured.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.sharding import Mesh

ROOFLINE = "roofline (expected from compiled FLOPs and bytes; not measured)"
"""What every expected time is called."""


class ChipError(ValueError):
    """A mesh that programs cannot be compiled for, or whose compiler is not installed."""


@dataclass(frozen=True)
class Chip:
    """A chip, by what its maker publishes.

    Attributes:
        flops: a second, of dense bfloat16 matrix products.
        bandwidth: bytes a second of its memory.
        memory: bytes.
        platform: JAX's name, ``"tpu"`` or ``"cuda"``.
        source: where the numbers are published.
        topologies: of so many chips, what libtpu calls their arrangement; one chip is the first of the smallest.
    """

    flops: float
    bandwidth: float
    memory: float
    platform: str
    source: str
    topologies: tuple[tuple[int, str], ...] = ((1, ""),)


_FLAT = ((1, "2x2"), (4, "2x2"), (8, "2x4"), (16, "4x4"), (32, "4x8"), (64, "8x8"))
_CUBE = ((1, "2x2x1"), (4, "2x2x1"), (8, "2x2x2"), (16, "2x2x4"), (32, "2x4x4"), (64, "4x4x4"))

CHIPS = {
    "v5e": Chip(197e12, 819e9, 16e9, "tpu", "https://cloud.google.com/tpu/docs/v5e", _FLAT),
    "v5p": Chip(459e12, 2765e9, 95e9, "tpu", "https://cloud.google.com/tpu/docs/v5p", _CUBE),
    "v6e": Chip(918e12, 1640e9, 32e9, "tpu", "https://cloud.google.com/tpu/docs/v6e", _FLAT),
    "tpu7x": Chip(2307e12, 7380e9, 192e9, "tpu", "https://cloud.google.com/tpu/docs/tpu7x", _CUBE),
    "h200": Chip(989e12, 4800e9, 141e9, "cuda", "https://www.nvidia.com/en-us/data-center/h200/"),
}
"""Published peaks. Of the H200 the FLOPs are those without sparsity."""

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 150000000000
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.12.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 patch: 0 }
device_description_str: "NVIDIA H200"
"""
"""An H200 as XLA describes it, as far as its compiler asks."""

PLUGIN = "pip install --no-deps jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version}"


@dataclass(frozen=True)
class Target:
    """A number of chips that programs are compiled for.

    Attributes:
        name: as it was given, ``"v5e-8"``.
        chip: what they are.
        mesh: their devices along the axis ``"model"``, automatic. A chip may be several devices.
        share: of a chip that one device is.
    """

    name: str
    chip: Chip
    mesh: Mesh
    share: float

    @property
    def memory(self) -> float:
        """Bytes of one device."""
        return self.chip.memory * self.share

    def seconds(self, flops: float, moved: float) -> float:
        """The roofline time of so many FLOPs and bytes of one device; see `ROOFLINE`."""
        return max(flops / (self.chip.flops * self.share), moved / (self.chip.bandwidth * self.share))


def known() -> str:
    """The meshes that there are, for messages."""
    return "; ".join(
        f"{name}-N for N in {', '.join(str(count) for count, _ in chip.topologies)}" if chip.platform == "tpu" else name
        for name, chip in CHIPS.items()
    )


def parse(name: str) -> tuple[str, int]:
    """The chip and the number of chips that a mesh's name says: ``"v5e-8"``, or ``"h200"`` for one.

    Raises:
        ChipError: there is no such chip, or not in that number.
    """
    found = re.fullmatch(r"(?P<chip>[a-z0-9]+?)(?:-(?P<count>[0-9]+))?", name.strip().lower())
    chip = CHIPS.get(found["chip"]) if found else None
    count = int(found["count"] or 1) if found else 0
    if chip is None or found is None or count not in dict(chip.topologies):
        raise ChipError(f"--mesh is {name!r:.60}; expected a chip and how many of them: {known()}")
    return found["chip"], count


def target(name: str) -> Target:
    """The devices of a mesh by its name, none of them being here.

    Raises:
        ChipError: the name is none (see `parse`), or the chip's compiler is not installed or does not know it.
    """
    kind, count = parse(name)
    chip = CHIPS[kind]
    # JAX asks all its plug-ins at once, and that of CUDA offers itself only beside cuDNN and the like: compiling needs
    # none of them.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    devices = _tpus(kind, dict(chip.topologies)[count]) if chip.platform == "tpu" else _gpu()
    coordinates = {tuple(each.coords) for each in devices} if chip.platform == "tpu" else {()}
    each = len(devices) // len(coordinates)
    mesh = Mesh(np.asarray(devices[: count * each]), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    return Target(name, chip, mesh, 1 / each)


def _tpus(kind: str, arrangement: str) -> list[Any]:
    if find_spec("libtpu") is None:
        raise ChipError(f"compiling for {kind} takes libtpu, which is not installed: pip install libtpu")
    # No metadata server, no device and so nothing to lock: several processes may compile at once.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{arrangement}").devices)
    except Exception as error:
        raise ChipError(
            f"libtpu knows no {kind} in the arrangement {arrangement} ({_first_line(error)}); "
            "update it: pip install --upgrade libtpu"
        ) from error


def _gpu() -> list[Any]:
    install = PLUGIN.format(version=jax.__version__)
    if find_spec("jax_cuda13_plugin") is None:
        raise ChipError(f"compiling for an H200 takes JAX's CUDA plug-in, which is not installed: {install}")
    try:
        described = topologies.get_topology_desc("h200", platform="cuda", target_config=H200, topology="1x1x1")
    except Exception as error:
        raise ChipError(f"JAX's CUDA plug-in cannot compile for an H200 ({_first_line(error)}): {install}") from error
    return list(described.devices)[:1]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def uncached() -> Iterator[None]:
    """Without the persistent compilation cache: a program for a device that is not there is kept, and does not load."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # JAX asks once whether there is a cache
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        reset_cache()


def compile_for(on: Target, function: Any, arguments: tuple[Any, ...], donate: tuple[int, ...] = ()) -> Any:
    """A function compiled for a target.

    Args:
        on: the devices.
        function: of the arguments.
        arguments: trees of `jax.ShapeDtypeStruct` that have shardings.
        donate: which of them are donated.
    """
    # The mesh tells Pallas which generation it compiles for.
    own = jax.sharding.use_abstract_mesh(on.mesh.abstract_mesh)
    with uncached(), own, jax.default_matmul_precision("default"):
        lowered = (
            jax.jit(function, donate_argnums=donate).trace(*arguments).lower(lowering_platforms=(on.chip.platform,))
        )
        # Autotuning runs programs, and there is nothing to run them on.
        options: Any = {"xla_gpu_autotune_level": 0} if on.chip.platform == "cuda" else None
        return lowered.compile(compiler_options=options)
