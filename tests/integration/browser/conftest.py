"""A headless Chromium for pages; the tests that need it are skipped where there is none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

PATIENCE = 60.0  # seconds; ten times what a busy machine needs
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = next(filter(None, map(shutil.which, _NAMES)), None)
    if executable is None:
        pytest.skip("there is no Chromium to open pages with")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    expect.set_options(timeout=1000 * PATIENCE)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


@contextmanager
def view_server(
    run: Path, *options: str, port: str = "0"
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of `sgpipe view` on a run, and its process."""
    command = [
        Path(sys.executable).parent / "sgpipe",
        "view",
        run,
        "--no-browser",
        "--port",
        port,
        *options,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip().rstrip("/"), server
        finally:
            server.kill()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Any]:
    """A function that opens an address or a file; the test fails if the page complains or loads
    from elsewhere.
    """
    complaints: list[str] = []
    pages: list[Page] = []

    def visit_(url: str, width: int = 1200, scheme: str = "light", **options: object) -> Page:
        viewport = {"width": width, "height": 900}
        context = browser.new_context(
            viewport=viewport, color_scheme=scheme, reduced_motion="reduce", **options
        )
        page = context.new_page()
        pages.append(page)
        home = "/".join(url.split("/")[:3]) + "/"
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "dialog",
            lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()),
        )
        page.on(
            "request",
            lambda request: (
                request.url.startswith((home, "data:")) or complaints.append(request.url)
            ),
        )
        page.goto(url)
        return page

    yield visit_
    heard = list(complaints)  # not that a server has ended meanwhile
    for page in pages:  # those that stay open go on asking their server
        page.context.close()
    assert heard == []


def eventually(read: Callable[[], object], expected: object) -> None:
    """Read until it is as expected: a page shows what comes of a click in its own time."""
    end = time.monotonic() + PATIENCE
    while (value := read()) != expected and time.monotonic() < end:
        time.sleep(0.05)
    assert value == expected


def pattern(text: str) -> str:
    """A text as a person reads it, whatever its spaces and the marks that isolate texts of another
    direction.
    """
    mark = "[\u2068\u2069]*"
    return mark + "".join((r"\s+" if char == " " else re.escape(char)) + mark for char in text)


def shows(page: Page, selector: str, text: str) -> None:
    expect(page.locator(selector)).to_have_text(
        re.compile(rf"^\s*{pattern(text)}\s*$"), use_inner_text=True
    )


def mentions(page: Page, selector: str, text: str) -> None:
    expect(page.locator(selector)).to_contain_text(re.compile(pattern(text)), use_inner_text=True)


def accessibility_faults(page: Page) -> list[str]:
    """What axe-core finds on a page that keeps people from using it: rule, help, and the first
    elements.
    """
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    violations = axe.Axe().run(page).response["violations"]
    return [
        f"{fault['id']}: {fault['help']}: {[node['html'][:200] for node in fault['nodes'][:3]]}"
        for fault in violations
        if fault["impact"] in ("serious", "critical")
    ]
