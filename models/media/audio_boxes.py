"""What files of sound announce of their length: a download that broke off has less than that."""

import os
from typing import BinaryIO

from models.media import video_boxes

_UNKNOWN = 2**32 - 2**16
"""Lengths of RIFF from here on stand for one that was not known when the file was begun."""

_PADDING = 1
"""A byte behind an odd number of them, which some programs count and do not write."""

_PAGE = 65307
"""Bytes of a page of Ogg, at most."""

_LAST_PAGE = 4
"""The flag of the page that ends a stream of Ogg."""

_HEAD = 2**17
"""Bytes in which MP3 files have the header that counts their frames, unless a large picture stands before it."""


def missing_bytes(file: BinaryIO) -> int:
    """How many bytes are lacking at a file's end; 0 where none are, or the format does not announce its length.

    WAV and AIFF announce it, and what `video_boxes.missing_bytes` knows. Of Ogg it is known whether the last page is
    whole and ends its stream: where it does not, 1 byte is said to be lacking.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        length = int.from_bytes(head[4:8], "little")
        missing = 8 + length - _PADDING - size if length < _UNKNOWN else 0
    elif head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        missing = 8 + int.from_bytes(head[4:8], "big") - _PADDING - size
    elif head[:4] == b"OggS":
        missing = _missing_of_ogg(file, size)
    else:
        missing = video_boxes.missing_bytes(file)
    file.seek(0)
    return max(0, missing)


def _missing_of_ogg(file: BinaryIO, size: int) -> int:
    start = max(0, size - _PAGE)
    file.seek(start)
    end = file.read(_PAGE)
    place = end.rfind(b"OggS")
    header = end[place : place + 27] if place >= 0 else b""
    if len(header) < 27:
        return 1
    table = end[place + 27 : place + 27 + header[26]]
    whole = place + 27 + header[26] + sum(table)
    ends = header[5] & _LAST_PAGE and len(table) == header[26]
    return max(whole - len(end), 0 if ends else 1)


def states_length(file: BinaryIO) -> bool:
    """Whether the length that a demuxer finds is the file's own statement, and no estimate.

    FLAC, WAV, AIFF and MP4 state it, and MP3 files with a header that counts their frames.
    """
    file.seek(0)
    head = file.read(_HEAD)
    file.seek(0)
    if head[:4] in (b"fLaC", b"RIFF", b"FORM") or head[4:8] == b"ftyp":
        return True
    return any(name in head for name in (b"Xing", b"Info", b"VBRI"))
