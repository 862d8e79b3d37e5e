"""The command line: `app` parses, each other file is one command."""

from chiasm.cli.app import main

__all__ = ["main"]
