"""Callbacks: a user's own code called during training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class Callback:
    """Base class of callbacks: override what you need.

    All are called by the main rank, between two steps. An exception that one raises ends the run,
    whose checkpoints stay.
    """

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """After every `log_every` steps of a stage and after its last one. step: of the whole run,
        from 1; metrics: means since the last call (loss, its parts, grad_norm, lr/..., rates)."""

    def on_evaluate(self, step: int, metrics: Mapping[str, float]) -> None:
        """After an evaluation; metrics by name, without "eval/" before them."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """When a checkpoint is complete on disk. It is written beside the training, so this is
        called before the next one is begun, or at the end."""
