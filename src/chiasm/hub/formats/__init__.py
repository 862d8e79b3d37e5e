"""Published layouts of whole models, read and written; the only list of them."""

from __future__ import annotations

from chiasm.hub.formats.chameleon import CHAMELEON
from chiasm.hub.formats.emu3 import EMU3
from chiasm.hub.formats.format import Format, Target
from chiasm.hub.formats.gguf import GGUFFormat
from chiasm.hub.formats.idefics3 import IDEFICS3, SMOLVLM
from chiasm.hub.formats.llava import LlavaFormat
from chiasm.hub.formats.llava_next import LlavaNextFormat
from chiasm.hub.formats.paligemma import PaliGemmaFormat
from chiasm.mllm.model import MLLM
from chiasm.unified.model import Unified

__all__ = ["FORMATS", "UNIFIED", "Format", "Target"]

FORMATS: list[Format[MLLM]] = [
    LlavaFormat(),
    LlavaNextFormat(),
    PaliGemmaFormat(),
    IDEFICS3,
    SMOLVLM,
    GGUFFormat(),
]

UNIFIED: list[Format[Unified]] = [CHAMELEON, EMU3]
