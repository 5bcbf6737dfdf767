"""What a backbone must have and give, checked by name: each fault is a `BackboneError` that says what to do."""

import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral, Number, Real
from pathlib import PurePath
from typing import Any
from weakref import ref

import jax
import numpy as np

from kamera_jax.arguments import short
from kamera_jax.errors import BackboneError, NoModelError
from kamera_jax.handle import Handle, traced
from kamera_jax.items import Audio, Video
from kamera_jax.kv import KVSpec, Segment, WindowState
from kamera_jax.placement import Placement

METHODS = ("prepare", "tail", "decode", "forward")
REQUIRED = ("spec", "params", "fingerprint", "preamble", "eos", *METHODS)
OPTIONAL_METHODS = ("follow_up", "flops", "leading", "cut", "segments", "decoding_params")
OPTIONAL = ("closing", "attends_in_place", "reads_context", "reads_bias", "fills_slots", "collects", *OPTIONAL_METHODS)


_NO_MODEL = (str, bytes, PurePath, Number, list, tuple, dict, np.ndarray, jax.Array, Handle, Audio, Video, type(None))
"""What users hand in where a model is expected."""


def check_identity(vlm: Any) -> None:
    """Raise BackboneError unless things can be kept by a backbone: for as long as it lives.

    Raises:
        NoModelError: it is of a type that is none.
    """
    if isinstance(vlm, _NO_MODEL):
        raise _no_model(vlm)
    name = type(vlm).__name__
    try:
        hash(vlm)
    except TypeError as error:
        raise BackboneError(
            f"{name} is not hashable ({error}), and what is computed for a model is kept by it; declare it with "
            "@dataclass(eq=False), or define __hash__"
        ) from error
    try:
        ref(vlm)
    except TypeError as error:
        raise BackboneError(
            f"{name} cannot be weakly referenced ({error}), and what is computed for a model goes when the model does; "
            'use no __slots__, add "__weakref__" to them, or declare it with @dataclass(eq=False, weakref_slot=True)'
        ) from error


def _no_model(vlm: Any) -> NoModelError:
    named = isinstance(vlm, str) and re.fullmatch(r"[\w./-]{1,60}", vlm) and PurePath(vlm).suffix in ("", ".gguf")
    return NoModelError(
        f"vlm is {short(vlm)}; expected a model, which stands first, as in encode(vlm, item): "
        f"vlm = models.load({vlm if named else 'kamera-tiny-gqa'!r}) makes one, or see kamera_jax.backbone.Backbone "
        "for your own"
    )


def check_members(vlm: Any, protocol: type) -> None:
    """Raise BackboneError unless a backbone has what it must have, and what else it has is of the right type.

    Args:
        vlm: the backbone.
        protocol: `kamera_jax.backbone.Backbone`, whose own methods do nothing.

    Raises:
        NoModelError: it has nothing of a backbone.
    """
    name = type(vlm).__name__
    missing = [each for each in REQUIRED if not hasattr(vlm, each) or _is_protocols(vlm, each, protocol)]
    if len(missing) == len(REQUIRED) and protocol not in type(vlm).__mro__:
        raise _no_model(vlm)
    if missing:
        raise BackboneError(
            f"{name} lacks {', '.join(missing)}; a backbone has {', '.join(REQUIRED)}: see "
            "kamera_jax.backbone.Backbone, and examples/own_backbone.py for a whole one"
        )
    kinds: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "spec": ("a KVSpec", lambda value: isinstance(value, KVSpec)),
        "fingerprint": ("a str that is not empty", lambda value: isinstance(value, str) and value != ""),
        "eos": ("a tuple of token ids", _are_ids),
        "closing": ("a tuple of token ids", _are_ids),
        "attends_in_place": ("True or False", lambda value: isinstance(value, bool)),
        "reads_context": ("True or False", lambda value: isinstance(value, bool)),
        "reads_bias": ("True or False", lambda value: isinstance(value, bool)),
        "fills_slots": ("True or False", lambda value: isinstance(value, bool)),
        "collects": ("a tuple of names", lambda value: isinstance(value, Collection) and not isinstance(value, str)),
        "placement": ("a Placement or None", lambda value: isinstance(value, Placement | None)),
        **dict.fromkeys((*METHODS, *OPTIONAL_METHODS), ("a method", callable)),
    }
    for member, (expected, holds) in kinds.items():
        value = getattr(vlm, member, None)
        left_out = value is None and member in OPTIONAL
        if not left_out and not holds(value):
            raise BackboneError(f"{name}.{member} is {short(value)}; expected {expected}")
    if vlm.spec.fingerprint != vlm.fingerprint:
        raise BackboneError(
            f"{name}.fingerprint is {vlm.fingerprint[:12]!r} and its spec.fingerprint {vlm.spec.fingerprint[:12]!r}; "
            "both name the model's configuration and weights: give them one value"
        )
    _check_forward(name, vlm)
    check_segment(vlm, vlm.preamble, "preamble")


