"""The thinker of Qwen3-Omni: Qwen3-VL with experts, and an audio tower that reads windows of eight seconds."""
