"""Scraped metrics as promtool takes them: an alert fires by what a process really shows."""

import re
from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from bench.scraped import Scrapes, fires, metrics_of, rule_groups, samples
from tests.deploy.test_alerts import needs_promtool

CRITICAL = {"severity": "critical"}


def scrapes(up: Sequence[float | None], losses: Sequence[int] = ()) -> Scrapes:
    """Of one scheduler, every 5 s, whose Redis is as told; None: it shows nothing."""
    registry = CollectorRegistry()
    gauge = Gauge("synerdiff_redis_up", "x", registry=registry)
    counter = Counter("synerdiff_redis_losses", "x", registry=registry)
    found = Scrapes({"scheduler-0": 1})
    for index, value in enumerate(up):
        if value is None:
            found.taken.append({})
            continue
        gauge.set(value)
        counter.inc(losses[index] if losses else 0)
        shown = dict(samples(generate_latest(registry).decode(), "scheduler-0"))
        found.taken.append({series: number for series, number in shown.items() if series[0] in found.names})
    return found


def test_what_the_rules_look_at_is_kept_with_its_gaps() -> None:
    found = scrapes([1, None, 0])
    told = {series["series"].partition("{")[0]: series for series in found.input_series()}
    assert set(told) == {"synerdiff_redis_up", "synerdiff_redis_losses_total"}
    assert told["synerdiff_redis_up"]["values"] == "1.0 _ 0.0"
    assert 'namespace="synerdiff",pod="scheduler-0"' in told["synerdiff_redis_up"]["series"]


def test_rules_name_metrics_and_have_no_texts() -> None:
    groups = rule_groups()
    assert {"synerdiff_redis_up", "synerdiff_jobs_ended_total"} <= metrics_of(groups)
    assert not [rule for group in groups for rule in group["rules"] if "annotations" in rule]


@needs_promtool
@pytest.mark.parametrize(("down_s", "said"), [(90, ""), (40, "SynerdiffRedisDown")])
def test_an_alert_that_has_patience_fires_only_past_it(down_s: int, said: str) -> None:
    found = scrapes([1] * 2 + [0] * (down_s // 5))
    text = fires(found, "SynerdiffRedisDown", CRITICAL, silent_s=5, firing_s=10 + down_s - 5)
    assert re.search(said, text) if said else text == ""


@needs_promtool
def test_a_loss_that_was_counted_fires_at_once() -> None:
    found = scrapes([1] * 8, losses=[0, 0, 0, 1, 0, 0, 0, 0])
    assert fires(found, "SynerdiffRedisLostData", CRITICAL, silent_s=10, firing_s=30) == ""
    assert "SynerdiffRedisLostData" in fires(found, "SynerdiffRedisLostData", CRITICAL, silent_s=20, firing_s=30)
