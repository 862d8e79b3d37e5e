"""Data sets to batches. `loader` is imported when it is first used."""

from importlib import import_module


def __getattr__(name: str) -> object:
    if name == "loader":
        return import_module("chiasm.data.dataset").loader
    raise AttributeError(f"module 'chiasm.data' has no attribute '{name}'")
