"""The page to draw with, in a real browser: before simulated workers, and before canned answers."""

import re

from playwright.sync_api import Page, expect

from synerdiff.errors import QueueFull
from synerdiff.v1 import images_pb2
from tests.services.gateway.deployment import Door
from tests.services.gateway.pages.conftest import Opening
from tests.synerdiff_cli.fake_scheduler import Script, png
from tests.waiting import HANG_S, wait_until

expect.set_options(timeout=HANG_S * 1000)
ENDLESS = "2000"  # steps, 5 ms each: longer than a test needs to cancel


def ask(page: Page, prompt: str = "a dog", **fields: str) -> None:
    """Fill the form and press Draw."""
    page.get_by_label("What to draw").fill(prompt)
    for label, value in fields.items():
        page.get_by_label(label.replace("_", " "), exact=True).fill(value)
    page.get_by_role("button", name="Draw", exact=True).click()


def test_a_picture_is_made_and_its_settings_are_used_again(door: Door, opened: Opening) -> None:
    page = opened(door)
    seed = str(2**63 - 3)  # no number of JavaScript's own
    ask(page, "a red car", Seed=seed)
    card = page.get_by_role("article", name="a red car")
    expect(card.locator(".state")).to_have_text(re.compile(r"Drawn in [\d.]+ s"))
    expect(card.locator(".facts")).to_contain_text(f"512 × 512 · 20 steps · guidance 7.5 · DDIM · seed {seed}")
    expect(card.locator(".strip")).to_have_attribute("aria-label", "20 steps.")
    assert card.locator("img").evaluate("image => image.naturalWidth") == 512
    expect(page.locator("#announcer")).to_contain_text("a red car: Drawn in")
    with page.expect_download() as saved:
        card.get_by_role("link", name="Save").click()
    assert saved.value.suggested_filename == f"a-red-car-{seed}.png"

    page.get_by_label("What to draw").fill("another")
    page.get_by_label("Seed", exact=True).fill("")
    card.get_by_role("button", name="Use these settings").click()
    assert page.get_by_label("What to draw").input_value() == "a red car"
    assert page.get_by_label("Seed", exact=True).input_value() == seed
    expect(page.get_by_label("What to draw")).to_be_focused()


def test_several_pictures_come_of_seeds_in_a_row_and_can_be_gone_through(door: Door, opened: Opening) -> None:
    page = opened(door)
    ask(page, "two dogs", Seed="41", **{"Pictures,_typed": "2"})
    views = page.get_by_role("button", name="View two dogs")
    expect(views).to_have_count(2)
    expect(page.locator(".state")).to_have_text(re.compile("Drawn"))
    views.first.click()
    viewer = page.get_by_role("dialog", name="two dogs")
    expect(viewer.locator("dd").first).to_have_text("41")
    page.keyboard.press("ArrowRight")
    expect(viewer.locator("dd").first).to_have_text("42")
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(page.get_by_role("button", name="View two dogs, seed 42")).to_be_focused()


def test_progress_is_shown_and_a_job_is_cancelled(door: Door, opened: Opening) -> None:
    page = opened(door)
    ask(page, "endless", **{"Steps,_typed": ENDLESS})
    card = page.get_by_role("article", name="endless")
    expect(card.locator(".state")).to_have_text(re.compile(r"Step \d+ of 2000"))
    expect(card.locator("img.preview")).to_be_visible()
    cancelled = door.get("/metrics").text.count("hang_ups_total 0.0")
    card.get_by_role("button", name="Cancel").click()
    expect(card.locator(".state")).to_have_text("Cancelled")
    expect(card).to_be_focused()
    expect(card.get_by_role("button", name="Try again")).to_be_visible()
    assert cancelled in (0, 1)
    wait_until(lambda: re.search(r"hang_ups_total [1-9]", door.get("/metrics").text), "the cancellation")


def test_a_page_asks_for_a_few_jobs_at_once_and_the_others_wait_their_turn(door: Door, opened: Opening) -> None:
    page = opened(door)
    for number in range(5):
        ask(page, f"endless {number}", **{"Steps,_typed": ENDLESS})
    cards = [page.get_by_role("article", name=f"endless {number}") for number in range(5)]
    expect(cards[2].locator(".state")).to_have_text(re.compile(r"Step \d+ of 2000"))
    expect(cards[3].locator(".state")).to_have_text("After your other pictures, next in line")
    expect(cards[4].locator(".state")).to_have_text("After your other pictures, 1 ahead")
    cards[3].get_by_role("button", name="Cancel").click()
    expect(cards[3].locator(".state")).to_have_text("Cancelled")
    cards[0].get_by_role("button", name="Cancel").click()
    expect(cards[4].locator(".state")).to_have_text(re.compile(r"Step \d+ of 2000"))


