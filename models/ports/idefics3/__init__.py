"""Idefics3 and SmolVLM2: SigLIP over tiles, a pixel shuffle, and a Llama."""
