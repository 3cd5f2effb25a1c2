"""A process logs a trouble of its Redis once, each further reason once, and the end; however many calls fail."""

import pytest
from redis.exceptions import ConnectionError, OutOfMemoryError, ReadOnlyError, ResponseError
from structlog.testing import capture_logs
from structlog.typing import EventDict

from synerdiff import redis_trouble
from synerdiff.errors import Unavailable
from synerdiff.redis_trouble import CALM_S, RedisTroubleLog
from tests.waiting import VirtualTime

FULL = OutOfMemoryError("OOM command not allowed when used memory > 'maxmemory'.")
AWAY = ConnectionError("Error 111 connecting to 127.0.0.1:1. Connection refused.")
# redis-py cuts off the word of an error that it has a class for.
READ_ONLY = ReadOnlyError("You can't write against a read only replica.", status_code="READONLY")


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    virtual = VirtualTime()
    monkeypatch.setattr(redis_trouble, "time", virtual)
    return virtual


def told(lines: list[EventDict]) -> list[tuple[str, str]]:
    return [(line["event"], line.get("reason", "").partition(":")[0]) for line in lines]


def test_a_thousand_failed_calls_of_one_reason_are_two_lines(time: VirtualTime) -> None:
    trouble_log = RedisTroubleLog()
    with capture_logs() as lines:
        for _ in range(1000):
            time.sleep(0.1)
            assert trouble_log.failed(FULL)
            trouble_log.wrote()  # another call got through: that is no end of it
        time.sleep(CALM_S + 0.1)
        trouble_log.wrote()
        trouble_log.wrote()
    assert told(lines) == [("redis is in trouble", "Redis is full"), ("redis is well again", "")]
    assert (lines[-1]["failed_calls"], lines[-1]["lasted_s"]) == (1000, pytest.approx(99.9))


def test_each_further_reason_is_told_once(time: VirtualTime) -> None:
    trouble_log = RedisTroubleLog()
    with capture_logs() as lines:
        for error in (FULL, AWAY, FULL, Unavailable("Redis is away: by another name"), AWAY, READ_ONLY, FULL):
            assert trouble_log.failed(error)
    assert told(lines) == [
        ("redis is in trouble", "Redis is full"),
        ("redis is in further trouble", "Redis is away"),
        ("redis is in further trouble", "Redis is read-only"),
    ]


def test_reads_that_a_full_redis_answers_and_calm_alone_end_nothing(time: VirtualTime) -> None:
    trouble_log = RedisTroubleLog()
    trouble_log.failed(FULL)
    with capture_logs() as lines:
        time.sleep(1000)
        trouble_log.failed(FULL)
        trouble_log.wrote()
    assert lines == []


def test_a_mistake_of_the_code_is_no_trouble_of_redis() -> None:
    with capture_logs() as lines:
        assert not RedisTroubleLog().failed(ResponseError("WRONGTYPE Operation against a key"))
    assert lines == []
