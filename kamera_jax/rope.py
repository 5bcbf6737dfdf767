"""Rotary position embedding: specification, tables and rotation.

Every variant is one pair of full-width tables: the sign of the partner is folded into ``sin`` and the entries outside
the rotary dims are (1, 0), so that the same expression ``x * cos + partner(x) * sin`` serves half-split and interleaved
pairs, partial rotary and M-RoPE. Angles are always f32.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pallas_kernels.relocate_patch.reference import PairLayout, rotate_flat

SectionLayout = Literal["contiguous", "interleaved"]


class UnsupportedRopeError(ValueError):
    """The checkpoint's RoPE is not a rotation that relocation can undo."""


@dataclass(frozen=True)
class RopeSpec:
    """What a backbone's RoPE is.

    Attributes:
        inv_freq: inverse frequencies in radians per position, one per rotated pair (R/2 of them).
        head_dim: D, the width of one head of the rotated features.
        layout: how the two members of a pair lie: ``"half"`` (i, i + R/2) or ``"interleaved"`` (2i, 2i + 1).
        sections: M-RoPE: frequencies taken by each position axis (summing to R/2); None for 1-D positions.
        section_layout: ``"contiguous"`` (Qwen2-VL, Qwen2.5-VL) or ``"interleaved"`` (Qwen3-VL).
        scale: factor on cos and sin (YaRN's attention factor).
    """

    inv_freq: tuple[float, ...]
    head_dim: int
    layout: PairLayout = "half"
    sections: tuple[int, ...] | None = None
    section_layout: SectionLayout = "contiguous"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if 2 * len(self.inv_freq) > self.head_dim:
            raise ValueError(
                f"{len(self.inv_freq)} frequencies rotate {2 * len(self.inv_freq)} dims, but the head has "
                f"{self.head_dim}"
            )
        if self.sections is not None and sum(self.sections) != len(self.inv_freq):
            raise ValueError(
                f"M-RoPE sections {self.sections} sum to {sum(self.sections)}; expected {len(self.inv_freq)} "
                "frequencies"
            )

    @property
    def axes(self) -> int:
        """Number of position axes A: 1, or 3 for M-RoPE."""
        return 1 if self.sections is None else len(self.sections)

    @property
    def rotary_dim(self) -> int:
        """R: how many leading dims of a head are rotated."""
        return 2 * len(self.inv_freq)


def inverse_frequencies(rotary_dim: int, theta: float) -> np.ndarray:
    """Plain RoPE: ``theta ** (-2i / R)``, f32[R/2] (RoFormer, eq. 15)."""
    return np.float32(1) / _wavelengths(rotary_dim, theta)


def _wavelengths(rotary_dim: int, theta: float) -> np.ndarray:
    """Radians per position, inverted, f32[R/2].

    The power is taken in f64, which every machine rounds alike: these numbers enter the keys of chunks.
    """
    exponent = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    return (np.float64(theta) ** exponent.astype(np.float64)).astype(np.float32)


