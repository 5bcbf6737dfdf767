"""The kinds of RoPE that checkpoints declare: what they are read from, and the frequencies they give."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


class UnsupportedRopeError(ValueError):
    """A RoPE that is not known, or whose numbers cannot be."""


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

    low = pair_turning(beta_fast)
    high = pair_turning(beta_slow)
    if truncate:
        low = math.floor(low)
        high = math.ceil(high)
    low = max(low, 0)
    high = min(high, rotary_dim - 1)
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


def llama3_frequencies(
    rotary_dim: int, theta: float, *, factor: float, low: float, high: float, original_length: int
) -> np.ndarray:
    """Llama 3.1's inverse frequencies, f32[R/2] (HF ``_compute_llama3_parameters``).

    Pairs that turn more than ``high`` times in the original length are left alone, those that turn less than ``low``
    times are interpolated, and those between are blended.
    """
    inv_freq = inverse_frequencies(rotary_dim, theta)
    turns = np.float32(original_length) * inv_freq / np.float32(2 * math.pi)
    kept = np.clip((turns - np.float32(low)) / np.float32(high - low), 0, 1).astype(np.float32)
    return (1 - kept) * inv_freq / np.float32(factor) + kept * inv_freq


def longrope_scale(factor: float, original_length: int) -> float:
    """LongRoPE's factor on cos and sin at every length, of a context ``factor`` times as long (arXiv 2402.13753)."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_length))


