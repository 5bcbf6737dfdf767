"""NumPy's files of objects are read as data: what numpy.save wrote comes back, and nothing that they name is run."""

import os
import pickle
import re
import struct

import numpy as np
import pytest

from eval.tasks import get
from eval.tasks.published.files import DataError
from eval.tasks.published.npy import NpyError, Unread, objects
from tests.eval.tasks.published import fixtures

HEADER = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"


def framed(content: bytes, header: str = HEADER) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content


def written(path, content: bytes, header: str = HEADER):
    path.write_bytes(framed(content, header))
    return path


class Runs:
    """Unpickled, it calls a function."""

    def __init__(self, function, *given):
        self._call = (function, given)

    def __reduce__(self):
        return self._call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_numpy_wrote_comes_back(tmp_path, protocol):
    rows = [
        {"a": "é", "b": [1, 2.5, None, True], "c": np.int64(-3), "d": np.float32(0.5), "e": ("x",)},
        {"f": np.array(["x", 1], dtype=object), "g": np.zeros(3), "h": np.bool_(True), "i": np.array(["a"])},
        np.uint8(200),
    ]
    array = np.array(rows, dtype=object)
    header = HEADER.replace("(1,)", "(3,)")
    found = objects(written(tmp_path / "a.npy", pickle.dumps(array, protocol), header))
    assert found[0] == {"a": "é", "b": [1, 2.5, None, True], "c": -3, "d": 0.5, "e": ["x"]}
    assert found[1]["f"] == ["x", 1] and found[1]["h"] is True and found[2] == 200
    assert isinstance(found[1]["g"], Unread) and isinstance(found[1]["i"], Unread)
    np.save(tmp_path / "b.npy", array, allow_pickle=True)
    assert objects(tmp_path / "b.npy")[0] == found[0]


@pytest.mark.parametrize(
    ("function", "given", "named"),
    [
        (os.system, ("touch {ran}",), "posix.system"),
        (eval, ("open('{ran}', 'w')",), "builtins.eval"),
        (open, ("{ran}", "w"), "open"),
        (np.memmap, ("{ran}", "u1", "w+", 0, (4,)), "numpy.memmap"),
        (np.load, ("{ran}",), "numpy.load"),
        (getattr, ("{ran}", "upper"), "builtins.getattr"),
    ],
)
def test_nothing_that_a_file_names_is_run(tmp_path, function, given, named):
    ran = tmp_path / "ran"
    content = pickle.dumps(
        [Runs(function, *(each.format(ran=ran) if isinstance(each, str) else each for each in given))]
    )
    with pytest.raises(
        NpyError, match=rf"names \S*{named.rpartition('.')[2]}, which is no data; nothing of it was run"
    ):
        objects(written(tmp_path / "a.npy", content))
    assert not ran.exists()


def test_stand_ins_are_made_anew_for_each_file(tmp_path):
    """A file may set attributes of what it names; those of the next one are as they were."""
    state = (None, {"items": ["taken"]})
    content = b"cnumpy\nndarray\n" + pickle.dumps(state, 2)[2:-1] + b"b."
    with pytest.raises(NpyError):
        objects(written(tmp_path / "a.npy", content))
    assert objects(written(tmp_path / "b.npy", pickle.dumps(np.array(["x"], dtype=object), 2))) == ["x"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no .npy file"),
        (b"{}", "is no .npy file"),
        (framed(b"", "{'descr': '<f4', 'shape': (1,)}"), "is an array of '<f4'"),
        (framed(b"", "{'descr': '|O', 'shape': (1, 2)}"), r"\(1, 2\); expected objects"),
        (framed(b"", "{'descr': __import__('os')}"), "header that cannot be read"),
        (framed(b"", "{}"), "header that cannot be read"),
        (framed(b""), "is damaged"),
        (framed(pickle.dumps(np.array(["x"], dtype=object))[:-9]), "is damaged"),
        (framed(b"\x80\x04\x8d" + b"\xff" * 8), "is damaged"),
        (framed(b"(" * 9), "is damaged"),
        (framed(pickle.dumps({"a": 1})), "holds no array of objects"),
        (framed(pickle.dumps(np.zeros(2))), "holds no array of objects"),
        (framed(b"cnumpy\ndtype\n(S'O8'\ntR."), "holds no array of objects"),
        (framed(b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR."), "writes bytes as 'rot13'"),
        (framed(b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\ntRS'a'\ntR."), "scalar of the kind 'O8'"),
        (framed(b"Pperson\n."), "is damaged"),
    ],
)  # fmt: skip
def test_files_that_are_none_are_named(tmp_path, content, message):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(NpyError, match=f"{re.escape(str(path))} .*{message}"):
        objects(path)


def test_cut_or_changed_anywhere_a_file_is_an_error_or_data(tmp_path):
    rows = [{"answers": ["red", "blue"], "answer_page_idx": np.int64(1)}, {"a": np.zeros(2, np.float32)}]
    np.save(tmp_path / "a.npy", np.array(rows, dtype=object), allow_pickle=True)
    whole = (tmp_path / "a.npy").read_bytes()
    rng = np.random.default_rng(3)
    path = tmp_path / "b.npy"
    for n in range(300):
        content = bytearray(whole)
        content[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(content if n % 3 else content[: rng.integers(len(whole))])
        try:
            assert isinstance(objects(path), list)
        except NpyError:
            pass


def test_the_benchmarks_file_gives_the_contexts_of_its_json(tmp_path):
    for name, write in (("json", fixtures.mp_docvqa), ("npy", fixtures.mp_docvqa_npy)):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    listed, rows = (get(f"two-page-docqa:data={tmp_path / name}") for name in ("json", "npy"))
    outlines = listed.outline((0, 1), 9)
    assert rows.outline((0, 1), 9) == outlines and "sha256 of imdb_val.npy" in rows.sources
    for outline in outlines:
        one = listed.draw(outline)
        same = rows.draw(outline)
        assert one.questions == same.questions and [p.name for p in one.items] == [p.name for p in same.items]
    path = tmp_path / "npy/imdb_val.npy"
    np.save(path, np.array([{}, {"question": "a"}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="record 1 of .*has no field 'image_name'"):
        get(f"two-page-docqa:data={tmp_path / 'npy'}").outline((0,), 1)
    written(path, pickle.dumps([Runs(os.system, "true")]))
    with pytest.raises(DataError, match="(?s)names posix.system, which is no data.*DIR/imdb_val.npy"):
        get(f"two-page-docqa:data={tmp_path / 'npy'}").outline((0,), 1)
