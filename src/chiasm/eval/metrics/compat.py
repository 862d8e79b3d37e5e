"""Whose numbers to reproduce where ours are meant to be better."""

from __future__ import annotations

from typing import Literal

Compat = Literal["lmms-eval"] | None
"""None counts what is right as right; "lmms-eval" repeats that harness, defects included, so that a
table of its numbers can be compared with."""
