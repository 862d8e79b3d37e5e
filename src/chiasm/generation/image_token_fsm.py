"""What may come next in a reply: words, images, and what announces an image's size.

    words ─ begin ─ [rows columns] ─ codes, [end of row], codes, … ─ end ─ words

Once its size is known, every token of an image is either any code or one certain id, so the rest
of the image is known as a list of marks. A mark is what a serving engine or the Generator needs
for a row: a row of the grammar's table of allowed ids or, negative, ~id of the only one allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chiasm.core.errors import ConfigError
from chiasm.core.protocols import SamplingParams
from chiasm.core.vocab import Vocabulary

Grid = tuple[int, int]

WORDS, WORDS_OR_IMAGE, CODES, ROWS, COLUMNS = range(5)
"""Marks: rows of Grammar.table; from COLUMNS on one for every number of rows."""


@dataclass(frozen=True)
class Edit:
    """An image to be drawn with some of its codes given: ids [n] in reading order, keep [n] says
    which of them stay, grid their (rows, columns)."""

    ids: tuple[int, ...]
    keep: tuple[bool, ...]
    grid: Grid


@dataclass(frozen=True)
class Drawn:
    """A complete image: its code ids in reading order and their (rows, columns)."""

    ids: list[int]
    grid: Grid


class Grammar:
    """The rules of one model; they differ between replies only in what `start` is told.

    grids: (rows, columns) of codes that images may have. They are announced when the vocabulary
    has ids for sides; without, there must be one only. table [M V] bool: which ids each mark
    allows.
    """

    def __init__(
        self, vocabulary: Vocabulary, grids: Sequence[Grid], device: torch.device | str = "cpu"
    ):
        if len(grids) > 1 and not vocabulary.sides:
            raise ConfigError(f"images of {len(grids)} sizes need ids that announce the size")
        self.vocabulary, self.grids = vocabulary, tuple(grids)
        self.announced = vocabulary.sides > 0
        self.painted = vocabulary.mask is not None  # in any order (generation/maskgit.py)
        words = vocabulary.allow_text()
        words[vocabulary.begin_image] = False
        both = words.clone()
        both[vocabulary.begin_image] = True
        self._heights = sorted({rows for rows, _ in grids}) if self.announced else []
        allowed = [words, both, vocabulary.allow_codes(), self._sides(self._heights)]
        allowed += [self._sides(w for h, w in grids if h == height) for height in self._heights]
        self.table = torch.stack(allowed).to(device)
        self._ids = torch.arange(vocabulary.size, device=device)
        self._asked: tuple[tuple[int, ...], Tensor] = ((), torch.empty(0))
        self.legal = torch.stack(allowed).numpy()  # the same, quick to ask for one id

    def start(
        self, sampling: SamplingParams, edit: Edit | None = None, room: int | None = None
    ) -> Row:
        """The state of a new reply. edit: what is given of its first image. room: tokens it may
        have; an image that would not fit is not begun. Raises ConfigError for a size that this
        model's images cannot have."""
        grid = edit.grid if edit is not None else sampling.grid
        if grid is not None and grid not in self.grids:
            raise ConfigError(
                f"images of {grid[0]}x{grid[1]} codes: this model draws "
                f"{', '.join(f'{h}x{w}' for h, w in self.grids)}"
            )
        return Row(self, sampling, edit, room)

    def allow(self, marks: Tensor) -> Tensor:
        """[N V] bool: what each of N rows may say, from their marks [N] on the grammar's device."""
        allowed = self.table[marks.clamp(min=0)]
        return torch.where(marks[:, None] < 0, self._ids == ~marks[:, None], allowed)

    def forbid(self, marks: tuple[int, ...], told: Tensor) -> Tensor:
        """[N V] bool: the opposite of allow; told: the marks on the grammar's device. Inside
        images rows ask for the same again and again, so the last answer is kept."""
        if self._asked[0] != marks:
            self._asked = (marks, ~self.allow(told))
        return self._asked[1]

    def columns_after(self, rows: int) -> int:
        """The mark of the columns that go with a number of rows."""
        return COLUMNS + self._heights.index(rows)

    def image(self, grid: Grid, edit: Edit | None = None) -> list[int]:
        """The marks of an image of this size after its announcement, its end included."""
        v, (rows, columns) = self.vocabulary, grid
        codes = [CODES] * (rows * columns)
        if edit is not None:
            codes = [~i if keep else CODES for i, keep in zip(edit.ids, edit.keep, strict=True)]
        if v.row_end is None:
            return [*codes, ~v.end_image]
        lines = [codes[i : i + columns] for i in range(0, len(codes), columns)]
        return [mark for line in lines for mark in (*line, ~v.row_end)] + [~v.end_image]

    def length(self, grid: Grid) -> int:
        """Tokens of an image, those around it included."""
        return 1 + 2 * self.announced + len(self.image(grid))

    def _sides(self, numbers) -> Tensor:
        allowed = torch.zeros(self.vocabulary.size, dtype=torch.bool)
        for number in numbers:
            allowed[self.vocabulary.side_to_id(number)] = True
        return allowed


