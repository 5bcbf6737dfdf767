"""Qwen3-VL, dense and with experts: QK-norm, interleaved M-RoPE, DeepStack, and videos whose times are text."""
