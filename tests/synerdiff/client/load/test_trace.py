"""Rows and thresholds as they are read off the scheduler's trace."""

import json

import pytest

from services.scheduler.telemetry.tick_messages import chrome_trace
from synerdiff.client.load.trace import thresholds, unet_rows
from tests.services.scheduler.reports import planned, record, timing


def test_rows_and_thresholds_are_read_off_a_real_trace() -> None:
    records = [
        record("unet", 7, (planned(1, 8), timing(1000, 1030, 8)), (planned(2, 2), timing(1031, 1040, 2))),
        record("vae", 7, (planned(1, 8, 1.0), timing(1000, 1025, 1))),
    ]
    events = json.loads(chrome_trace(records))["traceEvents"]
    times, rows = zip(*unet_rows(events, since_unix_s=0.5), strict=True)
    assert times == pytest.approx((0.5, 0.531))
    assert rows == (8, 2)
    assert set(thresholds(events, since_unix_s=0.0)) == {(1.0, 0.9)}


def test_they_come_in_order_of_time_whichever_worker_told_first() -> None:
    records = [record("unet", tick, (planned(1, 2), timing(at_ms, at_ms + 5, 2))) for tick, at_ms in ((2, 90), (1, 40))]
    events = json.loads(chrome_trace(records))["traceEvents"]
    assert [at_s for at_s, _ in thresholds(events, 0.0)] == pytest.approx([0.04, 0.09])
    assert [at_s for at_s, _ in unet_rows(events, 0.0)] == pytest.approx([0.04, 0.09])
