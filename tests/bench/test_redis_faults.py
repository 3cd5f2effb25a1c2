"""What the bench of Redis' faults calls broken: each promise against a planted mistake."""

import dataclasses
from collections.abc import Callable

import pytest

from bench.redis_faults import MOST_LEVELS, Outcome, Sent, show
from bench.scraped import Scrapes

LINES = [{"event": "ended", "job_id": f"job-{number}"} for number in range(3)]


def sent() -> list[Sent]:
    """Before the fault, during it, and after it."""
    return [
        Sent(0, 0, 1.0, "job-0", answered_s=1.1, ended_s=2.0, levels=0),
        Sent(1, 1, 12.0, code="UNAVAILABLE", answered_s=14.0),
        Sent(2, 0, 21.0, code="UNAVAILABLE", answered_s=22.5),
        Sent(3, 1, 22.0, "job-1", answered_s=22.1, ended_s=24.0, levels=MOST_LEVELS),
        Sent(4, 0, 23.0, "job-2", answered_s=23.1, ended_s=25.0, levels=1),
    ]


def outcome() -> Outcome:
    return Outcome("killed", sent(), 10.0, 20.0, set(), restarted=False, lines=LINES)


def test_a_fault_that_was_weathered_is_counted() -> None:
    found = outcome().found(Scrapes({}), 60.0)
    assert found["broken"] == []
    assert "| killed | 3 | 3 | 0 | 2 UNAVAILABLE | not asked | 2.5 | 4.0 | 3/3 |" in show([found])


MISTAKES: list[tuple[str, Callable[[Outcome], Outcome]]] = [
    ("job job-0", lambda o: altered(o, 0, levels=MOST_LEVELS + 1)),
    ("job job-0: INTERNAL", lambda o: altered(o, 0, levels=None, code="INTERNAL")),
    ("job job-0: NOT_FOUND", lambda o: altered(o, 0, levels=None, code="NOT_FOUND")),
    ("request 1: INTERNAL", lambda o: altered(o, 1, code="INTERNAL")),
    ("recovered only after inf s", lambda o: altered(altered(o, 3, levels=None), 4, levels=None)),
    ("recovered only after 11.0 s", lambda o: altered(o, 2, answered_s=31.0)),
    ("told 2 times", lambda o: dataclasses.replace(o, lines=[*LINES, LINES[0]])),
    ("Redis has lost 1 jobs", lambda o: dataclasses.replace(o, lost={"job-0"})),
    ("a process was restarted", lambda o: dataclasses.replace(o, restarted=True)),
]


def altered(found: Outcome, number: int, **changes: object) -> Outcome:
    requests = list(found.sent)
    requests[number] = dataclasses.replace(requests[number], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(found, sent=requests)


@pytest.mark.parametrize(("message", "plant"), MISTAKES, ids=[message for message, _ in MISTAKES])
def test_a_planted_mistake_is_found(message: str, plant: Callable[[Outcome], Outcome]) -> None:
    assert any(message in broken for broken in plant(outcome()).found(Scrapes({}), 60.0)["broken"])


def test_a_flushed_redis_may_lose_jobs_if_their_clients_are_told() -> None:
    flushed = dataclasses.replace(outcome(), name="flushed", lost={"job-0"}, ended_s=10.5)
    told = altered(flushed, 0, levels=None, code="NOT_FOUND").found(Scrapes({}), 60.0)
    assert told["lost, and told so"] == 1
    assert not [broken for broken in told["broken"] if "job" in broken and "alert" not in broken.lower()]
