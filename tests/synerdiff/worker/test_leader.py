import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synerdiff.errors import StaleLeader
from synerdiff.plans import Preview, UnetTickDone
from synerdiff.worker.leader import Leader, LeaderGuard, Report


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


EVENTS = st.lists(st.tuples(st.sampled_from(["attach", "plan"]), st.integers(0, 4), st.integers(0, 4)), max_size=40)


@given(EVENTS)
def test_only_the_highest_token_is_obeyed_and_its_ticks_only_rise(events: list[tuple[str, int, int]]) -> None:
    guard = LeaderGuard()
    highest, done = -1, -1
    for event, token, tick in events:
        if event == "attach" and token < highest:
            with pytest.raises(StaleLeader):
                guard.attach(token)
        elif event == "attach":
            done = done if token == highest else -1
            highest = token
            guard.attach(token)
        else:
            expected = token == highest and tick > done
            assert guard.accepts(token, tick) is expected
            done = tick if expected else done
        assert guard.token == highest


def test_another_leader_with_the_same_token_is_refused_and_told_above_which_it_has_to_be() -> None:
    guard = LeaderGuard()
    guard.attach(7, "one")
    assert guard.accepts(7, 3)
    with pytest.raises(StaleLeader) as refused:
        guard.attach(7, "two")  # of a Redis that has lost its data and counts anew
    assert refused.value.newest_token == 7
    guard.attach(7, "one")
    assert not guard.accepts(7, 3), "its ticks go on counting"
    guard.attach(8, "two")
    assert guard.accepts(8, 1)
