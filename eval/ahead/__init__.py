"""Programs of real models compiled for chips that are not here: what they keep, move and compute."""
