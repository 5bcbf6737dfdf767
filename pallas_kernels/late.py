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
    lowered for another one gives zeros. It has no derivatives.

    Args:
        function: of pytrees of arrays.
        platform: as `jax.lax.platform_dependent` calls it; None lowers it for whatever the program is lowered for.
        like: a function whose results have the same types.
    """

    def call(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        program, shapes = jax.make_jaxpr(like, return_shape=True)(*arguments)
        results = jax.tree.structure(shapes)

        def flat(*leaves: Any) -> list[Any]:
            return results.flatten_up_to(function(*jax.tree.unflatten(structure, leaves)))

        return results.unflatten(_bind(flat, platform, program.out_avals, leaves))

    return call


def _bind(flat: Callable[..., Any], platform: str | None, results: Sequence[Any], leaves: Sequence[Any]) -> list[Any]:
    return _late.bind(*leaves, flat=flat, platform=platform, results=tuple(results))


@_late.def_impl
def _(*leaves: Any, flat: Callable[..., Any], platform: str | None, results: Sequence[Any]) -> list[Any]:
    with jax.enable_x64(False):  # kernels count in 32 bits, whatever the program around them does
        return flat(*leaves)


@_late.def_abstract_eval
def _(*leaves: Any, flat: Callable[..., Any], platform: str | None, results: Sequence[Any]) -> Sequence[Any]:
    return results


def _batched(
    leaves: Sequence[Any],
    axes: Sequence[Any],
    *,
    flat: Callable[..., Any],
    platform: str | None,
    results: Sequence[Any],
) -> tuple[list[Any], list[int]]:
    # The mapped function is that of the kernel, which folds the axis into its grid.
    size = next(leaf.shape[axis] for leaf, axis in zip(leaves, axes, strict=True) if axis is not None)
    mapped = jax.vmap(flat, in_axes=tuple(axes))
    many = [unmapped_aval(size, 0, each) for each in results]
    return _bind(mapped, platform, many, leaves), [0] * len(many)


batching.primitive_batchers[_late] = _batched


def _traced(
    here: str | None, *leaves: Any, flat: Callable[..., Any], platform: str | None, results: Sequence[Any]
) -> Any:
    return flat(*leaves) if platform in (None, here) else [jnp.zeros(each.shape, each.dtype) for each in results]


def _lowering(here: str | None) -> Callable[..., Any]:
    lower = mlir.lower_fun(partial(_traced, here), multiple_results=True)

    def rule(*given: Any, **options: Any) -> Any:
        with jax.enable_x64(False):
            return lower(*given, **options)

    return rule


for _platform in (None, "tpu", "cuda"):
    mlir.register_lowering(_late, _lowering(_platform), _platform)
