"""kamera-smol-vl, as `models.vlm` serves it."""

from models.architecture import Architecture
from models.media.still import ImageMedium
from models.ports.smol_vl import images, tower
from models.ports.smol_vl.config import MODEL_TYPE, config_from_hf
from models.ports.smol_vl.weights import weight_table

IMAGES = ImageMedium(
    images.ImageConfig.from_hf,
    images.preprocess_image,
    tower.tower_declaration,
    tower.plan,
    tower.embed,
    items="pages of text (a file, a PIL image or uint8[H, W, 3], as models.ports.smol_vl.pages draws them)",
    reads_embeddings=True,
)

ARCHITECTURE = Architecture(MODEL_TYPE, config_from_hf, weight_table, (IMAGES,))
