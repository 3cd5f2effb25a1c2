"""The telemetry bench measures what it says: every span of a traced job and of both parts of a tick."""

from collections import Counter

from bench.telemetry_cost import Leadership, Load, measure
from services.scheduler.telemetry.job_traces import TICKS_APART

LOAD = Load(domains=2, tasks=8, steps=20, tick_ms=20.0)


def test_both_parts_of_a_tick_are_traced_with_a_link_for_each_task() -> None:
    leading = Leadership(LOAD)
    leading.spans.clear()
    for part in leading.tick(0, TICKS_APART):
        leading.traces.ticked(part.lane, part.done, part.planned)
    unet, vae = leading.spans
    assert (unet.name, len(unet.links), vae.name, len(vae.links)) == ("unet tick", 4, "vae tick", 1)
    assert vae.parent == unet.context


def test_a_job_makes_all_its_spans() -> None:
    leading = Leadership(LOAD)
    leading.spans.clear()
    leading.whole_job(leading.new_job())
    stages = ("queue", "encode", "denoise", "decode", "store", "deliver")
    assert Counter(span.name for span in leading.spans) == Counter(("accept", "job", *stages))


def test_it_runs_to_its_end() -> None:
    found = measure(LOAD, repeats=2, count=5)
    assert len(found) == 6
    assert all(ms > 0 for ms in found.values())
