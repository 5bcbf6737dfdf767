"""What users hand in: images, pages and frames, as the pixels that towers read."""

from models.media.images import VERSION, open_item, to_rgb

__all__ = ["VERSION", "open_item", "to_rgb"]
