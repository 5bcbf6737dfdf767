"""What users hand in: images, pages and frames, as the pixels that towers read."""
