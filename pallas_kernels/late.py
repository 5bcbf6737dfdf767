"""A function that is traced when it is lowered, for one platform: kernels cost nothing where they do not run."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, unmapped_aval
from jax.interpreters import batching, mlir

_late = Primitive("late")
_late.multiple_results = True


def late(function: Callable[..., Any], platform: str | None, like: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as a branch of `jax.lax.platform_dependent`, traced only where a program is lowered for a platform.

    A program for several platforms has each branch lowered for all of them, though it runs on its own alone: what is
    lowered for another one gives zeros. A program that the compiler itself cuts among several devices computes ``like``
    instead: kernels are cut by `jax.shard_map` alone. It has no derivatives.

    Args:
        function: of pytrees of arrays.
        platform: as `jax.lax.platform_dependent` calls it; None lowers it for whatever the program is lowered for.
        like: a function that computes the same, of the same types, and that the compiler can cut.
    """

    def call(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        program, shapes = jax.make_jaxpr(like, return_shape=True)(*arguments)
        results = jax.tree.structure(shapes)

        def flat(computed: Callable[..., Any], *leaves: Any) -> list[Any]:
            return results.flatten_up_to(computed(*jax.tree.unflatten(structure, leaves)))

        whole = partial(flat, function)
        return results.unflatten(_bind(whole, partial(flat, like), platform, program.out_avals, leaves))

    return call


def _bind(
    flat: Callable[..., Any],
    like: Callable[..., Any],
    platform: str | None,
    results: Sequence[Any],
    leaves: Sequence[Any],
) -> list[Any]:
    return _late.bind(*leaves, flat=flat, like=like, platform=platform, results=tuple(results))


@_late.def_impl
def _(*leaves: Any, flat: Callable[..., Any], results: Sequence[Any], **_: Any) -> list[Any]:
    with jax.enable_x64(False):  # kernels count in 32 bits, whatever the program around them does
        return flat(*leaves)


@_late.def_abstract_eval
def _(*leaves: Any, results: Sequence[Any], **_: Any) -> Sequence[Any]:
    return results


def _batched(
    leaves: Sequence[Any],
    axes: Sequence[Any],
    *,
    flat: Callable[..., Any],
    like: Callable[..., Any],
    platform: str | None,
    results: Sequence[Any],
) -> tuple[list[Any], list[int]]:
    # The mapped function is that of the kernel, which folds the axis into its grid.
    size = next(leaf.shape[axis] for leaf, axis in zip(leaves, axes, strict=True) if axis is not None)
    mapped, cuttable = (jax.vmap(each, in_axes=tuple(axes)) for each in (flat, like))
    many = [unmapped_aval(size, 0, each) for each in results]
    return _bind(mapped, cuttable, platform, many, leaves), [0] * len(many)


batching.primitive_batchers[_late] = _batched


def _traced(
    here: str | None, cut: bool, *leaves: Any, flat: Any, like: Any, platform: str | None, results: Sequence[Any]
) -> Any:
    if platform not in (None, here):
        return [jnp.zeros(each.shape, each.dtype) for each in results]
    return like(*leaves) if cut else flat(*leaves)


def _is_cut(context: Any) -> bool:
    """Whether the compiler cuts a program among several devices, by how JAX lowers it."""
    if hasattr(context, "manual_axes"):
        names = frozenset(context.mesh.axis_names)
        return bool(context.manual_axes) and context.manual_axes | frozenset(context.mesh.manual_axes) != names
    return (getattr(context, "num_devices", None) or 1) > 1


def _lowering(here: str | None) -> Callable[..., Any]:
    def rule(context: Any, *given: Any, **options: Any) -> Any:
        cut = _is_cut(context.module_context.axis_context)
        lower = mlir.lower_fun(partial(_traced, here, cut), multiple_results=True)
        with jax.enable_x64(False):
            return lower(context, *given, **options)

    return rule


for _platform in (None, "tpu", "cuda"):
    mlir.register_lowering(_late, _lowering(_platform), _platform)
