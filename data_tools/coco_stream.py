"""Bytes of a JSON file in a form that ijson can read: UTF-8, and only numbers that JSON allows."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any, BinaryIO

from more.progress import Tracker

_MB = 1_000_000
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"),
          (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
          (codecs.BOM_UTF16_BE, "utf-16"))
# A text, which may end behind what was read, or a number that ijson takes for an error: Python and
# numpy write NaN and Infinity, and ijson's fast numbers have 64 bits.
_ODD = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*("?)|-?\b(?:NaN|Infinity)\b'
                  rb'|(?<![\w.+-])-?\d{19,}(?![\d.eE])', re.DOTALL)
_UNFINISHED = b"-+.0123456789INaefinty"  # a number may go on behind these


def encoding_of(path: Path) -> str:
    """Encoding of a JSON file, by its byte order mark or by zeros among its first four bytes."""
    with open(path, "rb") as file:
        start = file.read(4)
    for mark, name in _MARKS:
        if start.startswith(mark):
            return name
    zeros = [byte == 0 for byte in start]
    return {(False, True, False, True): "utf-16-le", (True, False, True, False): "utf-16-be",
            (False, True, True, True): "utf-32-le",
            (True, True, True, False): "utf-32-be"}.get(tuple(zeros), "utf-8")


class Counted:
    """A file that reports every MB read to a progress bar.

    Args:
        file: the file.
        bar: the progress bar.
        told: MB that the bar already counts.
    """

    def __init__(self, file: BinaryIO, bar: Tracker, told: int = 0):
        self.file, self.bar, self.done, self.told = file, bar, file.tell(), told

    def read(self, size: int = -1) -> bytes:
        """As the file's own; a started MB counts as read."""
        data = self.file.read(size)
        self.done += len(data)
        if (now := -(-self.done // _MB)) > self.told:
            self.bar.advance(now - self.told)
            self.told = now
        return data


class Recoded:
    """A file of another encoding, read as UTF-8.

    Args:
        file: the file.
        encoding: its encoding.
    """

    def __init__(self, file: Any, encoding: str):
        self.file, self.decoder = file, codecs.getincrementaldecoder(encoding)()

    def read(self, size: int = -1) -> bytes:
        """The next bytes, about `size`; none at the end of the file.

        Raises:
            UnicodeDecodeError: the file is not in this encoding.
        """
        if size == 0:
            return b""
        while data := self.file.read(size):
            if text := self.decoder.decode(data):
                return text.encode("utf-8")
        return self.decoder.decode(b"", final=True).encode("utf-8")


class PlainNumbers:
    """A file in which NaN and Infinity become null, and numbers of 19 digits or more become texts.

    Attributes:
        odd: how many were replaced because they are not finite.
        long: how many long numbers were met.
    """

    def __init__(self, file: Any):
        self.file, self.rest, self.odd, self.long, self.ended = file, b"", 0, 0, False

    def read(self, size: int = -1) -> bytes:
        """The next bytes, not exactly `size`; none at the end of the file."""
        if size == 0:
            return b""
        while not self.ended:
            data = self.file.read(_MB if size > 0 else -1)
            self.ended = not data
            if made := self._replaced(self.rest + data):
                return made
        return b""

    def _replaced(self, data: bytes) -> bytes:
        """Replace numbers in `data`, up to where a text or number may continue; keep the rest."""
        end, parts, place = len(data.rstrip(_UNFINISHED)), [], 0
        for match in _ODD.finditer(data):
            start = match.start()
            if data[start:start + 1] == b'"':
                if not match[1]:
                    end = start  # a text that goes on
                    break
                end = max(end, match.end())
            elif start < end or self.ended:
                finite = match[0][-1:].isdigit()
                self.long, self.odd = self.long + finite, self.odd + (not finite)
                parts += data[place:start], b'"%b"' % match[0] if finite else b"null"
                place = match.end()
        if self.ended:
            end = len(data)
        self.rest = data[end:]
        return b"".join([*parts, data[place:end]])
