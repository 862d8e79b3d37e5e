"""One training loop for all four trainable models.

`chiasm.train` is this package and a function of the Python API at once: called, it is
chiasm.api.train.
"""

import sys
from importlib import import_module
from types import ModuleType


class _CallablePackage(ModuleType):
    def __call__(self, *given: object, **named: object) -> object:
        return import_module("chiasm.api").train(*given, **named)


sys.modules[__name__].__class__ = _CallablePackage
