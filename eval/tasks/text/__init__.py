"""Tasks on real text for language models: known text that goes on behind the window, read token by token."""
