"""Where the real data sets of tests are: shared/data of the folder above the checkout or, for a
worktree, further up. A path that does not exist where there is none."""

from pathlib import Path

_ABOVE = Path(__file__).parents[1:5]
SHARED = next((p / "shared/data" for p in _ABOVE if (p / "shared/data").is_dir()), Path("absent"))
