import pytest
from PIL import Image

from eval.items import NoItemsError, sources
from models.pdf import PdfError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    Image.new("RGB", (28, 28)).save(tmp_path / "deep" / "b.PNG")
    Image.new("RGB", (28, 28)).save(tmp_path / "a.jpg")
    (tmp_path / "c.txt").write_text("text")
    (tmp_path / "d.csv").write_text("no item")
    Image.new("RGB", (28, 56)).save(
        tmp_path / "e.pdf", save_all=True, append_images=[Image.new("RGB", (28, 28))], resolution=72
    )
    return tmp_path


def test_a_folder_gives_what_can_be_encoded_by_name(folder):
    found = sources([folder], dpi=72)
    assert [source.path.name for source in found] == ["a.jpg", "c.txt", "b.PNG", "e.pdf"]
    assert [source.count for source in found] == [1, 1, 1, 2]
    items = [item for source in found for item in source.items()]
    assert [name for name, _ in items] == ["a.jpg", "c.txt", "b.PNG", "e.pdf, page 1", "e.pdf, page 2"]
    assert [item.size for _, item in items[3:]] == [(28, 56), (28, 28)]


def test_what_is_named_is_taken_whatever_its_suffix(folder):
    assert [source.path.name for source in sources([folder / "d.csv", folder / "a.jpg"])] == ["d.csv", "a.jpg"]


def test_nothing_to_encode_is_named(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoItemsError, match="empty holds no image"):
        sources([tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match="missing"):
        sources([tmp_path / "missing"])
    (folder / "e.pdf").write_bytes(b"cut")
    with pytest.raises(PdfError, match=r"e\.pdf"):
        sources([folder])
