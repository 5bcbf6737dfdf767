"""How large a patch is, as it is written behind ``patch:``; one grammar for every command. Nothing here imports JAX."""

import re
from dataclasses import dataclass

FORMS = (
    "patch:M with a rank M of at least 1, as in patch:12; patch:P% with a share of the bytes above 0 and up to 100, as "
    "in patch:10%; patch:SIZE with bytes, as in patch:64KiB; patch:energy=E with a share of the change above 0 and up "
    "to 1, as in patch:energy=0.9; patch:bytes=S with a share of the bytes above 0 and up to 1, as in patch:bytes=0.25"
)
"""What may be written, for messages."""

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_BYTES = re.compile(r"(\d+(?:\.\d+)?)([kmg]i?b|b)", re.IGNORECASE)
_MOST = 2**31 - 1


class PatchSizeError(ValueError):
    """A size of patches that cannot be read."""


@dataclass(frozen=True)
class PatchSize:
    """The size of a method's patches: one of these, or none for what `kamera_jax.form_patch` takes by default.

    Attributes:
        rank: components in every layer.
        energy: share of every layer's squared change to keep.
        share: of the chunk's bytes, for the components of most energy, whatever their layer.
        even_share: of the chunk's bytes, for as many components in every layer.
        max_bytes: bytes of each patch, for the components of most energy, whatever their layer.
    """

    rank: int | None = None
    energy: float | None = None
    share: float | None = None
    even_share: float | None = None
    max_bytes: int | None = None


def patch_size(text: str) -> PatchSize:
    """The size that is written behind ``patch:``, without the colon; empty for the default.

    Raises:
        PatchSizeError: it cannot be read.
    """
    if not text:
        return PatchSize()
    kind, given, value = text.partition("=")
    if text.endswith("%"):
        percentage = _share(text[:-1], 100, "% needs a percentage (above 0, up to 100), as in patch:10%")
        return PatchSize(share=percentage / 100)
    if given and kind == "energy":
        return PatchSize(energy=_share(value, 1, "energy needs a share (above 0, up to 1), as in patch:energy=0.9"))
    if given and kind == "bytes":
        return PatchSize(even_share=_share(value, 1, "bytes needs a share (above 0, up to 1), as in patch:bytes=0.25"))
    if match := _BYTES.fullmatch(text):
        most = int(float(match[1]) * _UNITS[match[2].lower()])
        if most < 1:
            raise PatchSizeError(f"patch:SIZE needs at least a byte, as in patch:64KiB; got {text!r}")
        return PatchSize(max_bytes=most)
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:20]) <= _MOST):
        raise PatchSizeError(f"patch needs a whole number of at least 1, as in patch:12; got {text!r}")
    return PatchSize(rank=int(text))


def _share(text: str, whole: int, needs: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= whole:
        raise PatchSizeError(f"patch:{needs}; got {text + (whole == 100) * '%'!r}")
    return share
