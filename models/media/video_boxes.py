"""Whether a video file has all the bytes that its outermost boxes announce: a download that broke off has not."""

import os
from typing import BinaryIO

_MATROSKA = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"

_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
"""What a file of the MP4 family begins with."""

_UNKNOWN = 2**32 - 2**16
"""Lengths of RIFF from here on stand for one that was not known when the file was begun."""

MAX_BOXES = 2**20
"""Outermost boxes of a file that are looked at."""


def missing_bytes(file: BinaryIO) -> int:
    """How many bytes are lacking at a file's end; 0 where none are, or the format does not announce its length.

    MP4 and its relatives, Matroska, WebM and AVI announce it, save where they were recorded live.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    head = file.read(12)
    if head[4:8] in _BOXES:
        end = _end_of_boxes(file, size)
    elif head[:4] == _MATROSKA:
        end = _end_of_segment(file)
    elif head[:4] == b"RIFF" and head[8:] == b"AVI ":
        length = int.from_bytes(head[4:8], "little")
        end = 8 + length if length < _UNKNOWN else 0
    else:
        end = 0
    file.seek(0)
    return max(0, end - size)


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    """The end of the last box; a box of size 0 reaches to the end of the file."""
    place = 0
    for _ in range(MAX_BOXES):
        if place >= size:
            break
        file.seek(place)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        if length < 8:  # the last box, or what is no box: the demuxer judges it
            break
        place += length
    return place


def _end_of_segment(file: BinaryIO) -> int:
    """The end of a Matroska segment; 0 where its length is not known."""
    file.seek(4)
    length = _number(file)
    if length is None:
        return 0
    file.seek(length, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return 0
    length = _number(file)
    return 0 if length is None else file.tell() + length


def _number(file: BinaryIO) -> int | None:
    """An EBML number of a length; None where it is unknown: all bits are set."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    width = 9 - first[0].bit_length()
    rest = file.read(width - 1)
    bits = 7 * width
    value = int.from_bytes(first + rest, "big") & (2**bits - 1)
    return None if value == 2**bits - 1 or len(rest) < width - 1 else value
