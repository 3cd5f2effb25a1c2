"""The page to watch it run, in a real browser: under load, and with canned ticks."""

import re
import threading

from playwright.sync_api import Page, expect

from synerdiff.errors import Unavailable
from synerdiff.v1 import operations_pb2
from tests.services.gateway.deployment import Door
from tests.services.gateway.pages.conftest import Opening
from tests.synerdiff_cli.fake_scheduler import Script
from tests.waiting import HANG_S, wait_until

expect.set_options(timeout=HANG_S * 1000)


def newest_tick(page: Page) -> int:
    """The tick of the newest item that the timeline shows, by its keys; 0 without any."""
    page.get_by_label("Items of the last ticks").press("End")
    title = page.locator("#explanation").inner_text()
    found = re.search(r"Tick (\d+)", title)
    return int(found[1]) if found else 0


def test_the_timeline_moves_under_load(door: Door, opened: Opening) -> None:
    page = opened(door, "/operate/")
    expect(page.locator("#connection")).to_have_text("Live · pool default · policy continuous")
    body = {"prompt": "a dog", "n": 4, "num_inference_steps": 400}
    drawing = threading.Thread(target=door.post, args=("/v1/images/generations",), kwargs={"json": body})
    drawing.start()
    wait_until(lambda: newest_tick(page) > 0, "a tick")
    first = newest_tick(page)
    picture = page.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    wait_until(lambda: newest_tick(page) > first + 20, "later ticks")
    assert page.locator("canvas").evaluate("canvas => canvas.toDataURL()") != picture
    expect(page.locator("#tile-steps dd")).to_have_text(re.compile(r"[1-9].* a second"))
    drawing.join()
    expect(page.locator("#tile-latency dd")).to_have_text(re.compile(r"\d.*P95"))
    row = page.get_by_role("row", name=re.compile("unet-.*UNet simulated"))
    expect(row).to_contain_text("of 32")
    expect(page.locator("#queue")).to_contain_text("Normal")


def watched() -> operations_pb2.WatchTicksResponse:
    """One tick of two items: what the planner was asked, and what it said."""
    planned = operations_pb2.RoundSums(
        name="planned", items=1, one_row=2, total_ms=130, mean_decode_ms=60, objective_ms=140, feasible=True
    )
    coarse = operations_pb2.RoundSums(name="coarse", items=1, total_ms=160, mean_decode_ms=160, objective_ms=320)
    fine = operations_pb2.RoundSums(name="fine", items=4, total_ms=140, objective_ms=150.5, feasible=True)
    told = operations_pb2.PlannedRound(
        id=1,
        unet=8,
        vae=2,
        skips=3,
        threshold=0.8,
        skip_price_ms=5,
        planned=planned,
        fastest_ms=120,
        others=[coarse, fine],
    )
    plan = operations_pb2.ItemPlan(tasks=8, skips=2, rows=14, decodes=1.5, chunks=2, predicted_ms=100, round=1)
    message = operations_pb2.WatchTicksResponse(rounds=[told])
    for kind, start_ms, end_ms in (("unet", 0.0, 112.0), ("vae", 1.0, 125.0)):
        ran = operations_pb2.RanItem(place=1, start_unix_ms=start_ms, end_unix_ms=end_ms, rows=14, plan=plan)
        part = operations_pb2.TickPart(
            domain="gpu-0", worker_id=f"{kind}-0", kind=kind, tick=9, items=[ran], threshold=0.8, in_step=True
        )
        part.why = "unet-0: 8 step, 1 set aside, 2 decode, busy"
        message.parts.append(part)
    return message


def at(message: operations_pb2.WatchTicksResponse, now_ms: float) -> operations_pb2.WatchTicksResponse:
    """The same, ended half a second before `now_ms`."""
    for part in message.parts:
        for item in part.items:
            item.start_unix_ms += now_ms - 625
            item.end_unix_ms += now_ms - 625
    return message


def test_an_item_says_why_it_was_planned_so(canned: tuple[Door, Script], opened: Opening) -> None:
    door, script = canned
    page = opened(door, "/operate/")
    script.ticks.append(at(watched(), page.evaluate("Date.now()")))
    page.reload()
    timeline = page.get_by_label("Items of the last ticks")
    wait_until(lambda: newest_tick(page) == 9, "the tick")
    expect(page.get_by_role("button", name="Go on")).to_be_hidden()
    timeline.press("ArrowLeft")
    expect(page.get_by_role("button", name="Go on")).to_be_visible()  # an arrow key stops the movement
    why = page.locator("#explanation")
    for words in (
        "Tick 9, item 1: 14 UNet rows beside 1.5 decodes",
        "8 tasks made a step in this tick, 1 were set aside, 2 decodes were served. Others wait",
        "8 tasks step, 2 of them without guidance: 14 rows, beside 1.5 decodes, each cut into 2 chunks",
        "The planner was asked for 8 steps and 2 decodes in one round (up to 3 may skip guidance)",
        "The threshold of 0.80 allows 150.0 ms. The round takes 130.0 ms, within that",
        "2 skips at 5 ms each were worth it",
        "It took 25 % longer than predicted",
    ):
        expect(why).to_contain_text(words)
    expect(why.get_by_role("row", name="coarse")).to_contain_text("10.0 ms slower than allowed")
    expect(why.get_by_role("row", name="fine")).to_contain_text("objective 10.5 ms worse")


def test_a_scheduler_that_goes_is_told_and_found_again(canned: tuple[Door, Script], opened: Opening) -> None:
    door, script = canned
    script.error = Unavailable("this scheduler does not lead pool 'default'; ask its leader")
    page = opened(door, "/operate/")
    expect(page.locator("#timeline #quiet")).to_be_visible()
    script.ticks.append(at(watched(), page.evaluate("Date.now()")))
    script.error = None
    wait_until(lambda: newest_tick(page) == 9, "the tick")


def test_nobody_is_asked_while_the_page_is_not_seen(canned: tuple[Door, Script], opened: Opening) -> None:
    door, _ = canned
    page = opened(door, "/operate/")
    expect(page.locator("#connection.live")).to_be_visible()
    wait_until(lambda: streams(door) == 2, "both streams")
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    wait_until(lambda: streams(door) == 0, "the end of the streams")
    page.evaluate("delete document.hidden")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    wait_until(lambda: streams(door) == 2, "the streams again")


def streams(door: Door) -> int:
    """Requests that the gateway is answering, but for the one that asks."""
    found = re.search(r"^synerdiff_gateway_open_requests (\d+)", door.get("/metrics").text, re.MULTILINE)
    assert found
    return int(found[1]) - 1
