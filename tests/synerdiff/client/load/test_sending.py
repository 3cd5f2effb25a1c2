"""Sending: who is sent when, and latencies that a server, or this client, cannot hide by being slow."""

import asyncio
import time
from itertools import pairwise

import pytest

from synerdiff.client.load.arrivals import Arrival, bursts
from synerdiff.client.load.requests import Drawn, LoadRequest, Mix
from synerdiff.client.load.sending import Answer, ClosedLoop, OpenLoop, Window, in_turns, order_of_round, send
from synerdiff.errors import FieldViolation, InvalidRequest, QueueFull, SynerDiffError
from tests.synerdiff.client.load.slow_server import STEPS, serving, slow_server

MIX = Mix(("a cat", "a dog"))


def every(gap_s: float, number: int) -> OpenLoop:
    return OpenLoop(tuple(Arrival(k * gap_s, LoadRequest("a cat", k)) for k in range(number)))


async def test_a_server_that_falls_behind_cannot_hide_it() -> None:
    server = slow_server(seconds=0.05, at_once=1)
    async with serving(server) as client:
        window = await send(client, every(0.01, 12))
    # The last was due after 0.11 s and is served as the twelfth: a client that waits for answers would see 0.05 s.
    assert window.answers[-1].latency_s >= 12 * 0.05 - 0.11
    assert window.answers[-1].latency_s > window.answers[0].latency_s
    assert server.most_at_once > 2


async def test_latency_counts_from_when_a_request_was_due_though_this_client_was_late() -> None:
    stalled: list[float] = []

    def stall(answer: Answer) -> None:
        if not stalled:
            stalled.append(answer.ended_s)
            time.sleep(0.4)

    async with serving(slow_server(seconds=0.01)) as client:
        window = await send(client, every(0.05, 20), on_answer=stall)
    during = [answer for answer in window.answers if stalled[0] < answer.due_s < stalled[0] + 0.4]
    assert [answer.due_s for answer in window.answers] == pytest.approx([k * 0.05 for k in range(20)])
    assert during
    for answer in during:
        assert answer.sent_s >= stalled[0] + 0.4
        assert answer.latency_s >= stalled[0] + 0.4 - answer.due_s


async def test_a_closed_loop_keeps_as_many_under_way_as_it_has_clients() -> None:
    server = slow_server(seconds=0.02)
    async with serving(server) as client:
        window = await send(client, ClosedLoop(Drawn(MIX, 1, 20), 4))
    assert len(window.served) == 20
    assert server.most_at_once == 4
    assert sorted(request.seed for request in server.requests) == sorted(one.seed for one in Drawn(MIX, 1, 20))
    assert all(answer.due_s == pytest.approx(answer.sent_s, abs=0.001) for answer in window.answers)


async def test_a_closed_loop_ends_sending_after_its_seconds_and_waits_for_what_is_under_way() -> None:
    async with serving(slow_server(seconds=0.2)) as client:
        window = await send(client, ClosedLoop(Drawn(MIX, 1), 3, seconds=0.5))
    assert len(window.served) == len(window.answers) >= 3
    assert all(answer.sent_s < 0.5 for answer in window.answers)
    assert max(answer.ended_s for answer in window.answers) > 0.5


async def test_errors_are_counted_by_code_and_cost_nobody_else_anything() -> None:
    def fails(prompt: str) -> SynerDiffError | None:
        errors: dict[str, SynerDiffError] = {
            "bad": InvalidRequest(FieldViolation("steps", "0")),
            "full": QueueFull("full", 1.0),
        }
        return errors.get(prompt)

    prompts = ("a cat", "bad", "a dog", "full", "full")
    load = OpenLoop(tuple(Arrival(0.0, LoadRequest(prompt, 1)) for prompt in prompts))
    async with serving(slow_server(0.0, fails=fails)) as client:
        window = await send(client, load)
    assert [answer.error for answer in window.answers] == [
        *("", "INVALID_ARGUMENT", ""),
        *("RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"),
    ]
    assert "steps: 0" in window.answers[1].message
    assert len(window.served) == 2


