"""Published layouts of whole models, read and written; the only list of them."""

from __future__ import annotations

from chiasm.core.registry import Registry
from chiasm.hub.formats.chameleon import CHAMELEON
from chiasm.hub.formats.emu3 import EMU3
from chiasm.hub.formats.format import CheckpointFormat, Target
from chiasm.hub.formats.gguf import GGUFFormat
from chiasm.hub.formats.idefics3 import IDEFICS3, SMOLVLM
from chiasm.hub.formats.llava import LlavaFormat
from chiasm.hub.formats.llava_next import LlavaNextFormat
from chiasm.hub.formats.paligemma import PaliGemmaFormat
from chiasm.mllm.model import MLLM
from chiasm.unified.model import Unified

__all__ = ["FORMATS", "UNIFIED", "CheckpointFormat", "Target"]

FORMATS: Registry[CheckpointFormat[MLLM]] = Registry(
    "layout of an MLLM",
    CheckpointFormat,
    {
        "llava": LlavaFormat(),
        "llava-next": LlavaNextFormat(),
        "paligemma": PaliGemmaFormat(),
        "idefics3": IDEFICS3,
        "smolvlm": SMOLVLM,
        "gguf": GGUFFormat(),
    },
)
UNIFIED: Registry[CheckpointFormat[Unified]] = Registry(
    "layout of a unified model", CheckpointFormat, {"chameleon": CHAMELEON, "emu3": EMU3}
)
"""A layout of the user's own is added by FORMATS.register or UNIFIED.register in a module that is
imported or named by --allow-custom: folders are then read by it too."""
