"""Forms with files (multipart/form-data), read in memory: no file is written."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from chiasm.serve.errors import ApiError

FIELDS = 64
"""A form has no more."""


@dataclass
class _Form:
    """What the parser's callbacks have seen: fields in order, (name, whether a file, bytes)."""

    fields: list[tuple[str, bool, bytes]] = field(default_factory=list)
    header: bytes = b""
    value: bytes = b""
    parts: list[bytes] = field(default_factory=list)
    name: str = ""
    is_file: bool = False

    def begin(self) -> None:
        if len(self.fields) == FIELDS:
            raise FormParserError("too many fields")
        self.parts, self.name, self.is_file = [], "", False

    def header_end(self) -> None:
        if self.header.lower() == b"content-disposition":
            _, options = parse_options_header(self.value)
            self.name = options.get(b"name", b"").decode(errors="replace")
            self.is_file = b"filename" in options
        self.header = self.value = b""

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self.header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def data(self, data: bytes, start: int, end: int) -> None:
        self.parts.append(data[start:end])

    def end(self) -> None:
        self.fields.append((self.name, self.is_file, b"".join(self.parts)))


def read_form(data: bytes, kind: str) -> dict[str, Any]:
    """The fields of a form with this content type as JSON would have them: files are data URLs,
    name[] and repeated names lists. Raises ApiError for a broken form."""
    _, options = parse_options_header(kind)
    form = _Form()
    calls: Any = {
        "on_part_begin": form.begin,
        "on_header_field": form.header_field,
        "on_header_value": form.header_value,
        "on_header_end": form.header_end,
        "on_part_data": form.data,
        "on_part_end": form.end,
    }
    try:
        parser = MultipartParser(options.get(b"boundary", b""), calls)
        parser.write(data)
        parser.finalize()
    except (FormParserError, ValueError):
        raise ApiError(400, "the body is no complete multipart/form-data") from None
    found: dict[str, Any] = {}
    for name, is_file, value in form.fields:
        said = _data_url(value) if is_file else value.decode(errors="replace")
        plain = name.removesuffix("[]")
        if name != plain or plain in found:
            held = found.setdefault(plain, [])
            found[plain] = [*(held if isinstance(held, list) else [held]), said]
        else:
            found[plain] = said
    return found


def _data_url(data: bytes) -> str:
    # Which image it is, its own header says (media.py).
    return f"data:image/any;base64,{base64.b64encode(data).decode()}"
