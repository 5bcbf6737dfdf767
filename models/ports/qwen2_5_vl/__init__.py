"""Qwen2.5-VL: GQA with qkv bias, M-RoPE, and a vision tower with windowed and full attention."""
