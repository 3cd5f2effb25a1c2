"""The ring of ticks and the trace made of it."""

import json

from services.scheduler.ticks import TickLog
from synerdiff.plans import ItemTiming, UnetTickDone, VaeTickDone


def test_a_trace_has_a_lane_per_worker_and_an_event_per_item() -> None:
    log = TickLog()
    log.add("gpu-0", "u", "unet", UnetTickDone(7, (ItemTiming(1_000, 5_000, 8), ItemTiming(5_000, 6_000, 2)), (), ()))
    log.add("gpu-0", "v", "vae", VaeTickDone(7, (ItemTiming(2_000, 4_000, 3),), (), ("t/0",)))
    log.add("gpu-1", "w", "unet", UnetTickDone(1, (ItemTiming(0, 1_000, 1),), (), ()))
    events = json.loads(log.trace("gpu-0"))["traceEvents"]
    ran = [event for event in events if event["ph"] == "X"]
    assert [(event["name"], event["ts"], event["dur"]) for event in ran] == [
        ("tick 7: 8 rows", 1.0, 4.0),
        ("tick 7: 2 rows", 5.0, 1.0),
        ("tick 7: 3 images", 2.0, 2.0),
    ]
    names = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {"gpu-0", "unet u", "vae v"}
    assert len({event["tid"] for event in ran}) == 2


def test_only_the_last_ticks_are_kept() -> None:
    log = TickLog(kept=3)
    for tick in range(10):
        log.add("d", "u", "unet", UnetTickDone(tick, (ItemTiming(tick, tick + 1, 1),), (), ()))
    ticks = [event["args"]["tick"] for event in json.loads(log.trace(""))["traceEvents"] if event["ph"] == "X"]
    assert ticks == [7, 8, 9]
