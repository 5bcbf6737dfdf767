"""Several who save to one folder, or read it meanwhile; and windows that callers have, whatever the session does."""

import threading
import time

import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax.errors import LockedError
from kamera_jax.library import arrays as storage
from kamera_jax.session import saved
from tests.kamera_jax.session.items import CAPACITY, ITEMS


def test_two_savers_of_one_folder(toy, tmp_path, monkeypatch):
    """Both saves end, and what is there is whole: one session or the other."""
    sessions = [kj.Session(toy, CAPACITY) for _ in range(2)]
    for session, items in zip(sessions, (ITEMS[:1], ITEMS[1:3]), strict=True):
        for item in items:
            session.add(item)
    save = storage.save

    def slowly(place, arrays):
        save(place, arrays)
        time.sleep(0.3)

    monkeypatch.setattr(storage, "save", slowly)
    errors = []

    def run(session):
        try:
            for _ in range(2):
                session.save(tmp_path / "s")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "s" / "description.json").exists():
            assert kj.Session.restore(toy, tmp_path / "s").keys in [session.keys for session in sessions]
        time.sleep(0.05)
    assert errors == []
    assert kj.Session.restore(toy, tmp_path / "s").keys in [session.keys for session in sessions]
    assert len(list((tmp_path / "s").iterdir())) == 2


def test_who_waits_too_long_is_told(toy, tmp_path, monkeypatch):
    session = kj.Session(toy, CAPACITY)
    session.save(tmp_path)
    monkeypatch.setattr(saved, "PATIENCE", 0.1)
    with saved._locked(tmp_path, write=True), pytest.raises(LockedError, match="another process has been saving"):
        session.save(tmp_path)
    session.save(tmp_path)


def test_a_window_that_was_handed_out_stays_where_nothing_was_written(toy):
    """An item put in place of itself leaves the window as it is: it is still the caller's."""
    session = kj.Session(toy, CAPACITY)
    key = session.add(ITEMS[0])
    window = session.window
    session.replace(key, ITEMS[0])
    session.add(ITEMS[1])
    assert np.asarray(window.state.rot).any() and window.keys == (key,)
