"""What users name as a file, whatever it is: it never blocks, and what is no file is named."""

import os
import socket

import pytest
from PIL import Image, ImageFile

from models.media import files, frames, pictures
from models.media.files import MediaFileError
from models.media.pdf import page_count
from models.media.pictures import ImageFormatError, open_item, to_rgb
from tests.pictures import picture


@pytest.fixture
def others(tmp_path):
    """Paths of what is no regular file, for each suffix, with what the message says."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(tmp_path / "socket"))
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    kinds = {"folder": "a folder", "pipe": "a named pipe", "socket": "a socket", "zero": "a device", "loop": "opened"}
    found = []
    for suffix in (".png", ".txt", ".pdf"):
        for name, message in kinds.items():
            path = tmp_path / f"{name}{suffix}"
            path.symlink_to(name)
            found.append((path, message))
    return found


def test_what_is_no_file_is_named_and_not_waited_for(others):
    for path, message in others:
        with pytest.raises(MediaFileError, match=rf"{path.name} .*{message}"):
            page_count(path) if path.suffix == ".pdf" else open_item(path)
        assert frames.frame_count(path) == 1
        with pytest.raises(MediaFileError, match=message):
            next(frames.image_frames(path))


@pytest.mark.parametrize("suffix", [".png", ".txt"])
def test_a_link_without_a_file_is_named(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=rf"a\{suffix} is a link to nowhere, which does not exist"):
        open_item(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"there is no file .*a\{suffix}"):
        open_item(path)


def test_a_long_text_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes("ä\r\nb\rc".encode())
    assert open_item(tmp_path / "a.txt") == "ä\nb\nc"
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 7)
    assert open_item(tmp_path / "a.txt") == "ä\nb\nc"
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 6)
    with pytest.raises(MediaFileError, match=r"a\.txt is longer than 6 bytes"):
        open_item(tmp_path / "a.txt")


def test_only_formats_that_are_meant_are_read(tmp_path, monkeypatch):
    """EPS would start Ghostscript, whatever the file is called."""
    eps = tmp_path / "a.png"
    picture(9, 9).save(eps, "EPS")
    picture(9, 9).save(tmp_path / "a.tga")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    for path in (eps, tmp_path / "a.tga"):
        with pytest.raises(ImageFormatError, match="no image that Pillow can read here; expected an image"):
            open_item(path)
        assert frames.frame_count(path) == 1
    with Image.open(eps) as lazy, pytest.raises(ImageFormatError, match="EPS file that is not decoded yet"):
        to_rgb(lazy)
    with Image.open(tmp_path / "a.tga") as chosen:  # whoever opens an image says how it is read
        assert to_rgb(chosen).tobytes() == picture(9, 9).tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "F", "I"])
def test_bands_have_the_pixels_of_the_whole(monkeypatch, mode):
    image = picture(40, 30, mode)
    whole = to_rgb(image)
    monkeypatch.setattr(pictures, "BAND", 41)
    assert to_rgb(image).tobytes() == whole.tobytes()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_every_frame_is_looked_at_before_it_is_decoded(tmp_path, monkeypatch, kind):
    path = tmp_path / f"a.{kind.lower()}"
    later = (30, 30) if kind == "TIFF" else (20, 20)
    picture(20, 20).save(path, kind, save_all=True, append_images=[picture(*later).rotate(180)])
    monkeypatch.setattr(pictures, "MAX_PIXELS", 400)
    if kind == "TIFF":
        with pytest.raises(pictures.ImageSizeError, match=r"page 2 is too large: 30 x 30 pixels"):
            list(frames.image_frames(path))
    else:
        assert len(list(frames.image_frames(path))) == 2
    monkeypatch.setattr(pictures, "MAX_PIXELS", 399)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(pictures.ImageSizeError, match="20 x 20 pixels"):
        list(frames.image_frames(path))


def test_a_text_that_is_not_utf_8_names_the_byte_and_what_makes_it_so(tmp_path):
    (tmp_path / "old.txt").write_bytes("one line\ncaf\xe9\n".encode("latin-1"))
    (tmp_path / "wide.txt").write_bytes("one line".encode("utf-16"))
    with pytest.raises(ImageFormatError, match=r"old\.txt .* byte 0xE9 at position 12, in line 2; .*iconv -f cp1252"):
        open_item(tmp_path / "old.txt")
    with pytest.raises(ImageFormatError, match=r"wide\.txt is text in UTF-16.*iconv -f utf-16"):
        open_item(tmp_path / "wide.txt")


@pytest.mark.parametrize("name", ["page.png", "page.txt", "page.pdf"])
def test_a_pointer_of_git_lfs_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    with pytest.raises(MediaFileError, match=rf"{name} is a Git-LFS pointer.*git lfs pull"):
        open_item(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("page.png", b"", "is empty: it has 0 bytes"),
        ("page.pdf", b"%PDF-1.4", r"each page is an item: models\.media\.pdf\.pdf_pages"),
        ("clip.mp4", b"\0\0\0\x20ftypisom", r"kamera_jax\.Video\(frames, times\)"),
        ("table.csv", b"a,b\n", r"path\.read_text\(\)"),
    ],
)
def test_a_file_of_another_kind_says_what_to_do(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageFormatError, match=message):
        open_item(tmp_path / name)
