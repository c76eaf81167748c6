"""Pages in headless Chromium, for the rooms that write some."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

# Flags that keep the browser from asking anybody else for anything.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip


def started() -> Iterator[Any]:
    """The browser of playwright; the test is skipped where one of them is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("needs Chromium, which is not installed")
    if subprocess.run([program, "--version"], capture_output=True, timeout=60, check=False).returncode:
        pytest.skip(f"{program} does not start")  # as where its installation was cut short
    with playwright.sync_playwright() as api:
        found = api.chromium.launch(executable_path=program, args=FLAGS)
        yield found
        found.close()


def watched(browser: Any, width: int, height: int, home: str) -> tuple[Any, list[str]]:
    """A new page, and what goes wrong on it: errors of scripts, policies broken, requests to elsewhere than `home`."""
    page = browser.new_page(viewport={"width": width, "height": height})
    problems: list[str] = []
    at_home = (home, "blob:", "data:")
    page.on("request", lambda sent: None if sent.url.startswith(at_home) else problems.append(sent.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if _is_wrong(said) else None)
    return page, problems


def _is_wrong(said: Any) -> bool:
    return said.type == "error" and "Failed to load resource" not in said.text  # as after a 422


def shot(page: Any, name: str) -> None:
    """A picture of the page for whoever asks for one."""
    if folder := os.environ.get("SRATTN_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)
