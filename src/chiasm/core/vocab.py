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

    Only models that need them have, as ids of the text range that are no words: mask, which stands
    for an image code not yet drawn; row_end, behind each row of codes; the last `sides` text ids,
    which announce the rows and columns of an image, 1 and up.
    """

    text: int
    codes: int
    pad: int
    begin: int
    end: int
    begin_image: int
    end_image: int
    mask: int | None = None
    row_end: int | None = None
    sides: int = 0

    @property
    def size(self) -> int:
        return self.text + self.codes

    @property
    def first_code(self) -> int:
        return self.text

    def is_code(self, ids: Tensor) -> Tensor:
        """Which ids are image codes; same shape, bool."""
        return (ids >= self.text) & (ids < self.size)

    def in_image(self, ids: Tensor) -> Tensor:
        """Which ids are image codes, drawn or yet to be drawn; same shape, bool."""
        code = self.is_code(ids)
        return code if self.mask is None else code | (ids == self.mask)

    def side_to_id(self, number: int) -> int:
        """The id that announces so many rows or columns. Raises ValueError if there is none."""
        if not 1 <= number <= self.sides:
            raise ValueError(f"no id announces a side of {number}, only 1 to {self.sides}")
        return self.text - self.sides + number - 1

    def id_to_side(self, token: int) -> int:
        return token - (self.text - self.sides) + 1

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
        allowed[: self.text - self.sides] = True
        hidden = (self.pad, self.begin, self.end_image, self.mask, self.row_end)
        allowed[[i for i in hidden if i is not None]] = False
        return allowed

    def allow_codes(self, device: torch.device | str = "cpu") -> Tensor:
        """[V] bool: the image codes."""
        allowed = torch.zeros(self.size, dtype=torch.bool, device=device)
        allowed[self.text :] = True
        return allowed
