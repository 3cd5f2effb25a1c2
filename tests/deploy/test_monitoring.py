"""Metrics, their documentation, alerts and dashboard, each against the code; each check against planted mistakes."""

import ast
import json
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.checks.metric_names import by_series, families
from deploy.checks.monitoring import wrong_expression
from deploy.checks.run import findings
from tests.deploy.rendered import rendered

ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "docs/operations.md"
MONITORED = "split with monitoring"
METRICS = {"Counter": "_total", "Gauge": "", "Histogram": ""}

Change = Callable[[list[Any]], object]


def declared() -> Iterator[str]:
    """Every metric that any module of the product makes, whichever way it keeps it."""
    for package in ("synerdiff", "services", "synerdiff_cli"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in METRICS:
                    name = node.args[0] if node.args else None
                    if isinstance(name, ast.Constant) and str(name.value).startswith("synerdiff_"):
                        yield str(name.value).removesuffix("_total") + METRICS[node.func.id]


def test_every_metric_of_the_code_is_known_and_says_what_it_is() -> None:
    names = [family.name for family in families()]
    assert sorted(names) == sorted(declared())
    assert all(len(family.meaning.split()) > 1 for family in families())


def test_the_reference_of_metrics_is_that_of_the_code() -> None:
    reference = runpy.run_path(str(ROOT / "docs/metrics_reference.py"))
    text = "\n".join([reference["INTRODUCTION"], *reference["sections"]()])
    assert text == (ROOT / "docs/metrics.md").read_text(), "run `make docs`"


def test_names_and_labels_are_those_that_prometheus_is_given() -> None:
    """Against the client library's own exposition, of metrics with and without labels."""
    from prometheus_client import generate_latest

    exposed = set(re.findall(r"^(synerdiff_\w+)", generate_latest().decode(), re.MULTILINE))
    assert {"synerdiff_store_backlog", "synerdiff_jobs_ended_total", "synerdiff_job_seconds_bucket"} <= exposed
    own = {name for name in exposed if name.removesuffix("_total").removesuffix("_created") in by_series()}
    assert exposed - own <= set(by_series())
    assert by_series()["synerdiff_job_seconds_bucket"].buckets[-1] == "+Inf"
    assert 'synerdiff_job_seconds_bucket{le="60.0",outcome="finished"}' in generate_latest().decode()


@pytest.mark.skipif(not OPERATIONS.exists(), reason="docs/operations.md is not written yet")
def test_every_alert_has_its_heading_in_the_runbook() -> None:
    headings = re.findall(r"^#+ `?(\w+)`?\s*$", OPERATIONS.read_text(), re.MULTILINE)
    assert {rule["alert"] for rule in rules(rendered(MONITORED)) if "alert" in rule} <= set(headings)


def get(manifests: list[Any], kind: str) -> Any:
    (found,) = (item for item in manifests if item["kind"] == kind and item["metadata"]["name"].startswith("synerdiff"))
    return found


def rules(manifests: list[Any]) -> list[Any]:
    return [rule for group in get(manifests, "PrometheusRule")["spec"]["groups"] for rule in group["rules"]]


def alert(manifests: list[Any], name: str) -> Any:
    return next(rule for rule in rules(manifests) if rule.get("alert") == name)


def replace(manifests: list[Any], name: str, old: str, new: str) -> None:
    rule = alert(manifests, name)
    assert old in rule["expr"]
    rule["expr"] = rule["expr"].replace(old, new)


def dashboard(manifests: list[Any], old: str, new: str) -> None:
    data = get(manifests, "ConfigMap")["data"]
    assert old in data["synerdiff.json"]
    data["synerdiff.json"] = data["synerdiff.json"].replace(old, new)


def panels(manifests: list[Any], change: Callable[[Any], object]) -> None:
    data = get(manifests, "ConfigMap")["data"]
    read = json.loads(data["synerdiff.json"])
    change(read["panels"])
    data["synerdiff.json"] = json.dumps(read)


def annotate(manifests: list[Any], **annotations: str) -> None:
    alert(manifests, "SynerdiffNoLeader")["annotations"].update(annotations)


def monitor(manifests: list[Any]) -> Any:
    return get(manifests, "PodMonitor")["spec"]


AGE, LOSS, BURN, LEADER = ("SynerdiffQueueAge", "SynerdiffWorkerLoss", "SynerdiffSloBurnFast", "SynerdiffNoLeader")
THRESHOLD = r"synerdiff_threshold{namespace=\"$"

MISTAKES: list[tuple[str, Change]] = [
    ("no metric is called 'synerdiff_queue_age'", lambda m: replace(m, AGE, "queue_oldest_age_seconds", "queue_age")),
    ("has no label 'class'", lambda m: replace(m, AGE, "{priority!=", "{class!=")),
    ("has the label 'queue'", lambda m: replace(m, AGE, "model, priority", "queue")),
    ("no PromQL", lambda m: replace(m, AGE, "max by", "maximum by")),
    ("expected type matrix", lambda m: replace(m, LOSS, "[15m]", "")),
    ("no metric is called 'synerdiff:jobs:bad_share_2h'", lambda m: replace(m, BURN, "_1h", "_2h")),
    ("no bucket '50.0'", lambda m: rules(m)[0].update(expr=rules(m)[0]["expr"].replace("60.0", "50.0"))),
    ("has no summary", lambda m: annotate(m, summary="")),
    ("its runbook_url is no address", lambda m: annotate(m, runbook_url="docs/operations.md#synerdiffnoleader")),
    ("namespace other, not at", lambda m: replace(m, "SynerdiffNoScheduler", '="synerdiff"', '="other"')),
    ("its severity is none of", lambda m: alert(m, LEADER)["labels"].update(severity="urgent")),
    ("names the label 'queue'", lambda m: annotate(m, summary="{{ $labels.queue }}")),
    ("stands there twice", lambda m: rules(m)[-1].update(alert=LEADER)),
    ("no metric is called 'synerdiff_leader'", lambda m: dashboard(m, "(synerdiff_leading{", "(synerdiff_leader{")),
    ("no variable is called $name", lambda m: dashboard(m, THRESHOLD + "namespace", THRESHOLD + "name")),
    ("no JSON", lambda m: dashboard(m, '"panels": [', '"panels": [,')),
    ("lie over each other", lambda m: panels(m, lambda p: p[1]["gridPos"].update(x=0))),
    ("two panels have the id 1", lambda m: panels(m, lambda p: p[1].update(id=1))),
    ("metrics, port 9092", lambda m: monitor(m)["selector"]["matchExpressions"][0]["values"].remove("unet-worker")),
    ("metrics, port 9091", lambda m: monitor(m)["podMetricsEndpoints"][0].update(port="metric")),
]


@pytest.mark.parametrize(("message", "plant"), MISTAKES, ids=[message for message, _ in MISTAKES])
def test_a_planted_mistake_is_found(message: str, plant: Change) -> None:
    manifests = rendered(MONITORED)
    plant(manifests)
    assert message in "\n".join(map(str, findings(manifests, "monitoring")))


@pytest.mark.parametrize("name", [MONITORED, "colocated with monitoring"])
def test_nothing_is_wrong_with_the_component(name: str) -> None:
    assert findings(rendered(name), "monitoring") == []


def test_the_query_that_vae_workers_are_scaled_by_is_right() -> None:
    (scaler,) = (
        m
        for m in rendered("overlays/split-keda")
        if m["metadata"]["name"] == "vae-worker" and m["kind"] == "ScaledObject"
    )
    queries = [t["metadata"]["query"] for t in scaler["spec"]["triggers"] if t["type"] == "prometheus"]
    assert len(queries) == 1
    assert list(wrong_expression(queries[0], {})) == []
