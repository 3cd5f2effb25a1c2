"""What benches send and how they read what came of it: the same requests for the same seed, and sums that are right."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import command
from bench.ablation import CONFIGURATIONS as ABLATIONS
from bench.ablation import LOADS, table, workload
from bench.burst import CONFIGURATIONS as BURSTS
from bench.prediction import by_kind, windows
from bench.serving import ItemRun, Outcome, deployment, equal_requests, item_runs
from services.scheduler.settings import SchedulerSettings
from services.scheduler.telemetry.tick_messages import chrome_trace
from synerdiff.client.load.arrivals import bursts
from synerdiff.client.load.sending import Answer, Window
from tests.services.scheduler.reports import planned, record, timing


def test_loads_are_shares_of_the_capacity_and_the_same_for_the_same_seed() -> None:
    assert workload(4.0, 10, seed=1) == workload(4.0, 10, seed=1)
    for load, arrivals in workload(10.0, 100, seed=1).items():
        assert len(arrivals) == pytest.approx(1000 * LOADS[load], rel=0.2)


def test_a_burst_is_of_equal_requests() -> None:
    arrivals = bursts(64, equal_requests(20), seed=1)
    assert len({replace(arrival.request, prompt="", seed=0) for arrival in arrivals}) == 1
    assert len({arrival.request.seed for arrival in arrivals}) == 64


@pytest.mark.parametrize("settings", [*ABLATIONS.values(), *BURSTS.values()])
def test_every_configuration_is_one_that_the_scheduler_takes(settings: dict[str, str]) -> None:
    SchedulerSettings(**settings).policy_spec()  # type: ignore[arg-type]


async def test_a_setting_that_the_scheduler_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="magic: no setting"):
        async with deployment({"magic": "on"}):
            pass


def test_items_are_read_off_the_trace_once_each() -> None:
    both = planned(1, 8, 1.0, predicted_ms=20.0)
    records = [
        record("unet", 7, (both, timing(0, 30, 8)), (planned(2, 2, predicted_ms=10.0), timing(31, 40, 2))),
        record("vae", 7, (both, timing(0, 25, 1))),
        record("unet", 8, (planned(1, 2), timing(50, 60, 2)), in_step=False),
        record("unet", 9, (planned(1, 2, predicted_ms=0.0), timing(60, 70, 2))),
    ]
    runs = item_runs(json.loads(chrome_trace(records))["traceEvents"], began_unix_us=0.0)
    assert [(run.kind, run.ratio) for run in runs] == [("beside", 1.5), ("unet", 0.9)]


def answer(end_to_end_s: float, decode_s: float, skipped: int) -> Answer:
    return Answer(1, 0.0, 0.0, end_to_end_s, images=1, unet_calls=10, skipped_calls=skipped, decode_s=decode_s)


def test_a_summary_and_its_table() -> None:
    done = tuple(answer(k / 10, k / 100, skipped=k % 2) for k in range(1, 101))
    outcome = Outcome(Window(done, 0.0), (ItemRun("unet", 1.2, 1.0), ItemRun("vae", 2.5, 2.0)), ())
    numbers = outcome.summary()
    assert (numbers["images_per_s"], numbers["end_to_end_p99_s"], numbers["skipped_share"]) == (10.0, 9.9, 0.05)
    assert (numbers["item_ratio_largest"], numbers["items_over_2x"]) == (2.5, 1)
    row = table({"synerdiff": {"low": numbers}}).splitlines()[2]
    assert row == "| synerdiff | low | 10.00 | 5.05 | 9.90 | 505 | 990 | 5% | 2.50x |"


def test_nothing_served_is_no_number() -> None:
    failed = Answer(0, 0.0, 0.0, 1.0, error="UNAVAILABLE", message="x")
    numbers = Outcome(Window((failed,), 0.0), (), ()).summary()
    assert numbers["errors"] == ["UNAVAILABLE: x"]
    assert table({"static": {"low": numbers}}).splitlines()[2].count("| - ") == 5


def test_errors_of_prediction_by_kind_and_over_time() -> None:
    runs = [ItemRun("unet", 1.1, 1.0), ItemRun("unet", 0.7, 2.0), ItemRun("vae", 1.0, 12.0)]
    kinds = by_kind(runs)
    assert kinds["all"]["items"] == 3
    assert kinds["unet"]["median_error"] == pytest.approx(0.1)
    assert kinds["unet"]["p90_error"] == pytest.approx(0.3)
    assert [(w["from_s"], w["items"]) for w in windows(runs, 15)] == [(0, 2), (10, 1)]


def test_a_result_says_when_and_on_what_it_was_measured(tmp_path: Path) -> None:
    saved = json.loads(command.save("x", {"a": 1}, tmp_path).read_text())
    assert saved["a"] == 1
    assert saved["machine"]["cores"] >= 1
    assert len(saved["date"]) == 10
