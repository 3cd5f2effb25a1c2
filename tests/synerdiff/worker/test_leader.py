import asyncio

from hypothesis import given
from hypothesis import strategies as st

from synerdiff.plans import Preview, UnetTickDone
from synerdiff.worker.leader import Leader, Report


def tick(number: int) -> UnetTickDone:
    return UnetTickDone(number, (), (), ())


def preview(task: str, call: int) -> Preview:
    return Preview(task, call, b"png")


async def drained(leader: Leader) -> list[Report | Preview]:
    leader.end()
    return [message async for message in leader.messages()]


@given(st.lists(st.one_of(st.just("report"), st.sampled_from(["a/0", "b/0"])), max_size=20))
def test_reports_go_first_in_order_and_only_the_newest_preview_of_a_task_waits(puts: list[str]) -> None:
    async def scenario() -> None:
        leader = Leader(1)
        for number, kind in enumerate(puts):
            leader.tell(tick(number) if kind == "report" else preview(kind, number))
        messages = await drained(leader)
        reports = [message for message in messages if isinstance(message, UnetTickDone)]
        previews = [message for message in messages if isinstance(message, Preview)]
        assert messages == [*reports, *previews]
        assert [report.tick for report in reports] == [k for k, kind in enumerate(puts) if kind == "report"]
        newest = {kind: k for k, kind in enumerate(puts) if kind != "report"}
        assert {p.task_id: p.call for p in previews} == newest
        assert len(previews) == len(newest)

    asyncio.run(scenario())


async def test_a_preview_that_waits_lets_a_later_report_pass() -> None:
    leader = Leader(1)
    messages = leader.messages()
    leader.tell(preview("a/0", 1))
    leader.tell(preview("b/0", 1))
    assert isinstance(await anext(messages), Preview)
    leader.tell(tick(1))
    assert await anext(messages) == tick(1)


async def test_a_stream_that_has_ended_takes_nothing() -> None:
    leader = Leader(1)
    leader.tell(tick(1))
    leader.end()
    leader.tell(tick(2))
    assert await drained(leader) == [tick(1)]


async def test_messages_wait_for_the_next() -> None:
    leader = Leader(1)
    waiting = asyncio.ensure_future(anext(leader.messages()))
    await asyncio.sleep(0)
    assert not waiting.done()
    leader.tell(tick(1))
    assert await waiting == tick(1)
