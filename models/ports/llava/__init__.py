"""LLaVA-1.5: a Llama with multi-head attention, and the vision tower of CLIP."""
