"""`kamera library` and `kamera ask --library`, and what they say of bad input."""

import json

import pytest

import kamera_jax as kj
from eval.commands import demo
from eval.commands.main import main

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
        (["library", "info", "", str(filled)], "4 keys"),
        (["ask", "what?", "--item", "zz", "--library", str(filled)], "no key that begins with 'zz'"),
        (["encode", str(tmp_path / "none.png"), "--library", str(tmp_path / "new")], "none.png"),
    ):
        assert main(arguments) == 1
        message = capsys.readouterr().err
        assert named in message and "Traceback" not in message


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