async def test_what_the_server_says_of_a_picture_is_kept_and_the_picture_where_asked_for() -> None:
    async with serving(slow_server(0.0)) as client:
        (answer,) = (await send(client, OpenLoop(bursts(1, MIX, 1)))).answers
        (kept,) = (await send(client, OpenLoop(bursts(1, MIX, 1)), keep_pictures=True)).answers
    assert (answer.images, answer.unet_calls, answer.skipped_calls, answer.pictures) == (1, STEPS, 3, ())
    assert [picture.data for picture in kept.pictures] == [b"picture"]


def window_of(ends: list[float], concurrency: int = 0) -> Window:
    return Window(tuple(Answer(k, 0.0, 0.0, end, images=1) for k, end in enumerate(ends)), 0.0, concurrency)


def closed_loop(clients: int, turns: int, batch: int, seconds: float) -> Window:
    """As a server of batches answers it: of those that wait, the first `batch` end together every `seconds`."""
    waiting, left, now, answers = [0.0] * clients, clients * (turns - 1), 0.0, list[Answer]()
    while waiting:
        now += seconds
        for due_s in waiting[:batch]:
            answers.append(Answer(len(answers), due_s, due_s, now, images=1))
        again = min(left, len(waiting[:batch]))
        waiting, left = waiting[batch:] + [now] * again, left - again
    return Window(tuple(answers), 0.0, clients)


@pytest.mark.parametrize("batch", [1, 4, 6, 8])
def test_throughput_of_a_closed_loop_does_not_depend_on_which_batches_are_cut(batch: int) -> None:
    # Batches of 6 for 8 clients: between the ends of the first 8 and the last 8 it would come to a third too much.
    found = closed_loop(clients=8, turns=6, batch=batch, seconds=batch / 4)
    assert found.images_per_s == pytest.approx(4.0, rel=0.05)


def test_a_slow_beginning_and_end_of_a_closed_loop_do_not_count() -> None:
    steady = [(k / 10, k / 10 + 0.2) for k in range(20)]
    times = [(0.0, 0.15), (0.0, 0.16), *steady, (2.0, 20.0), (2.0, 30.0)]
    answers = tuple(Answer(k, due, due, end, images=1) for k, (due, end) in enumerate(times))
    assert Window(answers, 0.0, 2).images_per_s == pytest.approx(10.0)


def test_throughput_of_a_short_or_open_load_is_over_the_whole_of_it() -> None:
    assert window_of([1.0, 2.0, 4.0], concurrency=2).images_per_s == pytest.approx(0.75)
    assert window_of([1.0] * 8 + [4.0]).images_per_s == pytest.approx(9 / 4)
    assert window_of([]).images_per_s == 0.0


def test_everybody_comes_first_and_last_as_often_as_any_other() -> None:
    names = ("a", "b", "c")
    orders = [order_of_round(names, number) for number in range(6)]
    assert all(sorted(order) == sorted(names) for order in orders)
    assert sorted(order[0] for order in orders) == sorted(names * 2)
    assert sorted(order[-1] for order in orders) == sorted(names * 2)
    after = {pair for order in orders for pair in pairwise(order)}
    assert after == {(a, b) for a in names for b in names if a != b}


async def test_never_two_at_once_and_results_by_round() -> None:
    under_way: list[str] = []
    began: list[tuple[str, int]] = []

    async def run(name: str, number: int) -> str:
        assert under_way == []
        under_way.append(name)
        began.append((name, number))
        await asyncio.sleep(0.001)
        under_way.remove(name)
        return f"{name}{number}"

    assert await in_turns(("a", "b"), 3, run) == [{"a": f"a{k}", "b": f"b{k}"} for k in range(3)]
    assert began == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("b", 2), ("a", 2)]
