"""One numbering of text and image tokens, so that no id is ever written as a number in code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Vocabulary:
    """Text ids come first (special tokens among them), image codes after.

    text: number of text ids. codes: number of image codes (0: the model cannot draw).
    begin, end: text-range ids that open and close a document. begin_image, end_image: ids around
    an image's codes. pad is never a target.
    """

    text: int
    codes: int
    pad: int
    begin: int
    end: int
    begin_image: int
    end_image: int

    @property
    def size(self) -> int:
        return self.text + self.codes

    @property
    def first_code(self) -> int:
        return self.text

    def is_code(self, ids: Tensor) -> Tensor:
        """Which ids are image codes; same shape, bool."""
        return (ids >= self.text) & (ids < self.size)

    def code_to_id(self, codes: Tensor) -> Tensor:
        return codes + self.text

    def id_to_code(self, ids: Tensor) -> Tensor:
        """Image codes of ids. Raises ValueError if an id is not one."""
        if not bool(self.is_code(ids).all()):
            bad = ids[~self.is_code(ids)][0].item()
            raise ValueError(f"id {bad} is not an image code ({self.text} to {self.size - 1})")
        return ids - self.text

    def allow_text(self, device: torch.device | str = "cpu") -> Tensor:
        """[V] bool: ids that may be written as text (no codes, padding or stray end of image)."""
        allowed = torch.zeros(self.size, dtype=torch.bool, device=device)
        allowed[: self.text] = True
        allowed[[self.pad, self.begin, self.end_image]] = False
        return allowed

    def allow_codes(self, device: torch.device | str = "cpu") -> Tensor:
        """[V] bool: the image codes."""
        allowed = torch.zeros(self.size, dtype=torch.bool, device=device)
        allowed[self.text :] = True
        return allowed
