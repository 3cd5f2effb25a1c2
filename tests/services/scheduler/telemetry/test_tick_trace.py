"""The trace made of ticks, as Perfetto reads it."""

import json
from typing import Any

from services.scheduler.engine.ticks import TickRecord
from services.scheduler.telemetry.tick_trace import chrome_trace
from tests.services.scheduler.reports import planned, record, timing


def events(*records: TickRecord) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = json.loads(chrome_trace(records))["traceEvents"]
    return made


def test_a_lane_per_worker_and_an_event_per_item() -> None:
    both = planned(1, 8, 1.5, predicted_ms=30.0, skips=2)
    made = events(
        record("unet", 7, (both, timing(1, 40, 8)), (planned(2, 2), timing(41, 60, 2, waited_ms=0.5))),
        record("vae", 7, (both, timing(2, 31, 2))),
    )
    lanes = [e for e in made if e["ph"] == "X"]
    assert [(e["cat"], e["name"], e["ts"], e["dur"]) for e in lanes] == [
        ("unet", "8 rows, 2 skipping", 1000, 39_000),
        ("wait", "wait", 40_500, 500),
        ("unet", "2 rows", 41_000, 19_000),
        ("vae", "1.5 decodes in 2 chunks", 2000, 29_000),
    ]
    unet, vae = lanes[0]["args"], lanes[3]["args"]
    common = {"tick": 7, "place": 1, "rows": 8, "tasks": 8, "skips": 2, "decodes": 1.5, "chunks": 2}
    assert common.items() <= unet.items() & vae.items()
    assert (unet["predicted_ms"], unet["measured_ms"], unet["ran_ms"], vae["ran_ms"]) == (30, 39, 39, 29)
    assert (unet["threads"], vae["threads"], unet["threshold"]) == (1, 1, 0.9)
    assert {e["args"]["name"] for e in made if e["ph"] == "M" and "name" in e["args"]} == {"d", "unet u", "vae v"}
    assert len({(e["pid"], e["tid"]) for e in lanes}) == 2


def test_an_arrow_joins_the_sides_of_an_item_from_the_earlier_one() -> None:
    both, alone = planned(1, 8, 1.0), planned(2, 8)
    made = events(
        record("unet", 7, (both, timing(5, 40, 8)), (alone, timing(40, 60, 8))),
        record("vae", 7, (both, timing(2, 31, 1))),
    )
    arrows = {e["ph"]: e for e in made if e["ph"] in "sf"}
    lanes = {e["cat"]: (e["pid"], e["tid"]) for e in made if e["ph"] == "X"}
    assert arrows["s"]["id"] == arrows["f"]["id"]
    assert (arrows["s"]["ts"], arrows["s"]["pid"], arrows["s"]["tid"]) == (2000, *lanes["vae"])
    assert (arrows["f"]["ts"], arrows["f"]["pid"], arrows["f"]["tid"]) == (5000, *lanes["unet"])
    assert len([e for e in made if e["ph"] in "sf"]) == 2


def test_counters_of_the_threshold_and_of_what_waits() -> None:
    made = events(record("unet", 7, (planned(1, 2), timing(1, 4, 2)), threshold=0.8))
    counters = {e["name"]: (e["ts"], *e["args"].values()) for e in made if e["ph"] == "C"}
    assert counters == {"threshold": (1000, 0.8), "waiting tasks": (4000, 3), "pending decodes": (4000, 1)}


def test_a_part_that_this_leader_did_not_plan_is_shown_as_it_ran() -> None:
    (item,) = [e for e in events(TickRecord("d", "u", "unet", 3, (timing(1, 2, 6),))) if e["ph"] == "X"]
    assert (item["name"], item["args"]["rows"], "predicted_ms" in item["args"]) == ("6 rows", 6, False)


def test_domains_are_processes() -> None:
    made = events(*(record("unet", 1, (planned(1, 2), timing(0, 1, 2)), domain=d) for d in ("b", "a")))
    names = {e["pid"]: e["args"]["name"] for e in made if e["name"] == "process_name"}
    assert names == {1: "a", 2: "b"}
    assert sorted(e["pid"] for e in made if e["ph"] == "X") == [1, 2]
