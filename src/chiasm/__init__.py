"""chiasm: both routes to a vision language model through the same data, trainer and evaluator.

The Python API is chiasm/api.py. Its names are imported when they are first used: `import chiasm`
itself imports neither torch nor transformers. `__init__.pyi` tells type checkers what is here.
"""

from importlib import import_module

from chiasm.core import moved

__version__ = "0.1.0"

moved.install()

_API = ("VLM", "Callback", "Output", "Run", "evaluate", "load")
_PACKAGES = ("data", "train")
"""`train` can be called (chiasm/train/__init__.py)."""


def __getattr__(name: str) -> object:
    if name in _PACKAGES:
        return import_module(f"chiasm.{name}")
    if name in _API:
        return getattr(import_module("chiasm.api"), name)
    raise AttributeError(f"module 'chiasm' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_API, *_PACKAGES})
