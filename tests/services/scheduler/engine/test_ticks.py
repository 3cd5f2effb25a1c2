"""The ring of ticks."""

from services.scheduler.engine.ticks import TickLog
from tests.services.scheduler.reports import planned, record, timing


def test_only_the_last_ticks_are_kept() -> None:
    log = TickLog(kept=3)
    for tick in range(10):
        log.add(record("unet", tick, (planned(1, 2), timing(0, 1, 2))))
    assert [r.tick for r in log.records()] == [7, 8, 9]


def test_a_domain_can_be_asked_for() -> None:
    log = TickLog()
    for domain in ("a", "b"):
        log.add(record("unet", 1, (planned(1, 2), timing(0, 1, 2)), domain=domain))
    assert [r.domain for r in log.records("b")] == ["b"]
    assert len(log.records()) == 2


def test_what_came_since_is_given_as_far_as_it_is_kept() -> None:
    log = TickLog(kept=3)
    for tick in range(5):
        log.add(record("unet", tick, (planned(1, 2), timing(0, 1, 2))))
    assert log.added == 5
    assert [r.tick for r in log.since(4)] == [4]
    assert [r.tick for r in log.since(0)] == [2, 3, 4]
    assert log.since(5) == []
