"""Reading a folder in Hugging Face's hub format: configuration, weights, tokenizer, chat template."""
