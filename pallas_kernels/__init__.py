"""Array kernels of the reuse operator: arrays in, arrays out."""

from pallas_kernels.relocate_patch.api import relocate_patch

__all__ = ["relocate_patch"]
