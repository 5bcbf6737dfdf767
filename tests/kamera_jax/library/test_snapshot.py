"""Snapshots: what never came to an end is removed by its name, and nothing else; a save that fails leaves nothing."""

import errno
import os

import numpy as np
import pytest

from kamera_jax.library import snapshot

ARRAYS = {"a": np.arange(6, dtype=np.float32)}
HEXES = "0123456789abcdef" * 2


def values(folder):
    description, arrays = snapshot.read(folder)
    assert (arrays["a"] == ARRAYS["a"]).all()
    return description


def names(folder):
    return sorted(path.name.partition("-")[0] for path in folder.iterdir())


def test_what_never_came_to_an_end_is_removed(tmp_path):
    snapshot.write(tmp_path, {"n": 1}, ARRAYS)
    for name in (f"arrays-{HEXES}", f"arrays-{HEXES}.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text("x")
    (tmp_path / f"description.json.{HEXES}").write_text("{")
    assert values(tmp_path) == {"n": 1}
    snapshot.write(tmp_path, {"n": 2}, ARRAYS)
    assert values(tmp_path) == {"n": 2} and names(tmp_path) == ["arrays", "description.json"]


@pytest.mark.parametrize("name", ["arrays-mine.npz", "description.json.bak", f"arrays-{HEXES[1:]}", "arrays-", "notes"])
def test_what_is_not_a_snapshots_is_left_alone(tmp_path, name):
    snapshot.write(tmp_path, {"n": 1}, ARRAYS)
    (tmp_path / name).write_text("dear")
    with pytest.raises(ValueError, match="give a folder that is empty or a snapshot's"):
        snapshot.write(tmp_path, {"n": 2}, ARRAYS)
    assert (tmp_path / name).read_text() == "dear" and values(tmp_path) == {"n": 1}


@pytest.mark.parametrize("where", ["save", "fsync", "replace", "sync after"])
def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch, where):
    snapshot.write(tmp_path, {"n": 1}, ARRAYS)

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as context, pytest.raises(OSError, match="No space left"):
        if where == "save":
            context.setattr(snapshot.storage, "save", full)
        elif where == "sync after":
            whole = snapshot.write_sealed
            context.setattr(snapshot, "write_sealed", lambda *arguments: (whole(*arguments), full()))
        else:
            context.setattr(os, where, full)
        snapshot.write(tmp_path, {"n": 2}, ARRAYS)
    assert values(tmp_path) == {"n": 2 if where == "sync after" else 1}
    assert where == "sync after" or names(tmp_path) == ["arrays", "description.json"]
