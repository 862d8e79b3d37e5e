"""Modules, names and attributes of earlier versions: every row of core/moved.py still works, with a
warning."""

import dataclasses
import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from chiasm.core import moved
from chiasm.core.batch import Encoded, ImageBatch, Slot, pack
from chiasm.core.sample import user


@pytest.mark.parametrize("old", moved.MODULES)
def test_old_modules_are_the_new_ones(old):
    for name in [name for name in sys.modules if name in moved.MODULES]:
        del sys.modules[name]
    with pytest.warns(DeprecationWarning, match=f"{old} is called {moved.MODULES[old]} now"):
        found = importlib.import_module(old)
    assert found is importlib.import_module(moved.MODULES[old])
    assert found.__name__ == moved.MODULES[old]


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [(module, old, new) for module, names in moved.NAMES.items() for old, new in names.items()],
)
def test_old_names_are_the_new_ones(module, old, new):
    loaded = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=f"{module}.{old} is called {new} now"):
        assert getattr(loaded, old) is getattr(loaded, new)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = loaded.nothing


def test_old_attributes_can_be_read():
    column = np.arange(3)
    encoded = Encoded(column, column + 1, column, column * 0, column)
    owners = (
        encoded,
        Slot(column, None, (1, 3)),
        pack([[encoded]]),
        ImageBatch(torch.zeros(1, 3), torch.ones(1, 2)),
        user("red?"),
    )
    for owner in owners:
        kind, own = type(owner).__name__, {f.name for f in dataclasses.fields(owner)}
        for old, new in moved.ATTRIBUTES[kind].items():
            if new in own:
                with pytest.warns(DeprecationWarning, match=f"{kind}.{old} is called {new} now"):
                    assert getattr(owner, old) is getattr(owner, new)
        with pytest.raises(AttributeError, match=f"'{kind}' object has no attribute 'nothing'"):
            _ = owner.nothing


def test_code_of_an_earlier_version_runs():
    code = (
        "from chiasm.infer.generate import Generator\n"
        "from chiasm.core.sample import question, answer\n"
        "import chiasm.generation.generator as new\n"
        "assert Generator is new.Generator\n"
        "assert question('a').parts[0].text == 'a' and answer('b').role == 'assistant'\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "chiasm.infer.generate is called chiasm.generation.generator now" in done.stderr
