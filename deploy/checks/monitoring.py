"""Alerts, recording rules and dashboards against the metrics that the code has; PodMonitors against the pods.

Expressions are parsed by a PromQL parser, so a call with the wrong kind of argument is found as well.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import promql_parser

from deploy.checks.manifests import SERVICES, Container, Object, Rule, kinds, matches
from deploy.checks.metric_names import by_series

SEVERITIES = ("critical", "warning", "info")

# Labels that Prometheus adds to every sample it takes from a pod.
TARGET_LABELS = frozenset({"namespace", "pod", "container", "endpoint", "instance", "job"})

# Variables that Grafana replaces in a panel's expressions.
_GRAFANA = {"$__rate_interval": "5m", "$__interval": "1m", "$__range": "1h"}
_VARIABLE = re.compile(r"\$\{?\w+\}?")


# ---- expressions


def wrong_expression(text: str, recorded: Mapping[str, frozenset[str]]) -> Iterator[str]:
    """The errors of a PromQL expression. `recorded`: labels of the series that recording rules make."""
    try:
        expression = promql_parser.parse(text)
    except ValueError as error:
        yield f"no PromQL: {error}: {text}"
        return
    for part in _parts(expression):
        if isinstance(part, promql_parser.VectorSelector):
            yield from _wrong_selector(part, recorded)
        elif isinstance(part, promql_parser.AggregateExpr) and part.modifier:
            selectors = (each for each in _parts(part) if isinstance(each, promql_parser.VectorSelector))
            known = TARGET_LABELS.union(*(_labels(selector, recorded) for selector in selectors))
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


def _parsed(text: str) -> list[Any]:
    """The parts of an expression; none of one that is no PromQL."""
    try:
        return list(_parts(promql_parser.parse(text)))
    except ValueError:
        return []


# ---- rules


def _wrong_rules(rules: Object) -> Iterator[str]:
    """Rules that are named twice, would never fire, or would be silenced by a healthy deployment elsewhere."""
    own = rules.item["metadata"].get("namespace")
    flat = [rule for group in rules.spec["groups"] for rule in group["rules"]]
    recorded = {rule["record"]: _recorded_labels(rule["expr"]) for rule in flat if "record" in rule}
    names = Counter(rule.get("alert") or rule["record"] for rule in flat)
    yield from (f"{name} stands there twice" for name, times in names.items() if times > 1)
    for rule in flat:
        wrong = (*wrong_expression(rule["expr"], recorded), *(_wrong_alert(rule) if "alert" in rule else ()))
        yield from (f"{rule.get('alert') or rule['record']}: {message}" for message in wrong)
        for namespace in re.findall(r'namespace="([^"]*)"', rule["expr"]):
            if namespace != own:
                yield f"{rule.get('alert')}: looks at the namespace {namespace}, not at {own}"


def _recorded_labels(text: str) -> frozenset[str]:
    """The labels that an aggregation keeps; none where they cannot be determined."""
    modifiers = (part.modifier for part in _parsed(text) if isinstance(part, promql_parser.AggregateExpr))
    return frozenset().union(*(modifier.labels for modifier in modifiers if modifier))


def _wrong_alert(rule: Mapping[str, Any]) -> Iterator[str]:
    annotations, labels = rule.get("annotations", {}), rule.get("labels", {})
    if labels.get("severity") not in SEVERITIES:
        yield f"its severity is none of {', '.join(SEVERITIES)}"
    if not annotations.get("summary"):
        yield "has no summary"
    if not re.fullmatch(rf"https?://\S+#{rule['alert'].lower()}", annotations.get("runbook_url", "")):
        yield f"its runbook_url is no address that ends with #{rule['alert'].lower()}"
    selectors = (part for part in _parsed(rule["expr"]) if isinstance(part, promql_parser.VectorSelector))
    known = TARGET_LABELS.union(*(_labels(selector, {}) for selector in selectors))
    for text in annotations.values():
        for label in re.findall(r"\$labels\.(\w+)", text):
            if label not in known:
                yield f"its text names the label {label!r}, which nothing in its expression has"


# ---- dashboards


def _wrong_dashboards(config: Object) -> Iterator[str]:
    for name, text in config.item["data"].items() if config.labels.get("grafana_dashboard") else ():
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


def _unscraped(container: Container) -> Iterator[str]:
    """Services that show metrics that no PodMonitor takes, where there are PodMonitors at all."""
    monitors = [monitor.spec for monitor in container.pod.given.of_kind("PodMonitor")]
    taken = {
        endpoint["port"]
        for monitor in monitors
        if matches(monitor["selector"], container.pod.labels)
        for endpoint in monitor["podMetricsEndpoints"]
    }
    port = container.environment.get("SYNERDIFF_METRICS_PORT", "0")
    names = {item.get("name") for item in container.at("ports", ()) if str(item["containerPort"]) == port}
    if monitors and port != "0" and not names & taken:
        yield f"no PodMonitor takes its metrics, port {port}"


RULES = (
    Rule("monitoring", kinds("PrometheusRule"), _wrong_rules),
    Rule("monitoring", kinds("ConfigMap"), _wrong_dashboards),
    Rule("monitoring", SERVICES, _unscraped),
)
