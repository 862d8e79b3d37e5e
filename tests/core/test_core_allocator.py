"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from chiasm.core.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
faults = []
for _ in range(3):
    torch.ones(2**24)  # 64 MB, above what glibc keeps by itself
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[2] - faults[1])
"""


def second_round(mode):
    """Pages touched anew when what was freed is needed again."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_memory_is_paid_for_once():
    given_back = second_round("given back")
    if given_back < 100:
        pytest.skip("this C library or its huge pages hide what is tested")
    assert second_round("kept") < given_back / 10
