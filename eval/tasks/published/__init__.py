"""Published benchmarks: their official files, cut at natural borders, and scored as their official scripts score."""
