"""All frames of an animated image, or pages of a file, as images."""

import numpy as np
import pytest
from PIL import Image

from models.media.frames import frame_count, image_frames
from models.media.pictures import DamagedImageError, ImageFormatError
from tests.pictures import picture


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_frames_come_in_order_as_a_viewer_shows_them(tmp_path, kind):
    frames = [Image.new("RGB", (8, 6), (80 * i, 0, 255 - 80 * i)) for i in range(3)]
    frames[1].paste((0, 80, 0), (2, 2, 4, 4))
    path = tmp_path / "film"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], **{"lossless": True} if kind == "WEBP" else {})
    given = list(image_frames(path))
    assert frame_count(path) == len(given) == 3
    for frame, expected in zip(given, frames, strict=True):
        assert frame.mode == "RGB" and not getattr(frame, "is_animated", False)
        np.testing.assert_array_equal(frame, expected)


def test_pages_of_a_tiff_keep_their_sizes_modes_and_orientations(tmp_path):
    from PIL import TiffImagePlugin

    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    pages = [picture(9, 5), Image.fromarray(ramp), picture(7, 4)]
    with TiffImagePlugin.AppendingTiffWriter(tmp_path / "scan.tiff", True) as writer:
        for i, page in enumerate(pages):
            exif = Image.Exif()
            exif[274] = 6 if i == 2 else 1
            page.save(writer, "TIFF", exif=exif)
            writer.newFrame()
    first, deep, turned = image_frames(tmp_path / "scan.tiff")
    np.testing.assert_array_equal(first, pages[0])
    np.testing.assert_array_equal(np.asarray(deep)[..., 0], np.arange(256).reshape(16, 16))
    np.testing.assert_array_equal(turned, pages[2].transpose(Image.Transpose.ROTATE_270))


def test_one_picture_is_one_frame(tmp_path):
    picture(9, 5).save(tmp_path / "a.png")
    (frame,) = image_frames(tmp_path / "a.png")
    np.testing.assert_array_equal(frame, picture(9, 5))


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        frame_count(tmp_path / "none.gif")
    with pytest.raises(FileNotFoundError, match=r"none\.gif"):
        list(image_frames(tmp_path / "none.gif"))
    (tmp_path / "a.gif").write_bytes(b"no film")
    assert frame_count(tmp_path / "a.gif") == 1
    with pytest.raises(ImageFormatError, match=r"a\.gif is no image"):
        list(image_frames(tmp_path / "a.gif"))
    frames = [picture(60 + i, 50).resize((60, 50)) for i in range(4)]
    frames[0].save(tmp_path / "b.tiff", save_all=True, append_images=frames[1:])
    whole = (tmp_path / "b.tiff").read_bytes()
    (tmp_path / "b.tiff").write_bytes(whole[: len(whole) - 5000])
    with pytest.raises(DamagedImageError, match=r"b\.tiff"):
        list(image_frames(tmp_path / "b.tiff"))