def test_what_is_wrong_is_said_at_its_field(door: Door, opened: Opening) -> None:
    page = opened(door)
    ask(page, "a dog", **{"Steps,_typed": "99999"})
    words = "Steps: 99999 is out of bounds for DDIM: from 1 to 2000."
    expect(page.get_by_role("alert")).to_have_text(words)
    field = page.get_by_label("Steps", exact=True)
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_be_focused()
    expect(page.locator("#steps-error")).to_have_text(words)
    page.get_by_label("Steps, typed").fill("20")
    expect(page.locator("#steps-error")).to_be_hidden()
    ask(page, "   ")
    expect(page.locator("#prompt-error")).to_have_text("Say what to draw.")
    assert page.get_by_role("article").count() == 1


def test_everything_works_by_keyboard(door: Door, opened: Opening) -> None:
    page = opened(door)
    expect(page.get_by_label("What to draw")).to_be_focused()
    page.keyboard.type("a cat")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Draw", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    view = page.get_by_role("button", name="View a cat")
    expect(view).to_be_enabled()
    page.get_by_label("What to draw").focus()
    page.keyboard.press("Control+Enter")
    expect(view).to_have_count(2)
    view.first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()


def test_the_queue_is_told_and_skipped_steps_are_hatched_and_can_be_replayed(
    canned: tuple[Door, Script], opened: Opening
) -> None:
    door, script = canned
    script.happen(queued=images_pb2.Queued(position=3))
    script.hangs = True
    page = opened(door)
    ask(page, "first")
    expect(page.get_by_role("article", name="first").locator(".state")).to_have_text("Queued, 3 ahead")

    script.events.clear()
    script.hangs = False
    picture = images_pb2.Image(index=0, seed=7, width=16, height=16, format=images_pb2.IMAGE_FORMAT_PNG, data=png())
    script.happen(started=images_pb2.Started())
    script.happen(progress=images_pb2.Progress(index=0, step=20, num_inference_steps=20))
    script.happen(image=picture)
    skipped = images_pb2.SkippedSteps(index=0, steps=[4, 7])
    script.happen(finished=images_pb2.Finished(skipped_steps=[skipped], warnings=["the prompt was cut"]))
    ask(page, "second")
    card = page.get_by_role("article", name="second")
    expect(card.locator(".state")).to_contain_text("guidance skipped on 2 of 20 steps")
    expect(card.locator(".strip")).to_have_attribute("aria-label", "20 steps, guidance skipped on 2 of them: 5 and 8.")
    lengths = card.locator(".strip i").evaluate_all(
        "all => all.map(i => [i.className, i.style.getPropertyValue('--steps')])"
    )
    assert lengths == [["guided", "4"], ["skipped", "1"], ["guided", "2"], ["skipped", "1"], ["guided", "12"]]
    expect(card.locator(".facts")).to_contain_text("the prompt was cut")

    card.get_by_role("button", name="Use these settings").click()
    expect(page.locator("#replay")).to_contain_text("the same 2 steps")
    page.get_by_role("button", name="Draw", exact=True).click()
    wait_until(lambda: len(script.requests) == 3)
    assert script.requests[-1].skip_cfg.mode == images_pb2.SKIP_CFG_MODE_FIXED
    assert list(script.requests[-1].skip_cfg.steps) == [4, 7]
    page.get_by_role("button", name="Let the server decide").click()
    page.get_by_role("switch", name="Skip guidance under load").uncheck()
    page.get_by_role("button", name="Draw", exact=True).click()
    wait_until(lambda: len(script.requests) == 4)
    assert script.requests[-1].skip_cfg.mode == images_pb2.SKIP_CFG_MODE_OFF


def test_a_full_queue_is_told_in_words(canned: tuple[Door, Script], opened: Opening) -> None:
    door, script = canned
    page = opened(door)
    script.error = QueueFull("the queue holds 1000 jobs", retry_after_s=7)
    ask(page)
    expect(page.get_by_role("alert")).to_have_text("The queue holds 1000 jobs. Try again in 7 s.")
    script.error = None
    script.succeed()
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("article").first.locator(".state")).to_have_text(re.compile("Drawn"))
