"""What holds for both pages: how large they are, how soon they can be used, and that everybody can use them."""

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from services.gateway.app import PAGES
from tests.services.gateway.deployment import Door
from tests.services.gateway.pages.conftest import Opening
from tests.waiting import HANG_S

expect.set_options(timeout=HANG_S * 1000)
MOST_BYTES = 200 << 10
# A page that is usable within a second of an idle machine is given ten times that where tests share two cores.
USABLE_MS = 10_000
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
DESKTOP = {"viewport": {"width": 1280, "height": 900}}


def faults(page: Page) -> list[str]:
    """What axe-core calls serious or critical, where it is, and why."""
    found = Axe().run(page).response["violations"]
    return [
        f"{fault['id']}: {node['target']} {node['failureSummary']}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_serious_where_pictures_are_drawn(
    door: Door, opened: Opening, scheme: str, screen: dict[str, object]
) -> None:
    page = opened(door, color_scheme=scheme, **screen)
    page.locator("#settings").evaluate("settings => { settings.open = true; }")
    assert faults(page) == []
    page.get_by_label("What to draw").fill("a dog")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator(".state")).to_contain_text("Drawn")
    page.get_by_label("Steps, typed").fill("99999")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert faults(page) == []
    page.get_by_role("button", name="View a dog").click()
    assert faults(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_serious_where_it_is_watched(
    door: Door, opened: Opening, scheme: str, screen: dict[str, object]
) -> None:
    page = opened(door, "/operate/", color_scheme=scheme, **screen)
    door.post("/v1/images/generations", json={"prompt": "a dog"})
    expect(page.locator("#workers table")).to_be_visible()
    page.get_by_label("Items of the last ticks").press("End")
    assert faults(page) == []


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("path", ["/", "/operate/"])
def test_nothing_is_wider_than_the_screen(door: Door, opened: Opening, path: str, screen: dict[str, object]) -> None:
    page = opened(door, path, **screen)
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide == 0


def test_the_pages_are_small() -> None:
    assert sum(path.stat().st_size for path in Path(PAGES).rglob("*") if path.is_file()) < MOST_BYTES


def test_the_page_is_soon_usable(door: Door, opened: Opening) -> None:
    page = opened(door)
    page.reload()
    page.locator("#model option").first.wait_for(state="attached")
    usable_ms = page.evaluate("performance.now()")
    print(f"usable after {usable_ms:.0f} ms")
    assert usable_ms < USABLE_MS
