"""Where what can be made again is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """The folder that CHIASM_CACHE names, else ~/.cache/chiasm."""
    return Path(os.environ.get("CHIASM_CACHE", Path.home() / ".cache" / "chiasm"))
