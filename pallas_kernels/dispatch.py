"""Choosing a backend: None picks the best that can serve the call, a named one that cannot says why.

What a call without a name runs is decided where it is lowered, by the platform that it is lowered for: a program may be
exported for another machine, and a call may run on another device than the default one.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import jax

from pallas_kernels.late import late

Implementation = Literal["xla", "pallas_tpu", "mosaic_gpu"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("pallas_tpu", "mosaic_gpu", "xla")
"""Best first."""

GPU_JAX = (0, 11)
"""The first jax whose Mosaic GPU the kernels are written for."""

PLATFORMS: Mapping[Implementation, str] = {"pallas_tpu": "tpu", "mosaic_gpu": "cuda"}
"""What `jax.lax.platform_dependent` calls the platform of each kernel."""

Backends = Callable[[Implementation], Callable[..., Any]]
"""Gives a backend of an operation by its name, and imports it."""


def platform() -> str:
    """What calls run on by default: ``"cpu"``, ``"gpu"`` or ``"tpu"``."""
    return jax.default_backend()


def unavailable(implementation: Implementation) -> str | None:
    """Why this machine or this jax cannot run the backend whatever the call, or None when it can."""
    wanted = {"pallas_tpu": "tpu", "mosaic_gpu": "gpu"}.get(implementation)
    if implementation == "mosaic_gpu" and jax.__version_info__ < GPU_JAX:
        return f"it needs jax {'.'.join(map(str, GPU_JAX))} or newer (and so Python 3.12); this is {jax.__version__}"
    if wanted is not None and platform() != wanted:
        return f"it runs on a {wanted}, and the default backend is a {platform()}"
    return None


def not_hopper() -> str | None:
    """Why this machine's GPU cannot run what is written for Hopper, or None where it can, or where there is none."""
    if platform() == "gpu" and (capability := getattr(jax.devices()[0], "compute_capability", "none")) != "9.0":
        return f"it needs an NVIDIA GPU of compute capability 9.0 (H100, H200), and this one's is {capability}"
    return None


def choose(
    op: str, implementation: Implementation | None, refusals: Mapping[Implementation, str | None]
) -> Implementation:
    """The backend to run ``op`` with.

    Args:
        op: for the message.
        implementation: None picks the best that serves the call.
        refusals: for each backend this op has, why it cannot serve this call, or None when it can; what
            `unavailable` says need not be repeated. ``"xla"`` must serve every call.

    Raises:
        ValueError: the name is unknown, the op has no such backend, or that backend cannot serve this call.
    """
    if implementation is None:
        return next(
            name for name in IMPLEMENTATIONS if name in refusals and (unavailable(name) or refusals[name]) is None
        )
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"unknown implementation {implementation!r} for {op}; expected None or one of {IMPLEMENTATIONS}"
        )
    if implementation not in refusals:
        raise ValueError(
            f"{op} has no {implementation!r} backend in this version; use None or one of {tuple(refusals)}"
        )
    reason = unavailable(implementation) or refusals[implementation]
    if reason is not None:
        raise ValueError(f"{op} cannot use {implementation!r}: {reason}; use None, which picks one that can")
    return implementation


def serve(
    op: str,
    implementation: Implementation | None,
    refusals: Mapping[Implementation, str | None],
    backends: Backends,
    *call: Any,
) -> Any:
    """Run a call by the backend that serves it; a kernel's derivatives are those of the ``"xla"`` backend.

    Args:
        op: for messages.
        implementation: None picks, for the platform that the call is lowered for, the best that serves it there.
        refusals: see `choose`.
        backends: of the operation; a function of a module, since what is compiled is keyed by it.
        call: what a backend takes, pytrees of arrays.

    Raises:
        ValueError: see `choose`.
    """
    kernels = _kernels(refusals)
    if implementation is None and kernels:
        return _by_platform(backends, kernels, *call)
    name = choose(op, implementation, refusals)
    return backends(name)(*call) if name == "xla" else _kernel(backends, name, None)(*call)


def _kernels(refusals: Mapping[Implementation, str | None]) -> tuple[Implementation, ...]:
    """The kernels that serve a call on their platforms; of GPUs nothing is known but on a machine with one."""
    served: list[Implementation] = [name for name in PLATFORMS if name in refusals and refusals[name] is None]
    return tuple(name for name in served if name == "pallas_tpu" or unavailable(name) is None)


# Compiled, it runs where its arrays lie; a Python conditional, or an operation by itself, would ask the default device.
@partial(jax.jit, static_argnums=(0, 1), inline=True)
def _by_platform(backends: Backends, kernels: tuple[Implementation, ...], *call: Any) -> Any:
    branches = {PLATFORMS[name]: _kernel(backends, name, PLATFORMS[name]) for name in kernels}
    return jax.lax.platform_dependent(*call, default=partial(_varying, backends("xla")), **branches)


def _kernel(backends: Backends, name: Implementation, platform: str | None) -> Callable[..., Any]:
    """A kernel whose derivatives, of both modes, are those of the reference, which keeps nothing but its arguments."""
    reference = partial(_varying, backends("xla"))

    def run(*call: Any) -> Any:
        return backends(name)(*call)  # imported where it runs

    kernel = jax.custom_jvp(late(run, platform, reference))

    @kernel.defjvp
    def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        _, changes = jax.jvp(jax.checkpoint(reference), primals, tangents)
        return kernel(*primals), changes

    return kernel


def _varying(backend: Callable[..., Any], *call: Any) -> Any:
    """A backend's results, each varying over every mesh axis (of `jax.shard_map`) that any argument varies over.

    So each backend gives the same types, as the branches of a conditional must.
    """
    axes = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(call)))

    def cast(x: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - jax.typeof(x).manual_axis_type.varying))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, backend(*call))
