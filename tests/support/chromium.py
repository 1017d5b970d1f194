"""Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    "the playground is tested in a real browser, and there is none here: install Chromium (on Debian and Ubuntu: "
    "apt-get install chromium), or name one by EMOVLLM_CHROMIUM"
)


def executable() -> str:
    """Raises: RuntimeError where there is no Chromium."""
    named = os.environ.get("EMOVLLM_CHROMIUM")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        raise RuntimeError(MISSING)
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser. While it is open, this thread has a running event loop."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Tests may run as root, in containers with a small /dev/shm.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=executable(), args=arguments)
        try:
            yield browser
        finally:
            browser.close()
