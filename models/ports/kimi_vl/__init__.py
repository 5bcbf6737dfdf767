"""Kimi-VL: multi-head latent attention, a mixture of experts, and the vision tower MoonViT."""
