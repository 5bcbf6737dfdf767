"""All frames of an animated image, or pages of a file of several, as images."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from models.media import pictures
from models.media.files import opened


def frame_count(path: Path) -> int:
    """How many frames or pages an image file has (GIF, APNG, WebP, TIFF, …); 1 where it cannot be read.

    Raises:
        FileNotFoundError: there is no such file.
    """
    try:
        with opened(path) as file, pictures.opened_image(file, str(path)) as image:
            return pictures.frame_count(image)
    except FileNotFoundError:
        raise
    except Exception:  # Pillow raises what it likes; who reads the file says what is wrong with it
        return 1


def image_frames(path: Path) -> Iterator[Image.Image]:
    """The frames or pages of an image file one after another, as a viewer shows them: RGB, upright, over white.

    A file of one picture gives that one.

    Raises:
        ImageFormatError, DamagedImageError, ImageSizeError, EmptyImageError: it cannot be read; the message says why.
        MediaFileError: it is no regular file.
        FileNotFoundError: there is no such file.
    """
    name = str(path)
    with opened(path) as file:
        try:
            with pictures.opened_image(file, name) as image:
                for index in range(pictures.frame_count(image)):
                    name = f"{path}, page {index + 1}" if index else str(path)
                    image.seek(index)
                    pictures.check_pixels(image, name)
                    image.load()
                    yield pictures.to_rgb(image)
        except Exception as error:
            pictures.refuse(error, name)
