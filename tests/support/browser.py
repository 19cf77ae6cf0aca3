"""A real browser for tests of pages: Debian's chromium and chromium-driver."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def chromium() -> Iterator[Any]:
    """A selenium driver that keeps the console's lines; skips where selenium or the browser is missing."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is missing: pip install selenium")
    browser, chauffeur = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or chauffeur is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = browser
    options.add_argument("--headless=new")
    options.add_argument("--window-size=1500,1400")
    options.add_argument("--disable-dev-shm-usage")
    options.add_argument("--hide-scrollbars")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    found = selenium.Chrome(options=options, service=selenium.ChromeService(chauffeur))
    try:
        yield found
    finally:
        found.quit()
