"""The Chromium of this machine, driven by playwright (extra `shots`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chiasm.core.errors import ConfigError, MissingExtraError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
REMEDY = (
    "apt-get install chromium (or: playwright install chromium), or name one with --browser PATH"
)


def find_browser(given: Path | None = None) -> Path:
    """The executable of a Chromium: the given one, the system's, or playwright's own download.
    Raises ConfigError naming how to get one."""
    if given is not None:
        if not given.is_file():
            raise ConfigError(f"--browser {given}: no such file; {REMEDY}")
        return given
    for name in NAMES:
        if found := shutil.which(name):
            return Path(found)
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or "~/.cache/ms-playwright")
    downloaded = sorted(cache.expanduser().glob("chromium*/chrome-linux*/chrome"))
    if downloaded:
        return downloaded[-1]
    raise ConfigError(f"no Chromium found as {', '.join(NAMES)}: {REMEDY}")


@contextmanager
def browser(executable: Path) -> Iterator[Any]:
    """A running browser, ended with the block. Raises ConfigError where it does not start."""
    try:
        from playwright.sync_api import Error, sync_playwright  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtraError("playwright", "shots", "Taking screenshots") from None
    # Chromium's sandbox refuses to run as root, the user of most containers.
    flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        try:
            running = playwright.chromium.launch(executable_path=executable, args=flags)
        except Error as error:
            first = str(error).strip().splitlines()[0]
            raise ConfigError(f"{executable} does not start: {first}; {REMEDY}") from None
        try:
            yield running
        finally:
            running.close()
