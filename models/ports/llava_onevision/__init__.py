"""LLaVA-OneVision: a Qwen2, and SigLIP over tiles that are stitched, with a learned token at the end of each row."""