class Parameters:
    """The fields of a ``rope_parameters`` mapping, taken one by one; null counts as absent.

    Attributes:
        name: the type, as it is written.
        kind: the type, a name in `KINDS`.
        rest: the fields not taken yet.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        """Read the type.

        Raises:
            UnsupportedRopeError: it is unknown.
        """
        self.rest = {name: value for name, value in parameters.items() if value is not None}
        named = self.rest.pop("type", None)
        self.name = self.rest.pop("rope_type", None) or named or "default"
        self.kind = {"su": "longrope", "mrope": "default"}.get(self.name, self.name) if _is(self.name, str) else ""
        if self.kind not in KINDS:
            raise UnsupportedRopeError(
                f"unknown rope_type {self.name!r:.200}; expected mrope, su or {', '.join(KINDS)}"
            )

    def _take(self, name: str, default: Any) -> Any:
        if name not in self.rest and default is None:
            raise UnsupportedRopeError(
                f"rope_type {self.name!r:.200} needs {name!r:.200}; got only {sorted(self.rest)!r:.200}"
            )
        return self.rest.pop(name, default)

    def number(self, name: str, default: float | None = None, *, or_zero: bool = False) -> float:
        """A number above 0 that f32 can hold; the default also for 0, where 0 counts as absent."""
        value = self._take(name, default)
        if not is_positive(value) and not (or_zero and _is(value, int, float) and value == 0):
            raise UnsupportedRopeError(f"{name} is {value!r:.200}; expected a finite number above 0")
        return float(default if default and not value else value)

    def length(self, name: str, default: int) -> int:
        """A number of positions."""
        value = self._take(name, default)
        if not is_positive(value) or value != int(value) or value < 2:
            raise UnsupportedRopeError(f"{name} is {value!r:.200}; expected a whole number of positions, at least 2")
        return int(value)

    def flag(self, name: str, default: bool) -> bool:
        """A switch."""
        value = self._take(name, default)
        if not isinstance(value, bool):
            raise UnsupportedRopeError(f"{name} is {value!r:.200}; expected true or false")
        return value

    def factors(self, name: str, count: int) -> np.ndarray:
        """A list of so many numbers above 0, f32."""
        values = self._take(name, None)
        if not _is(values, list, tuple) or len(values) != count or not all(map(is_positive, values)):
            raise UnsupportedRopeError(
                f"{name} is {values!r:.200}; expected {count} finite numbers above 0, one for each pair"
            )
        return np.asarray(values, np.float32)

    def sections(self, name: str) -> tuple[int, ...] | None:
        """How many pairs each position axis turns, None if that is not given."""
        values = self.rest.pop(name, None)
        if values is None:
            return None
        if not _is(values, list, tuple) or not values or not all(_is(value, int) and value >= 0 for value in values):
            raise UnsupportedRopeError(f"{name} is {values!r:.200}; expected how many pairs each position axis turns")
        return tuple(values)

    def close(self) -> None:
        """Refuse what was not taken."""
        if self.rest:
            raise UnsupportedRopeError(f"unknown fields for rope_type {self.name!r:.200}: {sorted(self.rest)!r:.200}")


def _is(value: Any, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
    """Whether a value read from JSON is a number above 0 that f32 can hold, neither rounded to 0 nor to infinity."""
    limits = np.finfo(np.float32)
    return _is(value, int, float) and float(limits.tiny) <= value <= float(limits.max)


def _default(given: Parameters, rotary_dim: int, theta: float, max_positions: int) -> tuple[np.ndarray, float]:
    return inverse_frequencies(rotary_dim, theta), 1.0


def _linear(given: Parameters, rotary_dim: int, theta: float, max_positions: int) -> tuple[np.ndarray, float]:
    return inverse_frequencies(rotary_dim, theta) / np.float32(given.number("factor")), 1.0


def _dynamic(given: Parameters, rotary_dim: int, theta: float, max_positions: int) -> tuple[np.ndarray, float]:
    given.number("factor")  # of the base beyond max_positions, where alone it counts
    given.length(
        "original_max_position_embeddings", max_positions
    )  # once meant by it; transformers 5 has no use for it
    return inverse_frequencies(rotary_dim, theta), 1.0


def _llama3(given: Parameters, rotary_dim: int, theta: float, max_positions: int) -> tuple[np.ndarray, float]:
    low = given.number("low_freq_factor")
    high = given.number("high_freq_factor")
    if high <= low:
        raise UnsupportedRopeError(f"high_freq_factor is {high}; expected more than low_freq_factor, {low}")
    original = given.length("original_max_position_embeddings", max_positions)
    frequencies = llama3_frequencies(
        rotary_dim, theta, factor=given.number("factor"), low=low, high=high, original_length=original
    )
    return frequencies, 1.0


def _yarn(given: Parameters, rotary_dim: int, theta: float, max_positions: int) -> tuple[np.ndarray, float]:
    if theta == 1:
        raise UnsupportedRopeError("rope_theta is 1: every pair turns as fast, so YaRN cannot tell them apart")
    factor = given.number("factor")
    frequencies = yarn_frequencies(
        rotary_dim,
        theta,
        factor=factor,
        original_length=given.length("original_max_position_embeddings", max_positions),
        beta_fast=given.number("beta_fast", 32.0, or_zero=True),
        beta_slow=given.number("beta_slow", 1.0, or_zero=True),
        truncate=given.flag("truncate", True),
    )
    mscales = (given.number(name, 0.0, or_zero=True) for name in ("mscale", "mscale_all_dim"))
    scale = given.number("attention_factor", yarn_scale(factor, *mscales))
    return frequencies, scale


def _longrope(given: Parameters, rotary_dim: int, theta: float, max_positions: int) -> tuple[np.ndarray, float]:
    original = given.length("original_max_position_embeddings", max_positions)
    factor = given.number("factor", max_positions / original)
    scale = given.number("attention_factor", longrope_scale(factor, original))
    pairs = (rotary_dim + 1) // 2
    if "long_factor" in given.rest:
        given.factors("long_factor", pairs)  # beyond the original length
    short = given.factors("short_factor", pairs)
    return np.float32(1) / (short * _wavelengths(rotary_dim, theta)), scale


KINDS: dict[str, Callable[[Parameters, int, float, int], tuple[np.ndarray, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
"""By name: parameters, rotary dims, theta and declared length, to inverse frequencies f32[R/2] and cos/sin scale."""
