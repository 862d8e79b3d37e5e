"""ShareGPT: [{"conversations": [{"from": "human", "value": "<image>..."}], "images": [...]}]."""

from __future__ import annotations

from chiasm.data.formats import llama_factory
from chiasm.data.formats.format import Format, Look
from chiasm.data.formats.llava import read


def claims(look: Look) -> bool:
    if llama_factory.declared(look):
        return False
    turns = [row for row in look.rows if "conversations" in row]
    media = any("images" in row or "videos" in row for row in turns)
    single = any("image" in row or "video" in row for row in turns)
    return bool(turns) and (media or not single)


FORMAT = Format("sharegpt", "ShareGPT JSON", claims, read)
