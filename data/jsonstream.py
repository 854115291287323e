"""Read a JSON file of any size element by element: memory holds one element and a chunk of the file.

The standard library's scanner does the parsing; what is added is the chunks, and the line on which each
element starts, so that an error can name it.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

from data.errors import DataError

CHUNK = 1 << 18
#: a name or number cut by the end of a chunk is told as wrong at its start, at most so far back
_TOKEN = 64
#: what may stand behind the first part of a number where the text at hand ends in it
_CUT = {"", ".", "e", "E", "e+", "e-", "E+", "E-"}

#: a top-level key, or None where the file is one array
Key: TypeAlias = str | None


@dataclass(frozen=True)
class Element:
    """One element of an array at the top of a file, or of an array (or one value) under a top-level key."""

    key: Key
    #: position in its array; None for a value that is no array
    index: int | None
    #: of its first character; the first line is 1
    line: int
    value: Any
    #: may hold half characters (lone surrogates): by escapes, or from bytes that are no UTF-8
    doubtful: bool


class JsonStream:
    """The elements of one open file, whose name is for errors alone."""

    def __init__(self, file: IO[bytes], name: str, chunk: int = CHUNK) -> None:
        self._file, self._name, self._chunk = file, name, chunk
        self._decode = codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape").decode
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._ended = "", 0, False
        #: newlines ahead of ``_counted`` in the text at hand, those of dropped text included
        self._line, self._counted = 1, 0

    def __iter__(self) -> Iterator[Element]:
        first = self._peek()
        if first == "[":
            yield from self._array(None)
        elif first == "{":
            yield from self._object()
        else:
            yield self._element(None, None)
        if self._peek():
            raise self._error("text behind the end of the JSON value", "keep one value in the file")

    def _object(self) -> Iterator[Element]:
        for _ in self._members("{", "}"):
            if self._peek() != '"':
                raise self._error("not valid JSON (a name in double quotes is needed)", "correct the JSON")
            key, doubtful = self._value()
            if doubtful and not _whole(key):
                raise self._error("half a character in a name, or no UTF-8", "write it as whole UTF-8 text")
            if self._peek() != ":":
                raise self._error("not valid JSON (':' is needed)", "correct the JSON")
            self._at += 1
            if self._peek() == "[":
                yield from self._array(key)
            else:
                yield self._element(key, None)

    def _array(self, key: Key) -> Iterator[Element]:
        for index, _ in enumerate(self._members("[", "]")):
            yield self._element(key, index)

    def _members(self, opening: str, closing: str) -> Iterator[None]:
        """Stands at each member in turn, between the commas."""
        assert self._peek() == opening
        self._at += 1
        if self._peek() == closing:
            self._at += 1
            return
        while True:
            yield
            after = self._peek()
            self._at += 1
            if after == closing:
                return
            if after != ",":
                self._at -= 1
                what = "the file ends" if not after else f"{after!r} stands"
                raise self._error(f"not valid JSON ({what} where ',' or '{closing}' is needed)", "correct it")

    def _element(self, key: Key, index: int | None) -> Element:
        self._peek()
        line = self._line_here()
        value, doubtful = self._value()
        return Element(key, index, line, value, doubtful)

    def _value(self) -> tuple[Any, bool]:
        """The value that starts here, and whether its text may hold half characters."""
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _TOKEN
                if cut and self._more():
                    continue
                raise self._error(f"not valid JSON ({error.msg})", "correct the JSON", error.pos) from None
            except RecursionError:
                raise self._error("nested too deep", "give a flatter value") from None
            except ValueError as error:  # a whole number of thousands of digits
                if self._text[-3:].rstrip("eE+-.")[-1:].isdigit() and self._more():
                    continue  # or the first part of a number that is none
                raise self._error(f"not readable ({error})", "correct the number") from None
            if self._text[end : end + 3] in _CUT and self._more():
                continue  # a number may go on
            text = self._text[self._at : end]
            self._at = end
            return value, "\\u" in text or not _whole(text)

    def _peek(self) -> str:
        """The next character that is no white space, "" at the end; stands on it afterwards."""
        while True:
            text, at = self._text, self._at
            while at < len(text) and text[at] in " \t\r\n":
                at += 1
            self._at = at
            if at < len(text):
                return text[at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Read on; what lies behind is dropped. False at the end of the file."""
        if self._ended:
            return False
        # twice as much each time one value needs more, so that a large one is not scanned over and over
        data = self._file.read(max(self._chunk, len(self._text) - self._at))
        self._ended = not data
        self._line_here()
        self._text = self._text[self._at :] + self._decode(data, final=self._ended)
        self._at = self._counted = 0
        return True

    def _line_here(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def _error(self, rule: str, mend: str, at: int | None = None) -> DataError:
        at = self._at if at is None else at
        line = self._line_here() + self._text.count("\n", self._at, at)
        return DataError(rule, file=self._name, line=line, mend=mend)


def _whole(text: str) -> bool:
    """Whether a text can be UTF-8. Texts of one byte a character are known to be."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
