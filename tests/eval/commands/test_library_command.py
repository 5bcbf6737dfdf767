"""`kamera library` and `kamera ask --library`, and what they say of bad input."""

import json

import pytest
from rich.cells import cell_len

import kamera_jax as kj
from eval.commands import demo
from eval.commands.main import main
from tests.kamera_jax.library import made

QUESTION = "what colour is the flower?"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    demo.write_pages(folder)
    return [str(folder / f"{name}.png") for name in ("first", "second", "third")]


@pytest.fixture(scope="module")
def filled(pages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("library") / "lib"
    assert main(["encode", *pages, "--library", str(folder)]) == 0
    with kj.ChunkLibrary.open(folder, mode="a") as lib:
        first, second, _ = (lib.get(key) for key in lib.keys())
        factors = kj.patch.fit(second.kv, kj.KV(second.kv.rot * 2, second.kv.free), second.length, 2)
        import jax.numpy as jnp

        mass = jnp.zeros((5, 3))
        residual = jnp.zeros(5)
        lib.put(kj.Patch(factors, second.key, second.model, (first.key,), mass, residual, second.length, key="5" * 64))
    return folder


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """A library of pages of files with long names, two of which are alike but in their middle, and a patch."""
    folder = tmp_path_factory.mktemp("scanned")
    with kj.ChunkLibrary.open(folder / "lib", mode="a") as lib:
        for number, page in enumerate((1, 2, 10, 12)):
            origin = kj.Origin(f"scans/{LONG} 2025.pdf", page=page, encoded="2026-11-30T09:15:00Z")
            lib.put(made.chunk(number), origin=origin)
        lib.put(made.chunk(4), origin=kj.Origin(f"scans/{LONG} 2024.pdf", page=12))
        lib.put(made.chunk(5), origin=kj.Origin("[red]\x1b]0;title\x07日本語の報告書の長い長い名前です.png"))
        lib.put_many([made.chunk(6), made.patch(0), made.patch(7)])
    return folder / "lib"


LONG = "the quarterly report on everything that was sold in the year"


def test_rows_are_in_natural_order_and_keep_the_page(scanned, capsys, tmp_path):
    out = printed(capsys, "ls", scanned, "--json", tmp_path / "ls.json")
    lines = out.splitlines()[2:]
    pages = [line.rpartition(", page ")[2] for line in lines if ", page " in line]
    assert pages == ["12", "1", "2", "10", "12"]
    assert "2024.pdf, page 12" in lines[1] and lines[1].startswith(made.key_of(4)[:12])
    assert [line[:12] for line in lines[6:9]] == [made.key_of(6)[:12], *(made.patch(i).key[:12] for i in (0, 7))]
    assert "\x1b" not in out and "[red]" in lines[0] and all(cell_len(line) <= 80 for line in lines)
    items = json.loads((tmp_path / "ls.json").read_text())["items"]
    assert [item["origin"] and item["origin"]["page"] for item in items[1:6]] == [12, 1, 2, 10, 12]
    assert items[1]["origin"]["file"] == f"scans/{LONG} 2024.pdf" and items[6]["origin"] is None


def test_rows_are_searched_by_name(scanned, capsys):
    def keys(text):
        return [line[:12] for line in printed(capsys, "ls", scanned, text).splitlines()[2:] if line]

    long = [made.key_of(i)[:12] for i in (4, 0, 1, 2, 3)]
    assert keys("QUARTERLY") == [*long, made.patch(0).key[:12]] and keys("nothing") == []
    assert keys("2025.pdf, page 1") == [made.key_of(0)[:12], made.patch(0).key[:12]]  # and not page 10 and 12
    assert keys("scans/")[:5] == long and keys("報告書") == [made.key_of(5)[:12]]


def test_info_says_where_a_chunk_came_from(scanned, capsys, tmp_path):
    key = made.key_of(3)
    for arguments in ((scanned, key[:9]), (key[:9], scanned)):  # the key came first once
        out = printed(capsys, "info", *arguments, "--json", tmp_path / "info.json")
        assert "2026-11-30T09:15:00Z" in out and out.startswith(key) and "year 2025.pdf" in out
        origin = json.loads((tmp_path / "info.json").read_text())["origin"]
        assert (origin["file"], origin["page"]) == (f"scans/{LONG} 2025.pdf", 12)


def test_removing(scanned, capsys, tmp_path):
    import shutil

    root = tmp_path / "lib"
    shutil.copytree(scanned, root)
    with kj.ChunkLibrary.open(root, mode="a") as lib:
        before = {item.key: item.bytes for item in lib.items()}
    assert main(["library", "rm", str(root), made.key_of(1)[:8], "ffff00"]) == 1  # all or none
    assert "no key that begins with 'ffff00'" in capsys.readouterr().err
    keys = [made.key_of(0)[:8], made.patch(0).key, made.key_of(0), made.patch(7).key[:6]]
    out = printed(capsys, "rm", root, *keys, "--json", tmp_path / "rm.json")
    gone = [made.key_of(0), made.patch(0).key, made.patch(7).key]
    assert f"{gone[0][:12]}  removed with 1 patch  " in out and "25.pdf, page 1\n" in out
    assert "1 chunk and 2 patches removed" in out and f"kamera library gc {root}" in out
    result = json.loads((tmp_path / "rm.json").read_text())
    assert sorted(result["removed"]) == sorted(gone) and result["bytes"] == sum(before[key] for key in gone)
    lib = kj.ChunkLibrary.open(root)
    assert {item.key for item in lib.items()} == before.keys() - set(gone)
    out = printed(capsys, "rm", root, "--name", "2025.pdf, page 1", "--name", "2025.pdf")
    assert "3 chunks and 0 patches removed" in out
    lost = lib.info(made.key_of(4)).pack
    shutil.rmtree(root / "packs" / lost)
    assert "its pack was gone" in printed(capsys, "rm", root, made.key_of(4)[:8])
    assert kj.ChunkLibrary.open(root).stats().lost == 0


def test_exporting_and_importing(scanned, capsys, tmp_path):
    out = printed(capsys, "export", scanned, made.key_of(0)[:8], "--name", "日本語", "--to", tmp_path / "a.tar")
    assert out.startswith("2 chunks and 1 patch copied")
    whole = (tmp_path / "a.tar").read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:700], b"no tar", b""):
        (tmp_path / "broken.tar").write_bytes(broken)
        assert main(["library", "import", str(tmp_path / "never"), str(tmp_path / "broken.tar")]) == 1
        assert not (tmp_path / "never").exists(), "nothing half-written stays"
    capsys.readouterr()
    out = printed(capsys, "import", tmp_path / "new", tmp_path / "a.tar", "--json", tmp_path / "import.json")
    assert out.startswith("2 chunks and 1 patch copied")
    lib = kj.ChunkLibrary.open(tmp_path / "new")
    assert made.bits(lib.get(made.key_of(0))) == made.bits(made.chunk(0)) and lib.info(made.key_of(0)).origin.page == 1
    result = json.loads((tmp_path / "import.json").read_text())
    assert (result["chunks"], result["patches"], result["known"], result["failed"]) == (2, 1, 0, {})
    out = printed(capsys, "export", scanned, "--all", "--to", tmp_path / "new")
    assert out.startswith("5 chunks and 1 patch copied") and "3 were there already" in out