def _check_forward(name: str, vlm: Any) -> None:
    forward = vlm.forward
    try:
        hash(forward)
    except TypeError as error:
        raise BackboneError(
            f"{name}.forward is not hashable ({error}), and it keys what is compiled; make it a function or a method"
        ) from error
    if forward != vlm.forward:
        raise BackboneError(
            f"{name}.forward is a new object at each access, and it keys what is compiled, so every call would compile "
            "anew; build it once, in __init__, or make it a method"
        )
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):  # a callable that does not say what it takes
        return
    try:
        signature.bind(vlm.params, vlm.preamble, None, logits_at=None, collect=())
    except TypeError as error:
        raise BackboneError(
            f"{name}.forward takes {signature} ({error}); expected (params, segment, state, *, logits_at=None, "
            "collect=()): parameters are an argument and never closed over"
        ) from error


def check_segment(vlm: Any, segment: Any, where: str) -> Segment:
    """The segment that a backbone gave, if a forward can run it.

    Args:
        vlm: the backbone.
        segment: what it gave.
        where: the member that gave it.

    Raises:
        BackboneError: it is no segment, has no tokens, or its arrays do not fit each other.
    """

    def wrong(what: str) -> BackboneError:
        return BackboneError(f"{type(vlm).__name__}.{where} gives {what}")

    if not isinstance(segment, Segment):
        raise wrong(f"{short(segment)}; expected a kamera_jax.Segment")
    if not isinstance(segment.inputs, Mapping) or "tokens" not in segment.inputs:
        names = sorted(segment.inputs) if isinstance(segment.inputs, Mapping) else type(segment.inputs).__name__
        raise wrong(f'a segment whose inputs are {names}; expected at least "tokens", i32[T], by name')
    positions = np.shape(segment.positions)
    axes = vlm.spec.rope.axes
    if len(positions) != 2 or positions[0] != axes or not positions[1]:
        raise wrong(f"a segment with positions {list(positions)}; expected f32[{axes}, T], as the spec's RoPE has axes")
    for name, array in segment.inputs.items():
        for leaf in jax.tree.leaves(array):
            if np.shape(leaf)[:1] != positions[1:] or not hasattr(leaf, "dtype"):
                raise wrong(f"inputs[{name!r}] of shape {list(np.shape(leaf))}; expected T = {positions[1]} first")
    tokens = segment.inputs["tokens"]
    if np.ndim(tokens) != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise wrong(f"tokens {tokens.dtype}{list(np.shape(tokens))}; expected i32[T]")
    length = segment.length
    if getattr(length, "shape", None) != () or not np.issubdtype(length.dtype, np.integer):
        raise wrong(f"a segment of length {short(length)}; expected an i32 scalar, such as np.int32({positions[1]})")
    if not traced(length) and not 1 <= int(length) <= positions[1]:
        raise wrong(
            f"a segment of {int(length)} tokens in {positions[1]} rows; expected at least one, and no more than there "
            "are rows"
        )
    advance = segment.advance
    known = advance is not None and not traced(advance)  # a transformation drops it; see `chunk_of`
    number = isinstance(advance, Real) or getattr(advance, "shape", None) == ()
    if known and not (number and math.isfinite(advance) and advance >= 0):
        raise wrong(f"a segment that advances by {short(advance)}; expected a number of positions, at least 0")
    return segment


def check_kv(vlm: Any, kv: Any) -> None:
    """Raise BackboneError unless KV (or its shapes) is what the backbone's spec says."""
    spec = vlm.spec
    for part, width in (("rot", spec.rot_dim), ("free", spec.free_dim)):
        array = getattr(kv, part)
        if (array.shape[0], array.shape[2], array.dtype.name) != (spec.layers, width, spec.dtype):
            raise BackboneError(
                f"{type(vlm).__name__}.forward returns kv.{part} {array.dtype.name}{list(array.shape)}; its spec says "
                f"{spec.dtype}[{spec.layers}, T, {width}] (layers={spec.layers}, {part}_dim={width}): correct the one "
                "or the other"
            )
    if spec.rot_dim != spec.heads * spec.rope.head_dim:
        raise BackboneError(
            f"{type(vlm).__name__}.spec says rot_dim={spec.rot_dim}, heads={spec.heads} and a RoPE of "
            f"head_dim={spec.rope.head_dim}; expected rot_dim = heads × head_dim: the rotated part of each key"
        )