class Row:
    """Where one reply stands: `allowed` says what may come, `take` takes it in.

    images: images finished. drawing: between begin and end of an image, where guidance and the
    sampling of images hold. done: the images that were asked for are drawn and nothing else was.
    """

    def __init__(
        self, grammar: Grammar, sampling: SamplingParams, edit: Edit | None, room: int | None
    ):
        self.grammar, self.sampling = grammar, sampling
        self.edit, self.room = edit, room
        self.images, self.taken = 0, 0
        self.drawing = self.done = False
        self._grid: Grid | None = None
        self._rows = 0  # announced so far
        self._codes: list[int] = []
        self._ahead: list[int] = []
        self._place = 0

    def allowed(self) -> int:
        """The mark of the next token."""
        if self._place < len(self._ahead):
            return self._ahead[self._place]
        if self.drawing:
            return self.grammar.columns_after(self._rows) if self._rows else ROWS
        v = self.grammar.vocabulary
        if self.sampling.draw_first and not self.images:
            return ~v.begin_image
        more = self.images < self.sampling.max_images and self._fits()
        return WORDS_OR_IMAGE if more else WORDS

    @property
    def open(self) -> bool:
        """Whether only codes are left to say of an image: its size is known."""
        return self.drawing and self._grid is not None

    def whole_rows(self) -> Drawn | None:
        """The codes so far of the image under way, where they are rows without a rest."""
        if not self.drawing or self._grid is None or len(self._codes) % self._grid[1]:
            return None
        return Drawn(list(self._codes), self._grid)

    def ahead(self) -> list[int]:
        """The marks of the next tokens as far as they are certain, at least one. They can all be
        chosen before any is taken."""
        if self._place < len(self._ahead):
            return self._ahead[self._place :]
        mark, grammar = self.allowed(), self.grammar
        if mark != ~grammar.vocabulary.begin_image or grammar.announced or grammar.painted:
            return [mark]
        return [mark, *grammar.image(grammar.grids[0], self._given())]

    def _given(self) -> Edit | None:
        """What is given of the next image."""
        return self.edit if self.images == 0 else None

    def take(self, token: int) -> Drawn | None:
        """Take in an allowed token; the image that it completes. Raises ValueError for a token
        that is not allowed."""
        self._check(token)
        v = self.grammar.vocabulary
        self.taken += 1
        if not self.drawing:
            if token == v.begin_image:
                self._begin()
        elif self._grid is None:
            self._announce(token)
        else:
            self._place += 1
            if token == v.end_image:
                return self._end()
            if token != v.row_end:
                self._codes.append(token)
        return None

    def _check(self, token: int) -> None:
        mark = self.allowed()
        if token == ~mark or (mark >= 0 and self.grammar.legal[mark, token]):
            return
        raise ValueError(f"token {token} is not allowed here (mark {mark}); choose among allow()")

    def _begin(self) -> None:
        self.drawing, self._codes, self._rows, self._grid = True, [], 0, None
        given = self._given()
        grid = given.grid if given is not None else self.sampling.grid
        if self.grammar.announced:
            sides = [] if grid is None else [~self.grammar.vocabulary.side_to_id(n) for n in grid]
            self._ahead, self._place = sides, 0
        else:
            self._open(self.grammar.grids[0])

    def _announce(self, token: int) -> None:
        number = self.grammar.vocabulary.id_to_side(token)
        if self._rows:
            self._open((self._rows, number))
        else:
            self._rows = number
            self._place += bool(self._ahead)

    def _open(self, grid: Grid) -> None:
        self._grid, self._place = grid, 0
        self._ahead = self.grammar.image(grid, self._given())

    def _end(self) -> Drawn:
        assert self._grid is not None
        drawn = Drawn(self._codes, self._grid)
        self.drawing, self.images = False, self.images + 1
        self._ahead, self._place = [], 0
        self.done = self.sampling.draw_first and self.images >= max(1, self.sampling.max_images)
        return drawn

    def _fits(self) -> bool:
        if self.room is None:
            return True
        longest = max(map(self.grammar.length, self.grammar.grids))
        return self.taken + longest <= self.room