def test_what_cannot_be_copied_is_named(scanned, capsys, tmp_path):
    import shutil

    shutil.copytree(scanned, tmp_path / "lib")
    pack = kj.ChunkLibrary.open(tmp_path / "lib").info(made.key_of(2)).pack
    next((tmp_path / "lib" / "packs" / pack).glob("state/*.kv.rot/0.0.0.0")).write_bytes(b"")
    assert main(["library", "export", str(tmp_path / "lib"), "--all", "--to", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr()
    assert "is not as long as it was written" in shown.err and "1 could not be copied" in shown.err
    assert "6 chunks and 2 patches copied" in shown.out and kj.ChunkLibrary.open(tmp_path / "out").verify().ok


def printed(capsys, *arguments):
    assert main(["library", *map(str, arguments)]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    return out


def test_ls_info_verify_gc(filled, capsys, tmp_path):
    out = printed(capsys, "ls", filled, "--json", tmp_path / "ls.json")
    report = tmp_path / "ls.json"
    items = json.loads(report.read_text())["items"]
    assert "3 chunks and 1 patches" in out and len(items) == 4
    assert all(item["key"][:12] in out for item in items)
    patch = next(item for item in items if item["of"])
    for key in (patch["of"], patch["of"][:8], patch["key"]):
        out = printed(capsys, "info", key, filled, "--json", tmp_path / "info.json")
        told_of = json.loads((tmp_path / "info.json").read_text())
        assert told_of["patches"] == ([patch["key"]] if patch["of"].startswith(key) else [])
        assert told_of["key"].startswith(key) and told_of["key"] in out
    assert "as they were written" in printed(capsys, "verify", filled)
    assert "packs dropped" in printed(capsys, "gc", filled)
    lib = kj.ChunkLibrary.open(filled)
    assert lib.stats().chunks == 3 and lib.stats().patches == 1


def test_asking_about_stored_pages(filled, pages, capsys, tmp_path):
    main(["encode", *pages, "--library", str(filled)])
    keys = [line.split()[0] for line in capsys.readouterr().out.splitlines()[:3]]
    answers = []
    for items in (pages, keys, [keys[0][:10], pages[1], keys[2]]):
        arguments = [argument for item in items for argument in ("--item", item)]
        assert main(["ask", QUESTION, *arguments, "--library", str(filled)]) == 0
        answers.append(capsys.readouterr().out)
    assert len(set(answers)) == 1 and answers[0].strip()


def test_bad_input_is_named(filled, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, named in (
        (["library", "ls", str(tmp_path / "empty")], "is no library"),
        (["library", "gc", str(tmp_path / "empty")], "is no library"),
        (["library", "info", "zz", str(filled)], "no key that begins with 'zz'"),
        (["library", "info", str(filled), ""], "at least the first 4 are needed"),
        (["library", "rm", str(filled)], "name the keys"),
        (["library", "rm", str(filled), "0123456"], "no key that begins with '0123456'"),
        (["library", "rm", str(filled), "--name", "nowhere"], "no chunk of a file with 'nowhere' in its name"),
        (["library", "rm", str(tmp_path / "empty"), "0123456"], "is no library"),
        (["library", "export", str(filled), "--to", str(tmp_path / "out")], "everything with --all"),
        (["library", "export", str(filled), "--all", "--to", str(filled)], "is the library that is exported from"),
        (["library", "export", str(filled), "--all", "--to", str(tmp_path / "a.zip")], "compressed"),
        (["library", "import", str(filled), str(filled)], "is the library that is imported into"),
        (["library", "import", str(tmp_path / "new"), str(tmp_path / "none")], "no folder and no file"),
        (["library", "import", str(filled), __file__], "is no library as export writes one"),
        (["ask", "what?", "--item", "zz", "--library", str(filled)], "no key that begins with 'zz'"),
        (["encode", str(tmp_path / "none.png"), "--library", str(tmp_path / "new")], "none.png"),
    ):
        assert main(arguments) == 1
        message = capsys.readouterr().err
        assert named in message and "Traceback" not in message
    assert not (tmp_path / "new").exists() and not (tmp_path / "out").exists()
    assert kj.ChunkLibrary.open(filled).stats().chunks == 3


def test_damage_is_told(filled, capsys, tmp_path):
    import shutil

    shutil.copytree(filled, tmp_path / "lib")
    data = next((tmp_path / "lib" / "packs").glob("*/state/*.kv.rot/0.0.0.0"))
    payload = bytearray(data.read_bytes())
    payload[7] ^= 1
    data.write_bytes(payload)
    assert main(["library", "verify", str(tmp_path / "lib")]) == 1
    printed = capsys.readouterr()
    assert "is not as it was written" in printed.err and "NOT all there" in printed.out


def test_what_is_left_and_what_cannot_be_read_is_named(filled, capsys, tmp_path, monkeypatch):
    import shutil

    from kamera_jax.library.facts import Collected

    shutil.copytree(filled, tmp_path / "lib")
    for manifest in (tmp_path / "lib" / "packs").glob("*/manifest.json"):
        manifest.write_text("{}")
    assert main(["library", "ls", str(tmp_path / "lib")]) == 0
    shown = capsys.readouterr()
    assert "3 more cannot be read: see kamera library verify" in shown.err and "5" * 12 in shown.out
    done = Collected(1, 0, 10, 0, ("0" * 32,), ("1" * 32, "2" * 32))
    monkeypatch.setattr(kj.ChunkLibrary, "gc", lambda self: done)
    assert main(["library", "gc", str(tmp_path / "lib")]) == 0
    shown = capsys.readouterr()
    assert "2 packs left as they are for lack of room" in shown.err and "1 packs kept" in shown.err


def test_stats_count_by_storage_and_say_what_was_served(tmp_path, capsys):
    folder = tmp_path / "lib"
    with kj.ChunkLibrary.open(folder, mode="a") as lib:
        lib.put(made.chunk(0), origin=kj.Origin("a.pdf", encoded="2020-01-02T03:04:05Z"))
        lib.put_many([made.chunk(1), made.chunk(2), made.patch(0)])
        lib.put(made.chunk(3), storage="int8")
        gone = lib.info(made.key_of(2)).bytes
        lib.delete(made.key_of(2))
        with kj.Tiers(library=lib) as store:
            for number in (0, 1, 1, 9):
                store.find(made.key_of(number))
    out = printed(capsys, "stats", folder, "--json", tmp_path / "stats.json")
    found = json.loads((tmp_path / "stats.json").read_text())
    rows = {(row["kind"], row["storage"]): row["count"] for row in found["stored"]}
    assert rows == {("chunks", "exact"): 2, ("chunks", "int8"): 1, ("patches", "packed ranks"): 1}
    assert found["stats"]["deleted"] == 1 and found["stats"]["deleted_bytes"] == gone
    assert found["oldest"] == "2020-01-02T03:04:05Z" < found["newest"]
    assert found["served"]["library"] == 2 and found["served"]["device"] == found["served"]["missed"] == 1
    assert "chunks, int8" in out and "4 look-backs" in out and "50%" in out and "2020-01-02" in out
    printed(capsys, "gc", folder)
    printed(capsys, "stats", folder, "--json", tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert (
        again["stats"]["deleted_bytes"] == 0
        and again["served"] == found["served"]
        and again["stored"] == found["stored"]
    )
    assert main(["library", "verify", str(folder)]) == 0


def test_a_library_is_published_and_read_where_it_is(scanned, capsys, tmp_path):
    url = f"file://{tmp_path}/store/pages"
    told = tmp_path / "told.json"
    publish = ["library", "publish", str(scanned), url, "--json", str(told)]
    assert main(publish) == 0
    done = json.loads(told.read_text())
    out = capsys.readouterr().out
    assert f"{done['uploaded']} objects uploaded, " in out and f"kamera library ls {url}" in out
    assert main(publish) == 0 and f"nothing is new, {done['uploaded']} were" in capsys.readouterr().out
    for words in (["info", made.key_of(4)[:12]], ["verify"], ["ls", "2024"]):
        assert printed(capsys, words[0], url, *words[1:]) == printed(capsys, words[0], scanned, *words[1:])
    assert printed(capsys, "ls", url).splitlines()[2:] == printed(capsys, "ls", scanned).splitlines()[2:]
    assert "7 chunks and 2 patches" in printed(capsys, "stats", url)
    assert printed(capsys, "import", tmp_path / "own", url).startswith("7 chunks and 2 patches copied")
    for words in (["library", "rm", url, made.key_of(4)], ["encode", "page.png", "--library", url]):
        with pytest.raises(SystemExit):
            main(words)
        assert "write to a folder" in " ".join(capsys.readouterr().err.split())
    assert main(["library", "publish", str(scanned), "ftp://host/lib"]) == 1
    assert "ftp://host/lib" in capsys.readouterr().err
