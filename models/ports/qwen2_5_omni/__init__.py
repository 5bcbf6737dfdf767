"""The thinker of Qwen2.5-Omni: Qwen2.5-VL, and an audio tower that reads pieces of two seconds."""
