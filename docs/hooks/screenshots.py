"""The screenshots of docs/view.md, from a run on the miniworld: `.venv/bin/python
docs/hooks/screenshots.py`.

Needs Chromium or Chrome. The run is generated into build/screenshots, and used again while it is
there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[2]
RUN = ROOT / "build" / "screenshots" / "miniworld-relations"
IMAGES = ROOT / "docs" / "images"
_SGPIPE = Path(sys.executable).parent / "sgpipe"
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main() -> None:
    """Make the run if needed, and take every screenshot."""
    from playwright.sync_api import sync_playwright

    if not (RUN / "manifest.jsonl").is_file():
        subprocess.run(
            [_SGPIPE, "generate", "miniworld", "--limit", "200", "--out", RUN], check=True
        )
    (RUN / "judgements.jsonl").unlink(missing_ok=True)
    chromium = next(filter(None, map(shutil.which, _CHROMIUM)))
    with viewer(RUN) as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(
            viewport={"width": 1280, "height": 800}, device_scale_factor=1
        ).new_page()
        page.goto(f"{url}?q=person+riding+*")
        take(page, "view-gallery")
        page.locator(".card > a").nth(2).click()
        take(page, "view-image")
        browser.close()


@contextmanager
def viewer(run: Path) -> Iterator[str]:
    """The address of a server on a run."""
    command = [str(_SGPIPE), "view", str(run), "--no-browser", "--port", "0", "--as", "anna"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def take(page: Page, name: str) -> None:
    """Save what the page shows now into docs/images."""
    page.wait_for_load_state("networkidle")
    page.screenshot(path=IMAGES / f"{name}.jpg", quality=82)


if __name__ == "__main__":
    main()
