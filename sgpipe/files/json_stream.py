"""Read a JSON object of large arrays, or one large array, item by item and in constant memory:
Objects365 v2 has 5 GB.

Python's own C scanner decodes the items; it accepts the `NaN` of some exporters, which streaming
libraries refuse.
"""

import codecs
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sgpipe.errors import StoreError, UserError, existing_file, os_error_reason
from sgpipe.files.locations import Location, TextFile, location, open_text

_CHUNK = 4 << 20
# an error further than this from the end of the buffer is not caused by the end
_LOOKAHEAD = 4 << 20
_LONGEST_ITEM = 256 << 20
_ITEM = re.compile(r"[^ \t\n\r]")


class JsonStream:
    """Iterates over the values of a JSON file's top-level object or array.

    `for key, item in stream` yields every item of every array of the top-level object, and its
    other values, in file order; of a file that is an array, its items, with the key "". `arrays`:
    the keys of arrays, also of empty ones. After the last item, `sha256` is the hash of the
    content.
    """

    def __init__(self, path: Location | str) -> None:
        self.path = path
        self.arrays: set[str] = set()
        self.sha256 = ""
        self._hash = hashlib.sha256()
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._eof = False

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield the members of the file.

        Raises:
            UserError: the file is missing, unreadable, empty, not UTF-8, not JSON, or cut short.
        """
        place = location(self.path)
        if isinstance(place, Path):
            existing_file(place)
        try:
            with open_text(self.path) as file:
                self._file: TextFile = file
                self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
                yield from self._members()
        except StoreError:
            raise
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {os_error_reason(error)}") from None
        except UnicodeDecodeError:
            raise UserError(f"{self.path} is not UTF-8 JSON (plain or gzip)") from None
        except RecursionError:
            raise UserError(f"{self.path} is nested too deeply to be an annotation file") from None
        self.sha256 = self._hash.hexdigest()

    def _members(self) -> Iterator[tuple[str, Any]]:
        first = self._peek()
        if first == "[":
            for _ in self._parts("]"):
                yield "", self._value()
        elif first == "{":
            for _ in self._parts("}"):
                key = self._value()
                if not isinstance(key, str) or self._peek() != ":":
                    raise self._malformed("expected a key")
                self._at += 1
                if self._peek() == "[":
                    self.arrays.add(key)
                    for _ in self._parts("]"):
                        yield key, self._value()
                else:
                    yield key, self._value()
        else:
            raise UserError(
                f"{self.path} is {'not UTF-8 JSON (plain or gzip)' if first else 'empty'}"
            )
        if self._peek():
            raise self._malformed("there is text after the end")

    def _parts(self, closing: str) -> Iterator[None]:
        """Stop at each part of an array or object, which is to be read before the next."""
        self._at += 1
        while self._peek() != closing:
            yield
            if self._peek() == ",":
                self._at += 1
                if self._peek() == closing:
                    raise self._malformed("no item follows a comma")
            elif self._peek() != closing:
                raise self._malformed(f"expected ',' or '{closing}'")
        self._at += 1

    def _peek(self) -> str:
        """Return the next character that is not white space, or "" at the end of the file."""
        while True:
            character = _ITEM.search(self._text, self._at)
            if character:
                self._at = character.start()
                return character[0]
            self._at = len(self._text)
            if not self._fill():
                return ""

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except ValueError as error:
                if not isinstance(error, json.JSONDecodeError):
                    raise self._malformed("a number has too many digits") from None
                pending = len(self._text) - self._at
                if (
                    pending > _LONGEST_ITEM
                    or error.pos < len(self._text) - _LOOKAHEAD
                    or not self._fill()
                ):
                    raise self._malformed(error.msg) from None
                continue
            # A number at the end of the buffer ("12", "12.", "1e") may continue in the file.
            rest = self._text[end : end + 3]
            if len(rest) < 3 and not rest.strip("+-.eE0123456789") and self._fill():
                continue
            self._at = end
            return value

    def _fill(self) -> bool:
        """Read the next chunk; False at the end of the file."""
        if self._eof:
            return False
        data = self._file.read(max(_CHUNK, len(self._text) - self._at))
        self._hash.update(data)
        self._eof = not data
        self._text = self._text[self._at :] + self._utf8.decode(data, final=self._eof)
        self._at = 0
        return bool(data)

    def _malformed(self, reason: str) -> UserError:
        rest = self._text[self._at : self._at + 40]
        if self._eof and not rest.strip():
            return UserError(
                f"{self.path} is cut short: the JSON ends in the middle; copy or download it again"
            )
        return UserError(
            f"{self.path} is not valid JSON{' or is cut short' * self._eof} ({reason} near"
            f" {rest!r})"
        )


def json_lines(path: Location) -> Iterator[Any]:
    """Yield the values of a file with one in each line.

    Raises:
        UserError: a line is not JSON.
    """
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                raise UserError(f"{path}: line {number:,} is not JSON, or is cut short") from None
