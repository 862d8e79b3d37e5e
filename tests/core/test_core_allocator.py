"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, torch
from chiasm.core.allocator import keep_freed_memory
def resident():  # pages
    return int(open("/proc/self/statm").read().split()[1])
if sys.argv[1] == "kept":
    keep_freed_memory()
block = torch.ones(2**24)  # 64 MB, above what glibc keeps by itself
before = resident()
del block
print(before - resident())
"""


def given_back(mode):
    """Pages that leave the process with a freed tensor."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_stays():
    usual = given_back("by default")
    if usual < 1000:
        pytest.skip("this C library keeps such blocks by itself")
    assert given_back("kept") < usual / 10
