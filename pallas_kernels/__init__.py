"""Array kernels of the reuse operator: arrays in, arrays out."""

from pallas_kernels.chunk_attention.api import chunk_attention
from pallas_kernels.merge_states import merge_states
from pallas_kernels.relocate_patch.api import relocate_patch, relocate_patch_into

__all__ = ["chunk_attention", "merge_states", "relocate_patch", "relocate_patch_into"]
