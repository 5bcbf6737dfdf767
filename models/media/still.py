"""Still images as a medium: each is one block of tokens, all from one run of the vision tower."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from PIL import Image

from models.blocks.params import Params
from models.blocks.vit import pad_patches
from models.hub.chat import ChatTemplate
from models.media.images import VERSION, ImagePatches, to_rgb
from models.media.spans import Features, Span


class ImageItems:
    """What a medium of images says of its items: a part of one."""

    kind: str

    def reads(self, item: Any) -> bool:
        """See `models.architecture.Medium`."""
        return isinstance(item, Image.Image | np.ndarray)

    def normal(self, item: Image.Image | np.ndarray) -> Image.Image:
        """The upright RGB image.

        Raises:
            ImageError: it cannot be encoded; the message says why.
        """
        return to_rgb(item)

    def digested(self, item: Image.Image, settings: Any) -> tuple[str, str, bytes]:
        """See `models.architecture.Medium`."""
        return f"{self.kind}:v{VERSION}", str(item.size), item.tobytes()

    def cut(self, item: Image.Image, settings: Any, config: Any, tokens: int) -> Sequence[Image.Image]:
        """See `models.architecture.Medium`; an image stays whole, for its patches see one another."""
        return (item,)


@dataclass(frozen=True)
class ImageMedium(ImageItems):
    """The images of a port whose chat template writes one placeholder an image.

    Attributes:
        settings_from_hf: ``preprocessor_config.json`` and the tower's patch size to how images become patches.
        preprocess: an image and these settings to patches and their grid.
        declared: the tower's configuration to its parameters.
        plan: rows and columns of patches, and the tower's configuration, to the layout that ``embed`` takes.
        embed: parameters, the tower's configuration, patches and layout to [M, E], or to `Features` of as many rows
            where the tower has outputs for inner layers too; zero from ``plan.tokens`` on.
        positions: for position axes of its own: rows and columns of patches, and the tower's configuration, to the
            block's positions f32[A, n], counted from where it begins, and how far behind that the next span begins.
        reads_embeddings: whether ``embed`` reads the language model's embeddings too, as ``params["embeddings"]``.
    """

    settings_from_hf: Callable[[Mapping[str, Any], int], Any]
    preprocess: Callable[[Image.Image, Any], ImagePatches]
    declared: Callable[[Any], Params]
    plan: Callable[[int, int, Any], Any]
    embed: Callable[[Params, Any, Any, Any], jax.Array | Features]
    positions: Callable[[int, int, Any], tuple[np.ndarray, float]] | None = None
    reads_embeddings: bool = False
    kind: str = "image"
    tower: str = "vision"
    items: str = "images (a file, a PIL image or uint8[H, W, 3])"

    def settings(self, preprocessing: Mapping[str, Any], config: Any) -> Any:
        """See `models.architecture.Medium`."""
        return self.settings_from_hf(preprocessing, config.towers[self.tower].patch_size)

    def declaration(self, tower: Any) -> Params:
        """See `models.architecture.Medium`."""
        return self.declared(tower)

    def spans(
        self, item: Image.Image, settings: Any, config: Any, chat: ChatTemplate, encode: Callable[[Any, Any], Features]
    ) -> Sequence[Span]:
        """See `models.architecture.Medium`."""
        tower = config.towers[self.tower]
        cut = self.preprocess(item, settings)
        _, rows, columns = cut.grid
        plan = self.plan(rows, columns, tower)
        features = encode(pad_patches(cut.patches, plan), plan)
        ids = [config.placeholders[self.kind]] * int(plan.tokens)
        positions, advance = (None, None) if self.positions is None else self.positions(rows, columns, tower)
        return (Span(ids, features, positions, advance),)

    def encode(self, params: Params, tower: Any, inputs: jax.Array, plan: Any) -> Features:
        """See `models.architecture.Medium`."""
        made = self.embed(params, tower, inputs, plan)
        return made if isinstance(made, Features) else Features(made)
