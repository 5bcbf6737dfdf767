"""Which chunks of a library a question is about."""