def check_params_read(vlm: Any, traced: Any) -> None:
    """Raise BackboneError if a forward, traced with its parameters first, uses none of them, or has some built in.

    What is built in stays as it was when it was compiled: a model with other parameters would give its KV.
    """
    name = type(vlm).__name__
    leaves = jax.tree.leaves(vlm.params)
    built_in = {id(leaf) for leaf in leaves if isinstance(leaf, jax.Array)} & {id(const) for const in traced.consts}
    if built_in or (leaves and not _reads(traced.jaxpr, set(traced.jaxpr.invars[: len(leaves)]))):
        raise BackboneError(
            f"{name}.forward does not read the parameters it is given but such as it closes over; use its argument "
            "params, which is the backbone's params, and nothing of the model's own"
        )


def _reads(jaxpr: Any, variables: set[Any]) -> bool:
    """Whether anything is computed from some of the variables, in what is called too."""
    for equation in jaxpr.eqns:
        places = [i for i, each in enumerate(equation.invars) if not hasattr(each, "val") and each in variables]
        inner = equation.params.get("jaxpr") if equation.primitive.name in ("jit", "pjit") else None
        if places and (inner is None or _reads(inner.jaxpr, {inner.jaxpr.invars[i] for i in places})):
            return True
    return any(not hasattr(each, "val") and each in variables for each in jaxpr.outvars)


def check_output(
    forward: Any,
    output: Any,
    segment: Segment,
    state: WindowState | None,
    logits_at: jax.Array | None,
    collect: Sequence[str],
) -> None:
    """Raise BackboneError unless what a forward returned has what was asked for, in the right shapes."""

    def wrong(what: str) -> BackboneError:
        return BackboneError(f"the backbone's forward ({_called(forward)}) returned {what}")

    if not all(hasattr(output, name) for name in ("logits", "kv", "aux")):
        raise wrong(f"{short(output)}; expected a kamera_jax.backbone.Output(logits, kv, aux)")
    if not all(hasattr(output.kv, name) for name in ("rot", "free")):
        raise wrong(f"kv = {short(output.kv)}; expected a kamera_jax.KV(rot, free)")
    rows = segment.positions.shape[-1]
    rot = np.shape(output.kv.rot)
    free = np.shape(output.kv.free)
    if len(rot) != 3 or len(free) != 3 or rot[1] != rows or free[1] != rows or rot[0] != free[0]:
        raise wrong(f"KV of rot {list(rot)} and free {list(free)} for {rows} rows; expected [L, {rows}, F] of each")
    if logits_at is not None and (output.logits is None or np.shape(output.logits)[:-1] != np.shape(logits_at)):
        got = "None" if output.logits is None else list(np.shape(output.logits))
        raise wrong(
            f"logits {got} where they were asked for at {len(logits_at)} tokens; expected [{len(logits_at)}, V]"
        )
    _check_collected(wrong, output, rot[0], rows, state, collect)


def _check_collected(
    wrong: Callable[[str], BackboneError],
    output: Any,
    layers: int,
    rows: int,
    state: WindowState | None,
    collect: Sequence[str],
) -> None:
    if not isinstance(output.aux, Mapping):
        raise wrong(f"aux = {short(output.aux)}; expected a dict of what was collected, {{}} for nothing")
    wanted = {name: name for name in collect} | ({"attended": "queries"} if "queries" in collect else {})
    for name, asked in wanted.items():
        if name not in output.aux:
            raise wrong(
                f"aux with {sorted(output.aux) or 'nothing'} where collect={tuple(collect)} was asked for; expected "
                f"aux[{name!r}], which goes with {asked!r}: see kamera_jax.backbone.Output"
            )
    seen = rows + (0 if state is None else state.valid.shape[-1])
    expected: dict[str, tuple[int | None, ...]] = {
        "attention_mass": (layers, seen),
        "owner_mass": (layers, None),
        "queries": (layers, rows, None, None),
        "attended": (layers, rows, None, None),
    }
    for name in wanted.keys() & expected.keys():
        shape = np.shape(output.aux[name])
        fits = zip(shape, expected[name], strict=False)
        if len(shape) != len(expected[name]) or any(right not in (None, size) for size, right in fits):
            there = ", ".join("·" if size is None else str(size) for size in expected[name])
            raise wrong(f"aux[{name!r}] of shape {list(shape)}; expected [{there}]: see kamera_jax.backbone.Output")


def _is_protocols(vlm: Any, name: str, protocol: type) -> bool:
    """Whether a method is the protocol's own, which does nothing."""
    own = getattr(vlm, name)
    return name in METHODS and getattr(own, "__func__", own) is getattr(protocol, name)


def _are_ids(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str) and all(isinstance(i, Integral) for i in value)


def _called(forward: Any) -> str:
    return getattr(forward, "__qualname__", None) or type(forward).__name__
