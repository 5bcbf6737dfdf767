"""Fetching ahead: one thread that brings what will be asked for while the caller computes."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from kamera_jax.errors import ClosedError

FAILED = 1024
"""Keys of which it is remembered that they could not be fetched, at most."""


class Ahead:
    """Keys that are to be fetched, in order, and the thread that does it.

    The thread is there while there is something to fetch, or an object that may ask for it: it holds nothing that
    keeps its owner alive. Whatever goes wrong is raised where the key is asked for.
    """

    def __init__(self, changed: threading.Condition) -> None:
        """Nothing is to be fetched.

        Args:
            changed: of the owner's lock; it is notified when keys were fetched.
        """
        self._changed = changed
        self._waiting: dict[str, None] = {}
        self._reading: frozenset[str] = frozenset()
        self._failed: dict[str, BaseException] = {}
        self._executor: ThreadPoolExecutor | None = None
        self._closed = False

    def add(
        self,
        keys: Iterable[str],
        together: Callable[[Sequence[str]], Sequence[str]],
        fetch: Callable[[Sequence[str]], Mapping[str, BaseException]],
    ) -> None:
        """Fetch keys behind those that wait already.

        Args:
            keys: what to fetch.
            together: of keys that wait, the first and others that are best fetched with it.
            fetch: fetches keys, and says of which it could not and why.

        Raises:
            ClosedError: it was closed.
        """
        with self._changed:
            if self._closed:
                raise ClosedError("the tiers were closed and fetch nothing ahead; make new ones, or ask for the key")
            new = [key for key in keys if key not in self._reading]
            self._waiting.update(dict.fromkeys(new))
            if not new:
                return
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="kamera-tiers")
            self._executor.submit(self._run, together, fetch)

    def claim(self, key: str) -> None:
        """Take a key over: it is not fetched any more, or was fetched when this returns.

        Raises:
            BaseException: whatever fetching it raised; asked once more it is as any other key.
        """
        with self._changed:
            self._waiting.pop(key, None)
            while key in self._reading:
                self._changed.wait()
            if (error := self._failed.pop(key, None)) is not None:
                raise error

    def wait(self) -> None:
        """Wait until nothing is left to fetch."""
        with self._changed:
            while self._waiting or self._reading:
                self._changed.wait()

    def close(self) -> None:
        """Fetch nothing more, and end the thread."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def _run(
        self,
        together: Callable[[Sequence[str]], Sequence[str]],
        fetch: Callable[[Sequence[str]], Mapping[str, BaseException]],
    ) -> None:
        while True:
            with self._changed:
                waiting = tuple(self._waiting)
            if not waiting:
                return
            batch = waiting[:1]
            failed: Mapping[str, BaseException] = {}
            try:
                batch = tuple(together(waiting))
                with self._changed:
                    batch = tuple(key for key in batch if key in self._waiting)
                    self._reading = frozenset(batch)
                    for key in batch:
                        del self._waiting[key]
                if batch:
                    failed = fetch(batch)
            except BaseException as error:  # whatever it is, whoever asks for the keys is told
                failed = dict.fromkeys(batch, error)
            with self._changed:
                for key in batch:
                    self._waiting.pop(key, None)
                self._failed.update(failed)
                while len(self._failed) > FAILED:
                    del self._failed[next(iter(self._failed))]
                self._reading = frozenset()
                self._changed.notify_all()
