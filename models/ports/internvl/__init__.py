"""InternVL3 and 3.5, as transformers has them: InternViT over tiles, and Qwen2, Qwen3 or Llama."""
