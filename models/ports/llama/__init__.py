"""Text-only language models of the Llama family: Llama, Mistral, Qwen2, Qwen3 and SmolLM3."""
