"""Alerts, recording rules and dashboards against the metrics that the code has; PodMonitors against the pods.

Expressions are parsed by a PromQL parser, so a call with the wrong kind of argument is found as well.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import promql_parser

from deploy.checks.findings import Finding
from deploy.checks.metric_names import by_series
from deploy.checks.workloads import matches, of_kind, pods, title
from deploy.kustomize import Manifest

CHECK = "monitoring"
SEVERITIES = ("critical", "warning", "info")

# What Prometheus adds to every sample it takes from a pod.
TARGET_LABELS = frozenset({"namespace", "pod", "container", "endpoint", "instance", "job"})

# What Grafana puts in where a panel says so.
_GRAFANA = {"$__rate_interval": "5m", "$__interval": "1m", "$__range": "1h"}
_VARIABLE = re.compile(r"\$\{?\w+\}?")


def check(manifests: Sequence[Manifest]) -> Iterator[Finding]:
    """What would never fire, show nothing, or not be scraped."""
    for rules in of_kind(manifests, "PrometheusRule"):
        for message in (*_wrong_rules(rules), *_other_namespaces(rules)):
            yield Finding(CHECK, title(rules), message)
    for config in of_kind(manifests, "ConfigMap"):
        if (config["metadata"].get("labels") or {}).get("grafana_dashboard"):
            for message in _wrong_dashboards(config["data"]):
                yield Finding(CHECK, title(config), message)
    yield from _unscraped(manifests)


# ---- expressions


def wrong_expression(text: str, recorded: Mapping[str, frozenset[str]]) -> Iterator[str]:
    """What is wrong with a PromQL expression. `recorded`: labels of the series that recording rules make."""
    try:
        expression = promql_parser.parse(text)
    except ValueError as error:
        yield f"no PromQL: {error}: {text}"
        return
    for part in _parts(expression):
        if isinstance(part, promql_parser.VectorSelector):
            yield from _wrong_selector(part, recorded)
        elif isinstance(part, promql_parser.AggregateExpr) and part.modifier:
            known = TARGET_LABELS.union(*(_labels(selector, recorded) for selector in _selectors(part)))
            for label in sorted(set(part.modifier.labels) - known):
                yield f"nothing below has the label {label!r} to aggregate by: {part}"


def _wrong_selector(selector: promql_parser.VectorSelector, recorded: Mapping[str, frozenset[str]]) -> Iterator[str]:
    family, known = by_series().get(selector.name or ""), recorded.get(selector.name or "")
    if family is None and known is None:
        yield f"no metric is called {selector.name!r}"
        return
    for matcher in selector.matchers.matchers:
        if matcher.name not in _labels(selector, recorded) | TARGET_LABELS:
            yield f"{selector.name} has no label {matcher.name!r}"
        elif matcher.name == "le" and family and matcher.value not in family.buckets:
            yield f"{selector.name} has no bucket {matcher.value!r}; it has {', '.join(family.buckets)}"


def _labels(selector: promql_parser.VectorSelector, recorded: Mapping[str, frozenset[str]]) -> frozenset[str]:
    name = selector.name or ""
    family = by_series().get(name)
    return family.labels_of(name) if family else recorded.get(name, frozenset())


def _parts(expression: Any) -> Iterator[Any]:
    """An expression and all that it is made of."""
    yield expression
    if isinstance(expression, promql_parser.MatrixSelector):
        yield expression.vector_selector
    children = [getattr(expression, name, None) for name in ("expr", "param", "lhs", "rhs")]
    for child in (*children, *getattr(expression, "args", ())):
        if child is not None:
            yield from _parts(child)


def _selectors(expression: Any) -> Iterator[promql_parser.VectorSelector]:
    return (part for part in _parts(expression) if isinstance(part, promql_parser.VectorSelector))


# ---- rules


def _wrong_rules(rules: Manifest) -> Iterator[str]:
    flat = [rule for group in rules["spec"]["groups"] for rule in group["rules"]]
    recorded = {rule["record"]: _recorded_labels(rule["expr"]) for rule in flat if "record" in rule}
    names = [rule.get("alert") or rule["record"] for rule in flat]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name} stands there twice"
    for rule, name in zip(flat, names, strict=True):
        for message in wrong_expression(rule["expr"], recorded):
            yield f"{name}: {message}"
        if "alert" in rule:
            yield from (f"{name}: {message}" for message in _wrong_alert(rule))


def _other_namespaces(rules: Manifest) -> Iterator[str]:
    """Alerts that a healthy deployment elsewhere would keep silent."""
    own = rules["metadata"].get("namespace")
    for rule in (rule for group in rules["spec"]["groups"] for rule in group["rules"]):
        for namespace in re.findall(r'namespace="([^"]*)"', rule["expr"]):
            if namespace != own:
                yield f"{rule.get('alert')}: looks at the namespace {namespace}, not at {own}"


def _recorded_labels(text: str) -> frozenset[str]:
    """The labels that an aggregation keeps; none for what cannot be told."""
    try:
        parts = list(_parts(promql_parser.parse(text)))
    except ValueError:
        return frozenset()
    kept = [
        set(part.modifier.labels) for part in parts if isinstance(part, promql_parser.AggregateExpr) and part.modifier
    ]
    return frozenset().union(*kept)


def _wrong_alert(rule: Mapping[str, Any]) -> Iterator[str]:
    annotations, labels = rule.get("annotations", {}), rule.get("labels", {})
    if labels.get("severity") not in SEVERITIES:
        yield f"its severity is none of {', '.join(SEVERITIES)}"
    if not annotations.get("summary"):
        yield "has no summary"
    if not re.fullmatch(rf"https?://\S+#{anchor(rule['alert'])}", annotations.get("runbook_url", "")):
        yield f"its runbook_url is no address that ends with #{anchor(rule['alert'])}"
    known = TARGET_LABELS.union(*(_all_labels(rule["expr"])))
    for text in annotations.values():
        for label in re.findall(r"\$labels\.(\w+)", text):
            if label not in known:
                yield f"its text names the label {label!r}, which nothing in its expression has"


def _all_labels(text: str) -> Iterator[frozenset[str]]:
    try:
        expression = promql_parser.parse(text)
    except ValueError:
        return
    yield from (_labels(selector, {}) for selector in _selectors(expression))


def anchor(alert: str) -> str:
    """The anchor of an alert's heading in the runbook."""
    return alert.lower()


