"""Leases: one writer at a time without a lock of the system's, and one that was too late changes nothing."""

import contextlib
import inspect
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import kamera_jax as kj
from kamera_jax.errors import LeaseLostError, LockedError
from kamera_jax.library import leases, locks
from kamera_jax.library.layout import check_lease
from kamera_jax.library.leases import leased
from tests.kamera_jax.library.lapses import expire, lapses, tree
from tests.kamera_jax.library.made import bits, chunk, key_of, patch


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "leases").mkdir()
    (tmp_path / "staging").mkdir()
    return tmp_path


def taken(folder, **options):
    return leased(folder, folder / "staging", **options)


def test_one_after_the_other(folder):
    for number in (1, 2, 3):
        with taken(folder) as lease:
            assert lease.number == number and os.listdir(folder / "leases") == [f"{number:016d}"]
            assert os.listdir(folder / "staging") == [lease.staging.name]
            lease.check()
            with pytest.raises(LockedError, match=f"is leased by process {os.getpid()}; wait until it is done"):
                with taken(folder, wait=False):
                    raise AssertionError("two have it")
    assert not os.listdir(folder / "staging") and len(os.listdir(folder / "leases")) == 1


def test_threads_have_it_one_at_a_time(folder):
    inside = []

    def work():
        for _ in range(5):
            with taken(folder):
                inside.append(1)
                assert len(inside) == 1
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not inside and os.listdir(folder / "leases") == [f"{15:016d}"]


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_who_looked_before_another_took_it_does_not_take_it_over(folder, monkeypatch, rounds):
    """The lease was free when it was looked at, and others had it, or one has it, before it could be taken."""
    with contextlib.ExitStack() as held:
        is_free = leases._is_free

        def looks_and_is_slow(path, beside, seconds):
            free = is_free(path, beside, seconds)
            monkeypatch.setattr(leases, "_is_free", is_free)
            for _ in range(rounds):
                with taken(folder):
                    pass
            held.enter_context(taken(folder)).check()
            return free

        with taken(folder):
            pass
        monkeypatch.setattr(leases, "_is_free", looks_and_is_slow)
        with pytest.raises(LockedError, match="is leased by process"):
            with taken(folder, wait=False):
                raise AssertionError("two have it")


def test_it_is_renewed_for_as_long_as_it_takes_and_who_waits_says_for_whom(folder, caplog):
    with taken(folder, seconds=0.5), caplog.at_level(logging.WARNING, "kamera_jax"):
        with pytest.raises(TimeoutError):
            waiting = threading.Thread(target=lambda: taken(folder, seconds=0.5).__enter__(), daemon=True)
            waiting.start()
            waiting.join(1.5)
            raise TimeoutError if waiting.is_alive() else AssertionError("it was taken over")
    waiting.join(30)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"waiting for process {os.getpid()}, which has the lease on")


@pytest.mark.parametrize("late", ["check", "rename", "make", "raise"])
def test_who_lost_it_changes_nothing(folder, late):
    place = folder / "place"
    with pytest.raises(LeaseLostError, match=f"was taken over by process {os.getpid()}: this process had not renewed"):
        with taken(folder) as old:
            (old.staging / "made").mkdir()
            (old.staging / "made" / "file").write_text("late")
            expire(folder)
            with taken(folder) as new:
                assert os.listdir(folder / "staging") == [new.staging.name] and not os.listdir(new.staging)
                if late == "check":
                    old.check()
                elif late == "rename":
                    (old.staging / "made").rename(place)
                elif late == "make":
                    (old.staging / "another").mkdir()
                else:
                    raise RuntimeError("as a storage library has it whose files are gone")
    assert not place.exists() and not os.listdir(folder / "staging")


def test_a_number_that_was_given_before_is_none(folder):
    """Somebody who was stopped between looking and taking: the file of that number was removed meanwhile."""
    for _ in range(3):
        with taken(folder):
            pass
    assert leases._taken(folder / "leases", folder / "staging", 2, 30.0) is None
    assert os.listdir(folder / "leases") == [f"{3:016d}"] and not os.listdir(folder / "staging")


def test_numbers_go_on_where_somebody_removed_the_lease(folder):
    """Else one that was stopped would take a later lease for its own, when the numbers come to it."""
    with pytest.raises(LeaseLostError):
        with taken(folder) as old:
            (folder / "leases" / old.path.name).unlink()
            with taken(folder) as new:
                assert new.number == old.number + 1 and os.listdir(folder / "staging") == [new.staging.name]
            old.check()


def test_who_was_taken_over_while_it_took_leaves_the_next_alone(folder):
    lease = leases._taken(folder / "leases", folder / "staging", 1, 30.0)
    expire(folder)
    with taken(folder) as new:
        (new.staging / "made").touch()
        with pytest.raises(FileNotFoundError):  # its own folder is gone
            leases._fence(folder / "staging", lease)
        assert os.listdir(new.staging) == ["made"]
        new.check()
        with pytest.raises(LeaseLostError):
            lease.check()


