"""What benches send and how they read what came of it: the same requests for the same seed, and sums that are right."""

import itertools
import json
import math
from pathlib import Path

import pytest

from bench import reporting
from bench.ablation import CONFIGURATIONS as ABLATIONS
from bench.ablation import LOADS, summary, table, workload
from bench.burst import CONFIGURATIONS as BURSTS
from bench.prediction import by_kind, windows
from bench.serving import Arrival, ItemRun, Outcome, Served, burst, deployment, item_runs, poisson
from services.scheduler.settings import SchedulerSettings
from services.scheduler.tick_trace import chrome_trace
from tests.services.scheduler.reports import planned, record, timing


def test_the_same_arguments_give_the_same_requests_and_another_seed_others() -> None:
    assert poisson(5.0, 20, seed=1) == poisson(5.0, 20, seed=1)
    assert poisson(5.0, 20, seed=1) != poisson(5.0, 20, seed=2)
    assert burst(16, seed=3) == burst(16, seed=3)
    assert workload(4.0, 10, seed=1) == workload(4.0, 10, seed=1)


def test_arrivals_are_poisson() -> None:
    arrivals = poisson(50.0, 100, seed=4)
    gaps = [b.at_s - a.at_s for a, b in itertools.pairwise(arrivals)]
    assert min(gaps) > 0
    assert arrivals[-1].at_s < 100
    assert len(arrivals) == pytest.approx(5000, rel=0.05)
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert spread == pytest.approx(mean, rel=0.1)


def test_loads_are_shares_of_the_capacity() -> None:
    for load, arrivals in workload(10.0, 100, seed=1).items():
        assert len(arrivals) == pytest.approx(1000 * LOADS[load], rel=0.2)


def test_a_burst_is_of_equal_requests_due_at_once() -> None:
    arrivals = burst(64, seed=1, num_inference_steps=20)
    assert {(a.at_s, a.num_inference_steps, a.guidance_scale, a.sampler) for a in arrivals} == {
        (0.0, 20, 4.0, arrivals[0].sampler)
    }
    assert len({a.seed for a in arrivals}) == 64


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


def served(end_to_end_s: float, decode_s: float, skipped: int = 0) -> Served:
    return Served(Arrival(0.0, "a cat", 1, 10), end_to_end_s, decode_s, skipped)


def test_a_summary_and_its_table() -> None:
    done = tuple(served(k / 10, k / 100, skipped=k % 2) for k in range(1, 101))
    outcome = Outcome(done, (), 20.0, (ItemRun("unet", 1.2, 1.0), ItemRun("vae", 2.5, 2.0)), ())
    numbers = summary(outcome)
    assert (numbers["images_per_s"], numbers["end_to_end_p99_s"], numbers["skipped_share"]) == (5.0, 9.9, 0.05)
    assert (numbers["item_ratio_largest"], numbers["items_over_2x"]) == (2.5, 1)
    row = table({"synerdiff": {"low": numbers}}).splitlines()[2]
    assert row == "| synerdiff | low | 5.00 | 5.05 | 9.90 | 505 | 990 | 5% | 2.50x |"


def test_nothing_served_is_no_number() -> None:
    numbers = summary(Outcome((), ("Unavailable: x",), 1.0, (), ()))
    assert table({"static": {"low": numbers}}).splitlines()[2].count("| - ") == 5


def test_errors_of_prediction_by_kind_and_over_time() -> None:
    runs = [ItemRun("unet", 1.1, 1.0), ItemRun("unet", 0.7, 2.0), ItemRun("vae", 1.0, 12.0)]
    kinds = by_kind(runs)
    assert kinds["all"]["items"] == 3
    assert kinds["unet"]["median_error"] == pytest.approx(0.1)
    assert kinds["unet"]["p90_error"] == pytest.approx(0.3)
    assert [(w["from_s"], w["items"]) for w in windows(runs, 15)] == [(0, 2), (10, 1)]


@pytest.mark.parametrize(("p", "value"), [(50, 5), (99, 10), (90, 9), (0, 1), (100, 10)])
def test_percentiles(p: float, value: int) -> None:
    assert reporting.percentile(range(1, 11), p) == value
    assert math.isnan(reporting.percentile([], p))


def test_a_result_says_when_and_on_what_it_was_measured(tmp_path: Path) -> None:
    saved = json.loads(reporting.save("x", {"a": 1}, tmp_path).read_text())
    assert saved["a"] == 1
    assert saved["machine"]["cores"] >= 1
    assert len(saved["date"]) == 10
