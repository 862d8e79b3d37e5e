"""Published layouts of whole models, read and written; the only list of them."""

from __future__ import annotations

from chiasm.hub.formats.format import Format, Target

__all__ = ["FORMATS", "Format", "Target"]

FORMATS: list[Format] = []