def test_who_was_stopped_while_it_waited_goes_on(folder):
    with taken(folder):
        waiting = threading.Thread(target=lambda: taken(folder).__enter__(), daemon=True)
        waiting.start()
        until = time.monotonic() + 30
        while len(besides := [name for name in os.listdir(folder / "leases") if len(name) == 32]) < 1:
            assert time.monotonic() < until
        for name in besides:
            (folder / "leases" / name).unlink()
    waiting.join(30)
    assert os.listdir(folder / "leases") == [f"{2:016d}"]


def test_what_died_while_it_waited_goes(folder):
    old = folder / "leases" / ("0123456789abcdef" * 2)
    old.touch()
    os.utime(old, (0, 0))
    (folder / "leases" / "notes").touch()
    with taken(folder) as lease:
        assert sorted(os.listdir(folder / "leases")) == [lease.path.name, "notes"]


def test_a_library_with_leases_is_one_as_any(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_FCNTL", None)  # no lock of the system's has a part in it
    root = tmp_path / "lib"
    with kj.ChunkLibrary.open(root, mode="a", lock="lease") as lib:
        lib.put_many([chunk(i) for i in range(4)])
        lib.put(patch(1))
        assert lib.delete(key_of(2)) and not lib.delete(key_of(2))
        assert set(kj.ChunkLibrary.open(root).keys()) == set(lib.keys())
    for lock in (None, "lease"):
        with kj.ChunkLibrary.open(root, mode="a", lock=lock, lease_seconds=2.0) as lib:
            assert lib.verify().ok and set(lib.keys()) == {key_of(i) for i in (0, 1, 3)}
            lib.delete(key_of(3))
            lib.put(chunk(3))
            lib.gc()
            assert bits(lib.get(key_of(3))) == bits(chunk(3)) and len(lib.patches(key_of(1))) == 1
    assert not os.listdir(root / "staging") and not (root / "LOCK").exists()
    first = json.loads((root / "LIBRARY.json").read_text())["body"]
    assert first["format_version"] == 4  # versions that know no leases read 3 at most, and do not write to it
    for mode in ("r", "a"):
        with pytest.raises(ValueError, match="was made with lock='lease', .*got 'file': leave it out, or export"):
            kj.ChunkLibrary.open(root, mode=mode, lock="file")
    for seconds in (0.4, 3601.0, float("nan")):
        with pytest.raises(ValueError, match="lease_seconds is"):
            kj.ChunkLibrary.open(root, lease_seconds=seconds)
    monkeypatch.undo()
    lib.export(tmp_path / "copy")
    copy = kj.ChunkLibrary.open(tmp_path / "copy", mode="a", lock="file")
    assert set(copy.keys()) == set(lib.keys()) and not (tmp_path / "copy" / "leases").exists()


def test_another_lock_is_named():
    with pytest.raises(ValueError, match="lock is 'flock'; expected one of"):
        inspect.unwrap(check_lease)("flock", 30.0)


def test_a_put_that_was_late_is_put_again(tmp_path):
    root = tmp_path / "lib"
    with kj.ChunkLibrary.open(root, mode="a", lock="lease") as lib:
        lib.put(chunk(0))
        real = lib._committer.index.changing

        def taken_over():
            expire(root)
            with leased(root, root / "staging"):
                pass
            return real()

        lib._committer.index.changing = taken_over
        before = tree(root)
        with pytest.raises(LeaseLostError, match="it changes nothing any more"):
            lib.put(chunk(1))
        with pytest.raises(LeaseLostError):
            lib.put_many([chunk(1), chunk(2)])
        with pytest.raises(LeaseLostError):
            lib.delete(key_of(0))
        assert tree(root) == before and not os.listdir(root / "staging")
        lib._committer.index.changing = real
        lib.put_many([chunk(1), chunk(2)])
        assert set(lib.keys()) == {key_of(i) for i in range(3)} and lib.verify().ok


STOPPED = """
import os, signal, sys, threading
from pathlib import Path
import kamera_jax as kj
from kamera_jax.errors import LeaseLostError
from tests.kamera_jax.library.made import chunk
lib = kj.ChunkLibrary.open(sys.argv[1], mode="a", lease_seconds=0.5)
real = os.rename
def rename(source, place):
    if Path(place).parent.name == "packs":
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # this thread goes no further
    real(source, place)
os.rename = rename
try:
    lib.put(chunk(1))
except LeaseLostError as error:
    print(error)
"""


def test_a_process_that_is_stopped_past_its_lease(tmp_path):
    """By the clock: between its last look at the lease and the rename another process takes over."""
    root = tmp_path / "lib"
    with kj.ChunkLibrary.open(root, mode="a", lock="lease") as lib:
        process = subprocess.Popen(
            [sys.executable, "-c", STOPPED, str(root)],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": "."},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        began = time.monotonic()
        lib.put_many([chunk(2), chunk(3)])
        assert time.monotonic() - began < 20
    before = tree(root)
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=60)
    assert "was taken over by process " in said and "had not renewed it for 0.5 s" in said, said
    assert tree(root) == before and not os.listdir(root / "staging")
    assert set(kj.ChunkLibrary.open(root).keys()) == {key_of(2), key_of(3)}


@pytest.mark.soak
def test_stopped_or_killed_at_every_stage(tmp_path):
    found = lapses(tmp_path, 60)
    assert found["killed"] + found["done"] + found["lost"] == 120 and found["lost"] > 10, found