# ---- dashboards


def _wrong_dashboards(files: Mapping[str, str]) -> Iterator[str]:
    for name, text in files.items():
        try:
            dashboard = json.loads(text)
        except ValueError as error:
            yield f"{name}: no JSON: {error}"
            continue
        yield from (f"{name}: {message}" for message in _wrong_dashboard(dashboard))


def _wrong_dashboard(dashboard: Mapping[str, Any]) -> Iterator[str]:
    panels = dashboard["panels"]
    for one, other in combinations(panels, 2):
        if one["id"] == other["id"]:
            yield f"two panels have the id {one['id']}"
        if _overlap(one["gridPos"], other["gridPos"]):
            yield f"{one['title']!r} and {other['title']!r} lie over each other"
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    for panel in panels:
        for target in panel.get("targets", ()):
            for message in _wrong_query(target["expr"], variables):
                yield f"{panel['title']!r}: {message}"


def _wrong_query(text: str, variables: set[str]) -> Iterator[str]:
    for name, value in _GRAFANA.items():
        text = text.replace(name, value)
    for variable in _VARIABLE.findall(text):
        if variable.strip("${}") not in variables:
            yield f"no variable is called {variable}"
    yield from wrong_expression(_VARIABLE.sub("x", text), {})


def _overlap(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    return all(
        one[start] < other[start] + other[size] and other[start] < one[start] + one[size]
        for start, size in (("x", "w"), ("y", "h"))
    )


# ---- scraping


def _unscraped(manifests: Sequence[Manifest]) -> Iterator[Finding]:
    """Services that show metrics that no PodMonitor takes, where there are PodMonitors at all."""
    monitors = of_kind(manifests, "PodMonitor")
    for pod in pods(manifests) if monitors else ():
        taken = {
            endpoint["port"]
            for monitor in monitors
            if matches(monitor["spec"]["selector"], pod.labels)
            for endpoint in monitor["spec"]["podMetricsEndpoints"]
        }
        for container in pod.services:
            port = container.environment.get("SYNERDIFF_METRICS_PORT", "0")
            ports = container.item.get("ports") or ()
            names = {item.get("name") for item in ports if str(item["containerPort"]) == port}
            if port != "0" and not names & taken:
                yield Finding(CHECK, container.title, f"no PodMonitor takes its metrics, port {port}")
