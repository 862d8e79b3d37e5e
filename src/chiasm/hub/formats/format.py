"""What a published layout of a whole model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from chiasm.data.processor import Processor
from chiasm.mllm.model import MLLM
from chiasm.unified.model import Unified

M = TypeVar("M", MLLM, Unified)
Names = dict[str, str]
"""Beginnings of names of parameters in our model -> in transformers' class of a layout."""
Target = Literal["hf", "gguf"]


@runtime_checkable
class CheckpointFormat(Protocol[M]):
    """One file a layout, with one object of this kind.

    name: of the layout, for people. target: what `chiasm export --to` calls its family.
    """

    @property
    def name(self) -> str: ...

    @property
    def target(self) -> Target: ...

    def recognises(self, config: dict[str, Any]) -> bool:
        """Whether a folder whose config.json says this is in the layout. Never by its name."""
        ...

    def load(self, folder: Path) -> tuple[M, Processor]:
        """The model in evaluation mode and its processor. Raises CheckpointError."""
        ...

    def obstacles(self, model: M, processor: Processor) -> list[str]:
        """What of a model the layout cannot say, each in a few words; empty if it can be
        exported."""
        ...

    def export(self, model: M, processor: Processor, folder: Path) -> None:
        """Write a model without obstacles into an empty folder."""
        ...

    def verify(self, model: M, processor: Processor, folder: Path) -> str:
        """Read what export wrote with the layout's own library and compare; the result in a line.
        Raises CheckpointError where it differs."""
        ...
