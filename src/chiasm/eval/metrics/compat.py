"""Whose numbers to reproduce where ours are meant to be better."""

from __future__ import annotations

from typing import Literal

Compat = Literal["lmms-eval"] | None
"""None counts what is right as right; "lmms-eval" repeats version 0.7.3 of that harness, defects
included (eval/harness.py), so that a table of its numbers can be compared with."""
