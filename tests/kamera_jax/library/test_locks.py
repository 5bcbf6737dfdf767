"""The lock of a folder: one process at a time, who waits says for whom, and a system without locks is named."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from kamera_jax.errors import LockedError, NoFileLocksError, NotRegularError
from kamera_jax.library import locks
from kamera_jax.library.files import locked

HOLDER = """
import sys, time
from pathlib import Path
from kamera_jax.library.files import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that has the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "LOCK"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_who_does_not_wait_is_refused(tmp_path, other):
    with pytest.raises(LockedError, match=f"LOCK is locked by process {other.pid}; wait until it is done"):
        with locked(tmp_path / "LOCK", wait=False):
            raise AssertionError("two have it")
    other.stdin.close()
    other.wait()
    with locked(tmp_path / "LOCK", wait=False):
        assert locks.holder(tmp_path / "LOCK") == f"process {os.getpid()}"


def test_who_waits_says_for_whom(tmp_path, other, caplog):
    os.kill(other.pid, signal.SIGSTOP)
    began = time.monotonic()
    threading.Timer(1.6, lambda: (os.kill(other.pid, signal.SIGCONT), other.stdin.close())).start()
    with caplog.at_level(logging.WARNING, "kamera_jax"), locked(tmp_path / "LOCK"):
        assert time.monotonic() - began > 1.5
    (record,) = caplog.records
    assert record.getMessage().startswith(f"waiting for process {other.pid}, which is stopped to release")


def test_threads_have_it_one_at_a_time(tmp_path, caplog):
    inside = []

    def work():
        for _ in range(20):
            with locked(tmp_path / "LOCK"):
                inside.append(1)
                assert len(inside) == 1
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not inside and not caplog.records


def test_a_lock_that_was_replaced_is_not_the_lock(tmp_path):
    path = tmp_path / "LOCK"
    order = []

    def second():
        with locked(path):
            order.append("second")

    with locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)  # it waits for the file that goes
        path.unlink()
    with locked(path):
        order.append("first")
        time.sleep(0.2)
        order.append("done")
    thread.join(10)
    assert order in (["first", "done", "second"], ["second", "first", "done"])


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_what_is_no_file_is_no_lock(tmp_path, kind):
    path = tmp_path / "LOCK"
    outside = tmp_path / "outside"
    if kind == "link":
        outside.write_text("dear")
    if kind in ("link", "dangling"):
        path.symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(NotRegularError, match="LOCK is a (link|pipe|folder); expected a regular file"):
        with locked(path):
            raise AssertionError("it is no lock")
    assert not outside.exists() if kind != "link" else outside.read_text() == "dear"


def test_a_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_FCNTL", None)
    with pytest.raises(NoFileLocksError, match="no file locks that Python knows.*open for reading"):
        with locked(tmp_path / "LOCK"):
            raise AssertionError("nothing is locked")


class Windows:
    """What `msvcrt` has for locks, of threads of one process."""

    LK_NBLCK = 2
    LK_UNLCK = 0

    def __init__(self):
        self.taken = set()

    def locking(self, descriptor, mode, count):
        status = os.fstat(descriptor)
        place = (status.st_dev, status.st_ino, os.lseek(descriptor, 0, os.SEEK_CUR), count)
        if mode == self.LK_NBLCK and place in self.taken:
            raise PermissionError(13, "Permission denied")
        (self.taken.add if mode == self.LK_NBLCK else self.taken.remove)(place)


def test_the_locks_of_windows(tmp_path, monkeypatch):
    windows = Windows()
    monkeypatch.setattr(locks, "_FCNTL", None)
    monkeypatch.setattr(locks, "_MSVCRT", windows)
    with locked(tmp_path / "LOCK"):
        with pytest.raises(LockedError, match=f"process {os.getpid()}"), locked(tmp_path / "LOCK", wait=False):
            raise AssertionError("two have it")
        threading.Timer(0.1, windows.taken.clear).start()
        with locked(tmp_path / "LOCK"):
            pass
        monkeypatch.setattr(windows, "locking", lambda *_: None)