def yarn_frequencies(
    rotary_dim: int,
    theta: float,
    *,
    factor: float,
    original_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> np.ndarray:
    """YaRN's inverse frequencies, f32[R/2] (arXiv 2309.00071, section 3.2).

    Slow pairs are interpolated, fast ones left alone.
    """

    def pair_turning(rotations: float) -> float:
        return rotary_dim * math.log(original_length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_turning(beta_fast), pair_turning(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    ramp = (np.arange(rotary_dim // 2, dtype=np.float32) - low) / np.float32((high - low) or 0.001)
    kept = 1 - np.clip(ramp, 0, 1).astype(np.float32)
    wavelengths = _wavelengths(rotary_dim, theta)
    interpolated = np.float32(1) / (np.float32(factor) * wavelengths)
    return interpolated * (1 - kept) + np.float32(1) / wavelengths * kept


def yarn_scale(factor: float, mscale: float | None = None, mscale_all_dim: float | None = None) -> float:
    """YaRN's factor on cos and sin (arXiv 2309.00071, eq. 22); DeepSeek's two-sided form with both mscales."""
    if mscale and mscale_all_dim:
        return magnitude(factor, mscale) / magnitude(factor, mscale_all_dim)
    return magnitude(factor)


def magnitude(factor: float, weight: float = 1.0) -> float:
    """YaRN's correction of the attention's temperature for a context ``factor`` times as long, DeepSeek's mscale."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def spec_from_config(
    parameters: Mapping[str, Any],
    *,
    head_dim: int,
    max_positions: int,
    layout: PairLayout = "half",
    section_layout: SectionLayout = "contiguous",
) -> RopeSpec:
    """The RopeSpec of a Hugging Face ``rope_parameters`` (or ``rope_scaling``) mapping.

    Args:
        parameters: with ``rope_theta``, ``rope_type`` (or ``type``) and what that type needs.
        head_dim: D of the rotated features.
        max_positions: the longest sequence the checkpoint declares, in positions.
        layout: how pairs lie in this architecture.
        section_layout: how this architecture lays out M-RoPE sections.

    Raises:
        UnsupportedRopeError: dynamic NTK, LongRoPE past its original length, an unknown type, or a field that is
            unknown or missing.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    kind = given.pop("rope_type", None) or given.pop("type", None) or "default"
    given.pop("type", None)
    check_relocatable(parameters, max_positions)
    theta = float(given.pop("rope_theta", 10000.0))
    rotary_dim = int(head_dim * given.pop("partial_rotary_factor", 1.0))
    sections = given.pop("mrope_section", None)
    if given.pop("mrope_interleaved", section_layout == "interleaved") != (section_layout == "interleaved"):
        raise UnsupportedRopeError(
            f"mrope_interleaved does not match this architecture, which lays sections out {section_layout}"
        )
    scale = 1.0

    def needed(name: str) -> Any:
        if name not in given:
            raise UnsupportedRopeError(f"rope_type {kind!r} needs {name!r}; got only {sorted(parameters)}")
        return given.pop(name)

    if kind in ("default", "mrope"):
        inv_freq = inverse_frequencies(rotary_dim, theta)
    elif kind == "linear":
        inv_freq = inverse_frequencies(rotary_dim, theta) / np.float32(needed("factor"))
    elif kind == "yarn":
        factor = float(needed("factor"))
        original = int(given.pop("original_max_position_embeddings", max_positions))
        inv_freq = yarn_frequencies(
            rotary_dim,
            theta,
            factor=factor,
            original_length=original,
            beta_fast=float(given.pop("beta_fast", 32.0)),
            beta_slow=float(given.pop("beta_slow", 1.0)),
            truncate=given.pop("truncate", True),
        )
        mscale, mscale_all_dim = (float(given.pop(name, 0.0)) for name in ("mscale", "mscale_all_dim"))
        scale = float(given.pop("attention_factor", yarn_scale(factor, mscale, mscale_all_dim)))
    elif kind in LONGROPE:
        given.pop("original_max_position_embeddings", None)
        short = np.asarray(needed("short_factor"), np.float32)
        given.pop("long_factor", None)
        inv_freq = inverse_frequencies(rotary_dim, theta) / short
        scale = float(given.pop("attention_factor", scale))
    else:
        raise UnsupportedRopeError(f"unknown rope_type {kind!r}; expected default, mrope, linear, yarn or longrope")
    if given:
        raise UnsupportedRopeError(f"unknown fields for rope_type {kind!r}: {sorted(given)}")
    return RopeSpec(
        inv_freq=tuple(inv_freq.tolist()),
        head_dim=head_dim,
        layout=layout,
        sections=None if sections is None else tuple(sections),
        section_layout=section_layout,
        scale=scale,
    )


LONGROPE = ("longrope", "su")
"""Names of LongRoPE; the second is that of Phi-3's first files."""


def check_relocatable(parameters: Mapping[str, Any], max_positions: int) -> None:
    """Refuse a RoPE whose frequencies depend on the length of the sequence: a cached key cannot be moved there.

    Args:
        parameters: a Hugging Face ``rope_parameters`` (or ``rope_scaling``) mapping.
        max_positions: the longest sequence the checkpoint declares, in positions.

    Raises:
        UnsupportedRopeError: dynamic NTK, or LongRoPE past its original length.
    """
    kind = parameters.get("rope_type") or parameters.get("type")
    original = parameters.get("original_max_position_embeddings") or max_positions
    if kind in LONGROPE and max_positions > original:
        raise UnsupportedRopeError(
            f"LongRoPE past its original length ({max_positions} > {original} positions) picks its frequencies by "
            "sequence length, so cached keys cannot be relocated; set max_position_embeddings to the original length"
        )
    if kind == "dynamic":
        raise UnsupportedRopeError(
            "dynamic NTK changes the frequencies with the sequence length, so cached keys cannot be relocated; "
            "use rope_type 'default' (within the trained length) or 'yarn'"
        )


def section_axes(spec: RopeSpec) -> np.ndarray:
    """Which position axis drives each frequency: int[R/2]."""
    pairs = np.arange(len(spec.inv_freq))
    if spec.sections is None:
        return np.zeros_like(pairs)
    if spec.section_layout == "contiguous":
        return np.repeat(np.arange(len(spec.sections)), spec.sections)
    axes = np.zeros_like(pairs)
    for axis in range(1, len(spec.sections)):
        stride = len(spec.sections)
        axes[(pairs % stride == axis) & (pairs < stride * spec.sections[axis])] = axis
    return axes


def axis_frequencies(spec: RopeSpec) -> np.ndarray:
    """Radians per position of every pair on the axis that drives it, zero on the others: f32[A, R/2]."""
    frequencies = np.zeros((spec.axes, len(spec.inv_freq)), np.float32)
    frequencies[section_axes(spec), np.arange(len(spec.inv_freq))] = spec.inv_freq
    return frequencies


def tables(spec: RopeSpec, positions: Float[Array, "A T"]) -> tuple[Float[Array, "T D"], Float[Array, "T D"]]:
    """cos and sin for every position, full head width, f32.

    Args:
        spec: the backbone's RoPE.
        positions: absolute positions, f32[A, T].

    Returns:
        ``(cos, sin)``, f32[T, D] each, with the sign of the rotation folded into sin and (1, 0) outside the rotary
        dims.

    Raises:
        ValueError: the number of position axes is not the spec's.
    """
    if positions.shape[0] != spec.axes:
        raise ValueError(f"positions have {positions.shape[0]} axes; this RoPE takes {spec.axes}")
    inv_freq = jnp.asarray(spec.inv_freq, jnp.float32)
    angles = positions.astype(jnp.float32)[section_axes(spec)].T * inv_freq[None, :]
    cos, sin = jnp.cos(angles) * spec.scale, jnp.sin(angles) * spec.scale
    if spec.layout == "half":
        cos, sin = jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1)
    else:
        cos, sin = jnp.repeat(cos, 2, -1), jnp.stack([-sin, sin], -1).reshape(sin.shape[0], -1)
    rest = ((0, 0), (0, spec.head_dim - spec.rotary_dim))
    return jnp.pad(cos, rest, constant_values=1.0), jnp.pad(sin, rest)


def rotate(x: Float[Array, "T H D"], positions: Float[Array, "A T"], spec: RopeSpec) -> Float[Array, "T H D"]:
    """Rotate un-rotated heads to absolute positions: one hop, f32 math, the input's dtype out.

    Args:
        x: un-rotated queries or keys [T, H, D].
        positions: absolute positions f32[A, T].
        spec: the backbone's RoPE.

    Raises:
        ValueError: the number of position axes is not the spec's.
    """
    cos, sin = tables(spec, positions)
    flat = x.reshape(1, x.shape[0], -1)
    rotated = rotate_flat(flat.astype(jnp.float32), cos, sin, rotary_dim=spec.rotary_dim, layout=spec.layout)
    return rotated.reshape(x.shape).astype(x.dtype)
