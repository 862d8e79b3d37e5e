"""Modules and names of earlier versions and where they are now (core/aliases.py has those of saved
files and the command line). An import by an old name works and warns."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

MODULES = {
    "chiasm.core.picture": "chiasm.core.image",
    "chiasm.data.pictures": "chiasm.data.images",
    "chiasm.infer": "chiasm.generation",
    "chiasm.infer.draw": "chiasm.generation.best_of",
    "chiasm.infer.edit": "chiasm.generation.edit",
    "chiasm.infer.generate": "chiasm.generation.generator",
    "chiasm.infer.grammar": "chiasm.generation.image_token_fsm",
    "chiasm.infer.likelihood": "chiasm.generation.likelihood",
    "chiasm.infer.look": "chiasm.generation.attribution",
    "chiasm.infer.paint": "chiasm.generation.maskgit",
    "chiasm.infer.replies": "chiasm.generation.sequence",
    "chiasm.infer.sampling": "chiasm.generation.sampling",
    "chiasm.infer.steps": "chiasm.generation.steps",
}
"""Old name of a module -> its name now."""

NAMES = {
    "chiasm.core.batch": {"PictureBatch": "ImageBatch"},
    "chiasm.core.image": {"open_picture": "open_image"},
    "chiasm.core.protocols": {
        "Piece": "StreamChunk",
        "Respond": "Generate",
        "Sampling": "SamplingParams",
    },
    "chiasm.core.sample": {"Turn": "Message", "answer": "assistant", "question": "user"},
    "chiasm.data.images": {"PictureProcessor": "ImageProcessor", "PictureStream": "ImageStream"},
    "chiasm.nn.attention": {
        "Index": "TokenIndex",
        "Layout": "AttentionPlan",
        "Order": "Permutation",
        "attend": "attention",
    },
}
"""Module -> its names, old -> new."""

COLUMNS = {
    "block": "block_ids",
    "branch": "branch_ids",
    "grids": "image_grids",
    "ids": "input_ids",
    "patches": "image_patches",
    "position": "position_ids",
    "segment": "segment_ids",
    "targets": "labels",
}
ATTRIBUTES = {
    "Batch": COLUMNS,
    "Encoded": COLUMNS,
    "ImageBatch": COLUMNS,
    "Message": {"parts": "content"},
    "Slot": COLUMNS,
}
"""Class -> its attributes, old -> new; they can be read by their old names."""


def _warn(old: str, new: str, level: int) -> None:
    warnings.warn(f"{old} is called {new} now", DeprecationWarning, stacklevel=level + 1)


def names(module: str) -> Callable[[str], Any]:
    """`__getattr__` of a module some of whose names changed."""
    known = NAMES[module]

    def get(name: str) -> Any:
        if name not in known:
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        _warn(f"{module}.{name}", known[name], 2)
        return getattr(sys.modules[module], known[name])

    return get


def attribute(owner: object, name: str) -> Any:
    """`__getattr__` of a class some of whose attributes changed; only asked for what is missing."""
    kind = type(owner).__name__
    new = ATTRIBUTES.get(kind, {}).get(name)
    if new is None:
        raise AttributeError(f"'{kind}' object has no attribute '{name}'")
    _warn(f"{kind}.{name}", new, 3)
    return getattr(owner, new)


class _Loader(importlib.abc.Loader):
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        """The module of the new name takes the place of the empty one."""
        name = module.__name__
        sys.modules[name] = importlib.import_module(MODULES[name])


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in MODULES:
            return None
        warnings.warn(
            f"{fullname} is called {MODULES[fullname]} now", DeprecationWarning, stacklevel=2
        )
        return importlib.machinery.ModuleSpec(fullname, _Loader())


def install() -> None:
    """Old names of modules can be imported from now on."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
