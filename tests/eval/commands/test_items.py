import pytest
from PIL import Image

from eval.commands.items import NoItemsError, check_with_text, is_path, natural, sources
from models.media.pdf import NoTextError, PdfError
from tests.pictures import pdf_text


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


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_frames_of_an_image_are_pages_where_asked_for(tmp_path, kind):
    frames = [Image.new("RGB", (28, 28), (0, 90 * i, 0)) for i in range(3)]
    path = tmp_path / f"film.{kind}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **{"lossless": True} if kind == "webp" else {})
    Image.new("RGB", (28, 28)).save(tmp_path / "single.png")
    (film, single) = sources([path, tmp_path / "single.png"])
    assert (film.count, film.left_out, single.left_out) == (1, 2, 0)
    assert film.note == f"only the first of 3 frames is read, with --frames all each: film.{kind}"
    assert single.note is None
    [(name, first)] = film.items()  # which warns of nothing: the note does
    assert name == f"film.{kind}" and first.getpixel((0, 0)) == (0, 0, 0)
    film, single = sources([path, tmp_path / "single.png"], frames="all")
    assert (film.count, film.left_out, film.note) == (3, 0, None)
    given = list(film.items())
    assert [name for name, _ in given] == [f"film.{kind}, page {i}" for i in (1, 2, 3)]
    assert [page.getpixel((0, 0)) for _, page in given] == [(0, 0, 0), (0, 90, 0), (0, 180, 0)]
    assert list(single.items()) == [("single.png", tmp_path / "single.png")]


def test_nothing_to_encode_is_named(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoItemsError, match="empty has no image"):
        sources([tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match="missing"):
        sources([tmp_path / "missing"])
    (folder / "e.pdf").write_bytes(b"cut")
    found = sources([folder])
    assert [source.path.name for source in found] == ["a.jpg", "c.txt", "b.PNG", "e.pdf"]
    with pytest.raises(PdfError, match=r"e\.pdf"):
        list(found[3].items())
    [(name, error)] = [(part.name, part.item) for part in found[3].parts()]
    assert name == "e.pdf" and isinstance(error, PdfError)


def test_numbers_in_names_count_by_their_value(tmp_path):
    wanted = ["scan 2/page-1.png", "scan 2/page-02.png", "scan 2/page-2.png", "scan 2/Page-10.png"]
    wanted += ["scan 10/page-1.png", "scan 10/page-9.txt", "scan 10/v1.2/a.md", "scan 10/v1.10/a.md"]
    wanted += ["x9" + "9" * 100 + ".txt", "x10" + "0" * 100 + ".txt"]
    for name in reversed(wanted):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("text")
    found = [source.path.relative_to(tmp_path).as_posix() for source in sources([tmp_path])]
    assert found == wanted
    assert sorted(["b", "a10", "", "a9", "7", "10", "9" * 5000], key=natural) == [
        "",
        "7",
        "10",
        "9" * 5000,
        "a9",
        "a10",
        "b",
    ]


def test_pages_of_a_file_are_named_behind_a_colon(tmp_path):
    shades = [Image.new("RGB", (28, 28), (0, 40 * i, 0)) for i in range(4)]
    shades[0].save(tmp_path / "e.pdf", save_all=True, append_images=shades[1:], resolution=72)
    shades[0].copy().save(tmp_path / "film.tiff", save_all=True, append_images=[each.copy() for each in shades[1:]])
    shades[0].copy().save(tmp_path / "single.png")
    shades[1].copy().save(tmp_path / "odd.png:2", format="PNG")
    for name in ("e.pdf", "film.tiff"):
        for asked, pages in (("1", [1]), ("3", [3]), ("4-4", [4]), ("2-3", [2, 3]), ("1-4", [1, 2, 3, 4])):
            [source] = sources([tmp_path / f"{name}:{asked}"], dpi=72)
            parts = list(source.parts())
            assert [part.name for part in parts] == [f"{name}, page {page}" for page in pages]
            assert [(part.origin.file, part.origin.page) for part in parts] == [
                (str(tmp_path / name), page) for page in pages
            ]
            assert [part.item.getpixel((5, 5))[1] // 38 for part in parts] == [page - 1 for page in pages]
        for asked, words in (
            ("0", "no page 0"),
            ("5", "no page 5: it has 4 pages"),
            ("3-5", "no pages 3 to 5"),
            ("3-2", "no pages 3 to 2"),
        ):
            with pytest.raises(NoItemsError, match=words):
                sources([tmp_path / f"{name}:{asked}"])
        assert is_path(str(tmp_path / f"{name}:9"))
    [(name, path)] = [pair for source in sources([tmp_path / "single.png:1"]) for pair in source.items()]
    assert (name, path) == ("single.png", tmp_path / "single.png")
    [source] = sources([tmp_path / "odd.png:2"])  # a file of this very name
    assert source.path.name == "odd.png:2"
    for text in ("none.pdf:3", "abcdef", "a:b"):
        assert not is_path(str(tmp_path / text))
        with pytest.raises(FileNotFoundError):
            sources([tmp_path / text])
    with pytest.raises(NoItemsError, match="is a folder, which has no pages"):
        sources([type(tmp_path)(f"{tmp_path}:2")])


def test_pages_with_their_texts(folder, tmp_path):
    path = tmp_path / "text.pdf"
    path.write_bytes(pdf_text([b"the star"], [], [b"the moon"]))
    (whole,) = sources([path], dpi=72, with_text=True)
    first, empty, last = whole.parts()
    assert [each.origin.note for each in (first, empty, last)] == ["with its text", None, "with its text"]
    assert first.name == "text.pdf, page 1, with its text" and first.item[1] == "the star" and first.note is None
    assert empty.item.size == (84, 56) and empty.note == "it has no text; its image alone is read"
    assert last.item[1] == "the moon"
    said = []
    assert len(list(whole.items(report=said.append))) == 3
    assert said == ["text.pdf, page 2: it has no text; its image alone is read"]
    (some,) = sources([tmp_path / "text.pdf:3"], dpi=72, with_text=True)
    assert [part.item[1] for part in some.parts()] == ["the moon"]
    (plain,) = sources([path], dpi=72)
    assert [part.item.size for part in plain.parts()] == [(84, 56)] * 3

    found = sources([folder], dpi=72, with_text=True)  # what is no PDF file is read as it is
    check_with_text(found, with_text=True)
    scanned = next(each for each in found if each.path.name == "e.pdf")
    assert isinstance(scanned.error, NoTextError)
    for text in ("a.jpg", "c.txt"):
        files = sources([folder / text], with_text=True)
        check_with_text(files, with_text=False)
        with pytest.raises(NoItemsError, match=rf"--with-text is about pages of PDF files; among .*{text}.* is none"):
            check_with_text(files, with_text=True)
    with pytest.raises(NoItemsError, match="keys of chunks"):
        check_with_text([], with_text=True)
