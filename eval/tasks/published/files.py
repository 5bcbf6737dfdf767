"""The official files of a benchmark: read line by line, and never anything outside the folder that the user named."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from models.media.files import opened

MAX_JSON_BYTES = 2**31
"""A JSON file of more bytes than this is not read."""

MAX_LINE_BYTES = 2**26
"""A line of a JSON Lines file of more bytes than this is not read."""

KINDS = {str: "a text", int: "a whole number", float: "a number", list: "a list", dict: "an object"}


class DataError(ValueError):
    """Files of a benchmark that are missing, malformed, or not where the benchmark has them."""


@dataclass(frozen=True)
class DataFolder:
    """The folder that ``--data`` names.

    Attributes:
        root: the folder.
        task: the task's name, for messages.
        layout: the files that are expected, for messages: a line each.
    """

    root: Path
    task: str
    layout: str

    @staticmethod
    def opened(data: str, task: str, layout: str) -> "DataFolder":
        """The folder, if it is one.

        Raises:
            DataError: none is named, or it is no folder.
        """
        folder = DataFolder(Path(data), task, layout)
        if not data:
            raise DataError(
                f"the task {task} reads the benchmark's own files; say where they are: kamera eval {task} --data DIR"
                f"{folder.expected}"
            )
        if not folder.root.is_dir():
            what = "no folder" if folder.root.exists() else "not there"
            raise DataError(f"--data {data} is {what}; the task {task} needs the folder{folder.expected}")
        return folder

    @property
    def expected(self) -> str:
        """What the folder has to hold, to end a message with."""
        lines = "".join(f"\n  {line}" for line in self.layout.strip().splitlines())
        return f" of the official files:{lines}"

    def there(self) -> str:
        """What the folder does hold, in a few words."""
        names = sorted(each.name + ("/" if each.is_dir() else "") for each in self.root.iterdir())
        if not names:
            return "it is empty"
        return f"it has {', '.join(names[:6])}" + (f" and {len(names) - 6} more" if len(names) > 6 else "")

    def first(self, *names: str) -> Path:
        """The first of these files that is there.

        Raises:
            DataError: none is.
        """
        for name in names:
            if (self.root / name).is_file():
                return self.inside(name, "the task's files")
        raise DataError(f"{self.root} has no {' or '.join(names)}: {self.there()}{_but(self.expected)}")

    def some(self, names: Sequence[str], what: str) -> list[Path]:
        """Those of these files that are there.

        Raises:
            DataError: none is.
        """
        found = [self.inside(name, what) for name in names if (self.root / name).is_file()]
        if not found:
            raise DataError(f"{self.root} has none of {what}: {self.there()}{_but(self.expected)}")
        return found

    def inside(self, name: str, where: str) -> Path:
        """A file or folder below the root, whether it is there or not.

        Args:
            name: its path below the root, as a record gives it.
            where: which record, for the message.

        Raises:
            DataError: the name, or a link on the way, leads out of the folder.
        """
        path = self.root / name
        if "\0" in name or Path(name).is_absolute() or not path.resolve().is_relative_to(self.root.resolve()):
            raise DataError(
                f"{where} names {name!r}, which leads out of {self.root}; only files in the folder of --data are read "
                "(a download of the hub that consists of links: fetch it with --local-dir)"
            )
        return path

    def media(self, name: Any, where: str, *folders: str) -> Path:
        """An image, video or document that a record names, in the first of these folders that has it.

        Args:
            name: as the record has it.
            where: which record, for the message.
            folders: below the root; the root itself by default.

        Raises:
            DataError: it is not there, no regular file, or leads out of the folder.
        """
        if not isinstance(name, str) or not name:
            raise DataError(f"{where} names {name!r} as a file; expected a text{_but(self.expected)}")
        for folder in folders or ("",):
            if Path(name).is_absolute():
                folder = ""
            path = self.inside(f"{folder}/{name}" if folder else name, where)
            if path.is_file():
                return path
        places = " or ".join(str(self.root / folder) for folder in folders or ("",))
        raise DataError(f"{where} names the file {name!r}, which is not in {places}{_but(self.expected)}")

    def lines(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """The records of a JSON Lines file, each with where it stands; empty lines are left out.

        Raises:
            DataError: a line is no JSON object.
        """
        with opened(path) as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if line.strip():
                    where = f"line {number} of {path}"
                    yield where, self._record(line, where)

    def _record(self, line: bytes, where: str) -> dict[str, Any]:
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{where} has more than {MAX_LINE_BYTES} bytes; expected a record{_but(self.expected)}")
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is no JSON ({error}); expected an object a line{_but(self.expected)}") from error
        if not isinstance(record, dict):
            raise DataError(f"{where} is {_kind(record)}; expected an object{_but(self.expected)}")
        return record

    def json(self, path: Path) -> Any:
        """The content of a JSON file.

        Raises:
            DataError: it is none, or larger than `MAX_JSON_BYTES`.
        """
        with opened(path) as file:
            content = file.read(MAX_JSON_BYTES + 1)
        if len(content) > MAX_JSON_BYTES:
            raise DataError(f"{path} has more than {MAX_JSON_BYTES} bytes; expected the benchmark's file")
        try:
            return json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is no JSON ({error}){_but(self.expected)}") from error

    def records(self, path: Path, value: Any = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """The records of a JSON file that is a list of objects, each with where it stands.

        Args:
            path: the file.
            value: the list, where it stands within the file's content.
        """
        value = self.json(path) if value is None else value
        if not isinstance(value, list):
            raise DataError(f"{path} holds {_kind(value)}; expected a list of records{_but(self.expected)}")
        for number, record in enumerate(value, 1):
            where = f"record {number} of {path}"
            if not isinstance(record, dict):
                raise DataError(f"{where} is {_kind(record)}; expected an object{_but(self.expected)}")
            yield where, record

    def field(self, record: Mapping[str, Any], name: str, where: str, *kinds: type) -> Any:
        """A field of a record.

        Args:
            record: the record.
            name: the field's name.
            where: which record, for the message.
            kinds: what it may be; a text by default.

        Raises:
            DataError: it is missing, or something else.
        """
        kinds = kinds or (str,)
        if name not in record:
            raise DataError(f"{where} has no field {name!r}: it has {', '.join(record) or 'none'}{_but(self.expected)}")
        value = record[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            what = " or ".join(KINDS[kind] for kind in kinds)
            raise DataError(f"{where}: {name} is {_kind(value)}; expected {what}{_but(self.expected)}")
        return value

    def texts(self, record: Mapping[str, Any], name: str, where: str) -> list[str]:
        """A field that is a list of texts; numbers are written out.

        Raises:
            DataError: it is missing, or something else.
        """
        values = self.field(record, name, where, list)
        if wrong := [each for each in values if not isinstance(each, (str, int, float)) or isinstance(each, bool)]:
            raise DataError(f"{where}: {name} has {_kind(wrong[0])} among its texts{_but(self.expected)}")
        return [str(each) for each in values]

    def digests(self, paths: Sequence[Path]) -> dict[str, str]:
        """Of each file its path below the root and its sha256: what a run records of its data."""
        found = {}
        for path in paths:
            digest = sha256()
            with opened(path) as file:
                while part := file.read(2**20):
                    digest.update(part)
            found[path.relative_to(self.root).as_posix()] = digest.hexdigest()
        return found


def _but(expected: str) -> str:
    """The end of a message: which folder is expected."""
    return f"; expected the folder{expected}"


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return "true or false" if isinstance(value, bool) else KINDS.get(type(value), type(value).__name__)
