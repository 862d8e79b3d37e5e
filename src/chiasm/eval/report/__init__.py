"""One HTML page about a run: both routes side by side, for people."""

from chiasm.eval.report.page import render

__all__ = ["render"]
