"""Objects of a store by their names, through TensorStore: parts of them read, whole ones written or removed.

What a store does not do, or says no to, has a name and says what to do; what it never answers, after a few tries, too.
"""

import re
from typing import Any

from kamera_jax.errors import (
    ExportError,
    LibraryCorruptError,
    LibraryDiskError,
    LibraryFullError,
    LibraryNotFoundError,
    LibraryReadOnlyError,
)
from kamera_jax.library.failures import is_full

SCHEMES = ("gs", "s3", "http", "https", "file")

RETRIES = {"max_retries": 4, "initial_delay": "250ms", "max_delay": "4s"}
"""What is asked again, and when: what a store says of itself to be passing, and connections that break."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED")
_CREDENTIALS = (
    "give who runs this the right to it: for gs:// by GOOGLE_APPLICATION_CREDENTIALS, for s3:// by AWS_PROFILE or "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, else in the store; some stores say the same of what is not there"
)


def is_url(path: Any) -> bool:
    """Whether a path is an address, with ``://`` behind the name of its scheme."""
    return isinstance(path, str) and _URL.match(path) is not None


class Objects:
    """Objects below an address.

    Attributes:
        url: the address, with ``/`` at its end.
    """

    def __init__(self, url: str, store: Any) -> None:
        """See `open`.

        Args:
            url: what errors say.
            store: a `tensorstore.KvStore` of what lies below it.
        """
        self.url = url
        self._store = store

    @staticmethod
    def open(url: str) -> "Objects":
        """Nothing is asked of the store yet.

        Raises:
            LibraryNotFoundError: the address is none that this version reads.
        """
        scheme = url.partition("://")[0].lower()
        if scheme not in SCHEMES or "?" in url or "#" in url:
            raise LibraryNotFoundError(
                f"{url!r:.200} is no address of a library; expected a folder, or an address that begins with "
                f"{', '.join(f'{each}://' for each in SCHEMES)} and has no ? and no #"
            )
        import tensorstore  # a second to import

        context = {f"{name}_request_retries": RETRIES for name in ("gcs", "s3", "http")}
        place = f"{url.rstrip('/')}/"
        try:
            store = tensorstore.KvStore.open(place, context=tensorstore.Context(context)).result()
        except Exception as error:  # whatever TensorStore makes of it
            raise LibraryNotFoundError(f"{url!r:.200} is no address of a library: {error}; give another") from error
        return Objects(place, store)

    def asked(self, name: str, start: int, stop: int) -> "Part":
        """Bytes of an object, asked for and not waited for."""
        part = slice(start, stop) if stop > start else None  # not all servers answer what is asked of no byte
        return Part(self, name, start, stop, self._store.read(name, byte_range=part))

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes of an object.

        Raises:
            FileNotFoundError: there is no such object.
            LibraryCorruptError: it has fewer bytes.
            LibraryDiskError: the store does not answer, or refuses.
        """
        return self.asked(name, start, stop).read()

    def seen(self, name: str) -> tuple[bytes | None, bytes]:
        """An object, None where there is none, and what its next writer says that it has seen; raises as `read`."""
        try:
            result = self._store.read(name).result()
            return None if result.state == "missing" else result.value, bytes(result.stamp.generation)
        except Exception as error:  # whatever TensorStore makes of it
            raise self.unread(name, error) from error

    def names(self) -> set[str]:
        """Every object there is; raises as `Writing.done`."""
        try:
            return {name.decode("utf-8", "replace") for name in self._store.list().result()}
        except Exception as error:  # whatever TensorStore makes of it
            raise self._unwritten("", error) from error

    def begin(self, name: str, payload: bytes) -> "Writing":
        """Write an object, without waiting."""
        return Writing(self, name, self._store.write(name, payload))

    def replace(self, name: str, payload: bytes, seen: bytes) -> bytes | None:
        """Write an object, unless another has written it since it was `seen`; what is seen then, None if it was.

        Raises as `Writing.done`.
        """
        try:
            return bytes(self._store.write(name, payload, if_equal=seen).result().generation) or None
        except Exception as error:  # whatever TensorStore makes of it
            raise self._unwritten(name, error) from error

    def remove(self, name: str) -> None:
        """Remove an object, or find it gone; raises as `Writing.done`."""
        try:
            self._store.write(name, None).result()
        except Exception as error:  # whatever TensorStore makes of it
            raise self._unwritten(name, error) from error

    def unread(self, name: str, error: Exception) -> ValueError:
        """What it means that an object was not read."""
        said = _said(error)
        place = f"{self.url}{name}"
        if said.startswith("OUT_OF_RANGE"):
            return LibraryCorruptError(f"{place} is not as long as it was written: {said}; publish the library again")
        if said.startswith(_REFUSED):
            return LibraryDiskError(f"the store refuses to give {place}: {said}; {_CREDENTIALS}")
        if "was ignored by server" in said:
            return LibraryDiskError(
                f"the server of {place} does not give parts of files: {said}; serve them by one that answers requests "
                "with a Range"
            )
        return LibraryDiskError(
            f"{place} could not be read: {said}; nothing is known to be wrong with it. Check the network and the "
            "store, and try again"
        )

    def _unwritten(self, name: str, error: Exception) -> ValueError:
        said = _said(error)
        place = f"{self.url}{name}"
        if isinstance(error, NotImplementedError):
            return ExportError(
                f"nothing can be written to {self.url}: {said}; publish to an address of gs://, s3:// or file://, and "
                "read it by http:// from there"
            )
        if said.startswith(_REFUSED):
            return LibraryReadOnlyError(f"the store refuses {place} to be written: {said}; {_CREDENTIALS}")
        if is_full(error):
            return LibraryFullError(f"the store has no room for {place}: {said}; make room, and publish again")
        return LibraryDiskError(
            f"{place} could not be written: {said}; what was published before is there. Check the network and the "
            "store, and publish again"
        )


class Part:
    """Bytes of an object that were asked for."""

    def __init__(self, objects: Objects, name: str, start: int, stop: int, future: Any) -> None:
        """See `Objects.asked`."""
        self.name = name
        self.start = start
        self.stop = stop
        self._objects = objects
        self._future = future
        self._read: bytes | None = None

    def read(self) -> bytes:
        """Wait for them; raises as `Objects.read`."""
        payload = self._read
        if payload is None:
            try:
                result = self._future.result()
            except Exception as error:  # whatever TensorStore makes of it
                raise self._objects.unread(self.name, error) from error
            if result.state == "missing":
                raise FileNotFoundError(f"{self._objects.url}{self.name}")
            payload = result.value  # a copy each time
            if len(payload) != self.stop - self.start:
                raise self._objects.unread(self.name, ValueError(f"OUT_OF_RANGE: it ends before byte {self.stop}"))
            self._read = payload
        return payload


class Writing:
    """An object that is being written."""

    def __init__(self, objects: Objects, name: str, future: Any) -> None:
        """See `Objects.begin`."""
        self.name = name
        self._objects = objects
        self._future = future

    def done(self) -> None:
        """Wait until it is there for good.

        Raises:
            ExportError: nothing can be written to such an address.
            LibraryReadOnlyError, LibraryFullError: the store refuses, or has no room.
            LibraryDiskError: it does not answer.
        """
        try:
            self._future.result()
        except Exception as error:  # whatever TensorStore makes of it
            raise self._objects._unwritten(self.name, error) from error


def _said(error: Exception) -> str:
    return f"{error!s:.500}".replace("\n", " ")
