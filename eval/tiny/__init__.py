"""The embedded model: its pages of glyphs, its vocabulary and its training."""
