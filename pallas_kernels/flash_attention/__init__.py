"""flash_attention: attention to one part of the keys by a kernel that JAX keeps."""
