"""A headless Chromium, and pages in it that may say nothing on the console and ask no other host for anything.

Where no Chromium is found, the tests of the pages are skipped and say so: Debian has it as `chromium`.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.services.gateway.deployment import Door
from tests.waiting import HANG_S

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# A refused request is an answer that the page shows; the browser notes it on the console by itself.
_REFUSED = "Failed to load resource: the server responded with a status of 4"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for the tests of a file: while it is open, an event loop of Playwright runs in this thread."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip(f"no Chromium on this machine (none of {', '.join(_NAMES)})")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@dataclass
class Looked:
    """What came of opening pages: what they said on the console, and which hosts they asked."""

    said: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)

    def at(self, page: Page) -> None:
        """Note what a page does from now on."""
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.said.append(f"uncaught: {error}"))
        page.on("request", lambda request: self.asked.add(request.url))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(_REFUSED):
            self.said.append(f"{message.type}: {message.text}")


Opening = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opening]:
    """Opens a page of a gateway in a context of its own; what contexts take may be said by keyword."""
    looked, contexts, hosts = Looked(), [], set()

    def open_page(door: Door, path: str = "/", **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(HANG_S * 1000)
        page = context.new_page()
        looked.at(page)
        page.goto(door.url + path)
        hosts.add(door.url)
        if path == "/":
            page.locator("#model option").first.wait_for(state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert looked.said == []
    strangers = {url for url in looked.asked if not url.startswith((*(f"{host}/" for host in hosts), "blob:", "data:"))}
    assert strangers == set()
