import asyncio

from hypothesis import given
from hypothesis import strategies as st

from services.unet_worker.outbox import Outbox, Report
from synerdiff.plans import Preview, UnetTickDone


def tick(number: int) -> UnetTickDone:
    return UnetTickDone(number, (), (), ())


def preview(task: str, call: int) -> Preview:
    return Preview(task, call, b"png")


async def drained(outbox: Outbox) -> list[Report | Preview]:
    outbox.close()
    return [message async for message in outbox.messages()]


@given(st.lists(st.one_of(st.just("report"), st.sampled_from(["a/0", "b/0"])), max_size=20))
def test_reports_go_first_in_order_and_only_the_newest_preview_of_a_task_waits(puts: list[str]) -> None:
    async def scenario() -> None:
        outbox = Outbox()
        for number, kind in enumerate(puts):
            outbox.put(tick(number) if kind == "report" else preview(kind, number))
        messages = await drained(outbox)
        reports = [message for message in messages if isinstance(message, UnetTickDone)]
        previews = [message for message in messages if isinstance(message, Preview)]
        assert messages == [*reports, *previews]
        assert [report.tick for report in reports] == [k for k, kind in enumerate(puts) if kind == "report"]
        newest = {kind: k for k, kind in enumerate(puts) if kind != "report"}
        assert {p.task_id: p.call for p in previews} == newest
        assert len(previews) == len(newest)

    asyncio.run(scenario())


async def test_a_preview_that_waits_lets_a_later_report_pass() -> None:
    outbox = Outbox()
    messages = outbox.messages()
    outbox.put(preview("a/0", 1))
    outbox.put(preview("b/0", 1))
    assert isinstance(await anext(messages), Preview)
    outbox.put(tick(1))
    assert await anext(messages) == tick(1)


async def test_a_closed_outbox_takes_nothing() -> None:
    outbox = Outbox()
    outbox.put(tick(1))
    outbox.close()
    outbox.put(tick(2))
    assert await drained(outbox) == [tick(1)]


async def test_messages_wait_for_the_next() -> None:
    outbox = Outbox()
    waiting = asyncio.ensure_future(anext(outbox.messages()))
    await asyncio.sleep(0)
    assert not waiting.done()
    outbox.put(tick(1))
    assert await waiting == tick(1)
