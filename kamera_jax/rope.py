"""Rotary position embedding: specification, tables and rotation.

Every variant is one pair of full-width tables: the sign of the partner is folded into ``sin`` and the entries outside
the rotary dims are (1, 0), so that the same expression ``x * cos + partner(x) * sin`` serves half-split and interleaved
pairs, partial rotary and M-RoPE. Angles are always f32.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kamera_jax.arguments import check_array, check_type
from kamera_jax.rope_kinds import KINDS, Parameters, UnsupportedRopeError
from kamera_jax.rope_kinds import inverse_frequencies as inverse_frequencies
from kamera_jax.rope_kinds import is_positive as is_positive
from kamera_jax.rope_kinds import magnitude as magnitude
from kamera_jax.rope_kinds import yarn_frequencies as yarn_frequencies
from kamera_jax.rope_kinds import yarn_scale as yarn_scale
from pallas_kernels.relocate_patch.reference import PairLayout, rotate_flat

SectionLayout = Literal["contiguous", "interleaved"]


@dataclass(frozen=True)
class RopeSpec:
    """What a backbone's RoPE is.

    Attributes:
        inv_freq: inverse frequencies in radians per position, one per rotated pair (R/2 of them).
        head_dim: D, the width of one head of the rotated features.
        layout: how the two members of a pair lie: ``"half"`` (i, i + R/2) or ``"interleaved"`` (2i, 2i + 1).
        sections: M-RoPE: frequencies taken by each position axis (summing to R/2); None for 1-D positions.
        section_layout: ``"contiguous"`` (Qwen2-VL, Qwen2.5-VL) or ``"interleaved"`` (Qwen3-VL).
        scale: factor on cos and sin (the attention factor of YaRN and LongRoPE).
        unrotated: layers without positional encoding (NoPE), counted from 0: their queries and keys are left as they
            are, wherever their tokens stand.
    """

    inv_freq: tuple[float, ...]
    head_dim: int
    layout: PairLayout = "half"
    sections: tuple[int, ...] | None = None
    section_layout: SectionLayout = "contiguous"
    scale: float = 1.0
    unrotated: tuple[int, ...] = ()

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
        if list(self.unrotated) != sorted(set(self.unrotated)) or min(self.unrotated, default=0) < 0:
            raise ValueError(f"unrotated layers are {self.unrotated}; expected each once, in order, counted from 0")

    def __repr__(self) -> str:
        shown = [f"{self.layout} layout", f"{self.rotary_dim} of {self.head_dim} dims of a head"]
        if self.inv_freq:
            shown.append(f"frequencies {max(self.inv_freq):.3g} to {min(self.inv_freq):.3g}")
        if self.sections is not None:
            shown.append(f"sections {self.sections} {self.section_layout}")
        if self.scale != 1.0:
            shown.append(f"scale {self.scale:.6g}")
        if self.unrotated:
            shown.append(f"{len(self.unrotated)} layers unrotated")
        return f"<RopeSpec {', '.join(shown)}>"

    @property
    def plain(self) -> dict[str, Any]:
        """The fields by name; without ``unrotated`` where every layer is rotated, as in what older versions wrote."""
        return {name: value for name, value in asdict(self).items() if name != "unrotated" or value}

    def turned(self, layer: Array | int) -> Array | bool:
        """Whether a layer, whose index may be traced, is rotated; plain True where every layer is."""
        return not self.unrotated or (jnp.asarray(self.unrotated, jnp.int32) != layer).all()

    @property
    def axes(self) -> int:
        """Number of position axes A: 1, or 3 for M-RoPE."""
        return 1 if self.sections is None else len(self.sections)

    @property
    def rotary_dim(self) -> int:
        """R: how many leading dims of a head are rotated."""
        return 2 * len(self.inv_freq)


def spec_from_config(
    parameters: Mapping[str, Any],
    *,
    head_dim: int,
    max_positions: int,
    layout: PairLayout = "half",
    section_layout: SectionLayout = "contiguous",
) -> RopeSpec:
    """The RopeSpec of a Hugging Face ``rope_parameters`` (or ``rope_scaling``) mapping.

    It holds at positions below `position_limit`. LongRoPE and dynamic NTK have other frequencies beyond.

    Args:
        parameters: with ``rope_theta``, ``rope_type`` (or ``type``) and what that type needs. A 0 counts as absent
            where it does in transformers: YaRN's betas and mscales.
        head_dim: D of the rotated features.
        max_positions: the longest sequence the checkpoint declares, in positions.
        layout: how pairs lie in this architecture.
        section_layout: how this architecture lays out M-RoPE sections.

    Raises:
        UnsupportedRopeError: an unknown type, or a field that is unknown, missing or no number it could be.
    """
    given = Parameters(parameters)
    theta = given.number("rope_theta", 10000.0)
    partial = given.number("partial_rotary_factor", 1.0)
    rotary_dim = int(head_dim * min(partial, 2.0))
    if not 0 < rotary_dim <= head_dim:
        raise UnsupportedRopeError(
            f"partial_rotary_factor is {partial}; expected at most 1, and a pair at least of {head_dim} dims"
        )
    sections = given.sections("mrope_section")
    if given.flag("mrope_interleaved", section_layout == "interleaved") != (section_layout == "interleaved"):
        raise UnsupportedRopeError(
            f"mrope_interleaved does not match this architecture, which lays sections out {section_layout}"
        )
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # refused below
        inv_freq, scale = KINDS[given.kind](given, rotary_dim, theta, max_positions)
    given.close()
    if not (np.isfinite(inv_freq) & (inv_freq > 0)).all():
        raise UnsupportedRopeError(
            f"rope_theta {theta} and the other parameters of rope_type {given.kind!r} give frequencies beyond what f32 "
            "holds; check them against the model's own"
        )
    return RopeSpec(
        inv_freq=tuple(inv_freq.tolist()),
        head_dim=head_dim,
        layout=layout,
        sections=sections,
        section_layout=section_layout,
        scale=scale,
    )


def position_limit(parameters: Mapping[str, Any], max_positions: int) -> int:
    """Positions that a checkpoint is for: a token may stand at 0 up to, not including, this.

    That is its declared length, except for LongRoPE, whose frequencies are others past its original length, and YaRN,
    whose declared length may be the one before the extension.

    Args:
        parameters: see `spec_from_config`.
        max_positions: the longest sequence the checkpoint declares, in positions.

    Raises:
        UnsupportedRopeError: the fields this reads are not what `spec_from_config` takes.
    """
    given = Parameters(parameters)
    original = given.length("original_max_position_embeddings", max_positions)
    if given.kind == "longrope":
        return min(original, max_positions)
    if given.kind == "yarn":
        return max(math.floor(given.number("factor") * original), max_positions)
    return max_positions


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


def tables(
    spec: RopeSpec, positions: Float[Array, "A T"], layer: Array | int | None = None
) -> tuple[Float[Array, "T D"], Float[Array, "T D"]]:
    """cos and sin for every position, full head width, f32.

    Args:
        spec: the backbone's RoPE.
        positions: absolute positions, f32[A, T].
        layer: the layer that they are for; in one that is not rotated they are 1 and 0. By default a rotated one.

    Returns:
        ``(cos, sin)``, f32[T, D] each, with the sign of the rotation folded into sin and (1, 0) outside the rotary
        dims.

    Raises:
        ValueError: the number of position axes is not the spec's.
    """
    check_type(spec, RopeSpec, "spec", "vlm.spec.rope")
    check_array(positions, "positions")
    if positions.shape[0] != spec.axes:
        raise ValueError(f"positions have {positions.shape[0]} axes; this RoPE takes {spec.axes}")
    inv_freq = jnp.asarray(spec.inv_freq, jnp.float32)
    angles = positions.astype(jnp.float32)[section_axes(spec)].T * inv_freq[None, :]
    cos = jnp.cos(angles) * spec.scale
    sin = jnp.sin(angles) * spec.scale
    if spec.layout == "half":
        cos = jnp.concatenate([cos, cos], -1)
        sin = jnp.concatenate([-sin, sin], -1)
    else:
        cos = jnp.repeat(cos, 2, -1)
        sin = jnp.stack([-sin, sin], -1).reshape(sin.shape[0], -1)
    rest = ((0, 0), (0, spec.head_dim - spec.rotary_dim))
    cos = jnp.pad(cos, rest, constant_values=1.0)
    sin = jnp.pad(sin, rest)
    if layer is None or not spec.unrotated:
        return cos, sin
    turned = spec.turned(layer)
    return jnp.where(turned, cos, 1.0), jnp.where(turned, sin, 0.0)


def rotate(
    x: Float[Array, "T H D"], positions: Float[Array, "A T"], spec: RopeSpec, layer: Array | int | None = None
) -> Float[Array, "T H D"]:
    """Rotate un-rotated heads to absolute positions: one hop, f32 math, the input's dtype out.

    Args:
        x: un-rotated queries or keys [T, H, D].
        positions: absolute positions f32[A, T].
        spec: the backbone's RoPE.
        layer: the layer that they are of, for a spec with layers that are not rotated. By default a rotated one.

    Raises:
        ValueError: the number of position axes is not the spec's.
    """
    cos, sin = tables(spec, positions, layer)
    check_array(x, "x")
    if x.ndim != 3 or x.shape[::2] != (cos.shape[0], spec.head_dim):
        raise ValueError(f"x is {list(x.shape)}; expected [T, H, D] with T = {cos.shape[0]} and D = {spec.head_dim}")
    flat = x.reshape(1, x.shape[0], -1)
    rotated = rotate_flat(flat.astype(jnp.float32), cos, sin, rotary_dim=spec.rotary_dim, layout=spec.layout)
    return rotated.reshape(x.shape).astype(x.dtype)
