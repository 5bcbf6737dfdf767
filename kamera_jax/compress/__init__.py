"""Codecs: KV in fewer bits. Pure functions over KV; which of them a chunk went through is its codec's name."""
