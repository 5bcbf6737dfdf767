"""Images of Idefics3 and SmolVLM2: tiles, each a block of tokens behind its place, and the whole image last."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from models.architecture import Config, Encode
from models.hub.chat import ChatTemplate
from models.media.images import check_image_size
from models.media.spans import Span
from models.media.still import ImageMedium
from models.ports.idefics3.images import ImageConfig, tiles_of

FENCE = "<fake_token_around_image>"
WHOLE = "<global-img>"


def place_of(row: int, column: int) -> str:
    """The control token before a tile; counted from 0 here, and from 1 in it."""
    return f"<row_{row + 1}_col_{column + 1}>"


@dataclass(frozen=True)
class TileMedium(ImageMedium):
    """Images: ``<fake_token_around_image><row_1_col_1>`` and a tile's tokens, and so on, a line for each row.

    What stands between two tiles is made into tokens in one piece: the two line breaks before the whole image are one
    token of most tokenizers.
    """

    def settings(self, preprocessing: Mapping[str, Any], config: Config) -> ImageConfig:
        """See `models.architecture.Medium`."""
        settings = super().settings(preprocessing, config)
        check_image_size(settings.tile, config.vision.image_size)
        return settings

    def spans(
        self, item: Image.Image, settings: ImageConfig, config: Config, chat: ChatTemplate, encode: Encode
    ) -> Sequence[Span]:
        """See `models.architecture.Medium`.

        Raises:
            TokenizerError: the tokenizer has no token for a tile's place.
        """
        tiles, rows, columns = tiles_of(item, settings)
        places = [place_of(row, column) for row in range(rows) for column in range(columns)]
        spans = []
        for number, (tile, place) in enumerate(zip(tiles, [*places, WHOLE], strict=True)):
            chat.token(place)  # refuses a tokenizer without it
            breaks = "\n" if number and number % columns == 0 else ""
            breaks += "\n" * (number > 0 and place == WHOLE)
            spans += self.tile(f"{breaks}{FENCE}{place}", tile, settings, config, chat, encode)
        return [*spans, Span(chat.ids(FENCE))]

    def tile(
        self,
        before: str,
        tile: Image.Image,
        settings: ImageConfig,
        config: Config,
        chat: ChatTemplate,
        encode: Encode,
    ) -> tuple[Span, Span]:
        """The text before a tile, and its tokens.

        Raises:
            TokenizerError: the tokenizer does not part text from images.
        """
        chat.token(FENCE)
        cut = self.preprocess(tile, settings)
        plan = self.plan(*cut.grid[1:], config.vision)
        ids = [config.placeholders["image"]] * config.vision.tokens
        return Span(chat.ids(before)), Span(ids, encode(cut.patches, plan))
