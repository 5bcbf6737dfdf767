"""Where a stored chunk came from: the file, the page or the time in it, and when it was encoded."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kamera_jax.arguments import check_type, real_number, whole_number
from kamera_jax.library.fields import check_origin


def utc_now() -> str:
    """The time, as an origin has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Origin:
    """Where a chunk came from, as `ChunkLibrary.put` stores it beside the chunk; it is no part of the chunk's key.

    Attributes:
        file: the file's path as its user wrote it, or any other name of the source, such as an address.
        page: the page of a document or the frame of an animated image, from 1; None for a whole file.
        time: seconds from the beginning of a video or recording; None for what has no times.
        encoded: when the chunk was encoded, in UTC, as ``2026-11-30T09:15:00Z``; now by default, None where it is not
            known.
        note: what was read of it beside what is usual, as ``with its text`` of a page; None for nothing.
    """

    file: str
    page: int | None = None
    time: float | None = None
    encoded: str | None = field(default_factory=utc_now)
    note: str | None = None

    def __post_init__(self) -> None:
        """Turn paths into texts, and numbers of numpy into Python's.

        Raises:
            ValueError: a field is something else than it may be.
        """
        file: Any = os.fspath(self.file) if isinstance(self.file, os.PathLike) else self.file
        check_type(file, str, "file", "the name of what the chunk was made from, such as 'report.pdf'")
        object.__setattr__(self, "file", file)
        if self.page is not None:
            object.__setattr__(self, "page", whole_number(self.page, "page", 1))
        if self.time is not None:
            object.__setattr__(self, "time", real_number(self.time, "time", 0.0))
        check_type(self.encoded, (str, type(None)), "encoded", "a time in UTC, such as '2026-11-30T09:15:00Z'")
        check_type(self.note, (str, type(None)), "note", "a few words, such as 'with its text'")
        check_origin(self.plain)

    @property
    def plain(self) -> dict[str, Any]:
        """The fields that are known, as JSON has them."""
        fields = {"file": self.file, "page": self.page, "time": self.time, "encoded": self.encoded, "note": self.note}
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def name(self) -> str:
        """The file's name without its folders, and the page or time in it: ``report.pdf, page 12``."""
        return self._placed(os.path.basename(self.file.rstrip("/")) or self.file)

    @property
    def where(self) -> str:
        """As `name`, with the file's whole path."""
        return self._placed(self.file)

    def _placed(self, file: str) -> str:
        page = "" if self.page is None else f", page {self.page}"
        time = "" if self.time is None else f", {self.time:g} s"
        return file + page + time + ("" if self.note is None else f", {self.note}")

    @staticmethod
    def of(plain: Mapping[str, Any]) -> "Origin":
        """What `plain` gave, as `kamera_jax.library.fields.check_origin` let it pass; other fields are left alone."""
        origin = object.__new__(Origin)  # not checked a second time: a library may have very many
        for name in ("file", "page", "time", "encoded", "note"):
            object.__setattr__(origin, name, plain.get(name))
        return origin
