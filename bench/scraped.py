"""Scraped metrics, and whether the project's own alerts fire by them."""

import asyncio
import math
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

RULES = Path(__file__).parents[1] / "deploy/k8s/components/monitoring/rules.yaml"
NAMESPACE = "synerdiff"

_METRIC = re.compile(r"\bsynerdiff_\w+")

Series = tuple[str, tuple[tuple[str, str], ...]]


def rule_groups() -> list[dict[str, Any]]:
    """The project's own rules. The texts of alerts are left out: they are for people."""
    groups: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["spec"]["groups"]
    for group in groups:
        for rule in group["rules"]:
            rule.pop("annotations", None)
    return groups


def metrics_of(groups: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The names of all samples that rules look at."""
    return frozenset(name for group in groups for rule in group["rules"] for name in _METRIC.findall(rule["expr"]))


@dataclass
class Scrapes:
    """The metrics of the processes at `ports`, by pod, every `every_s` seconds from the start of `run`."""

    ports: Mapping[str, int]
    every_s: float = 5.0
    names: frozenset[str] = field(default_factory=lambda: metrics_of(rule_groups()))
    taken: list[dict[Series, float]] = field(default_factory=list)

    async def run(self) -> None:
        """Scrape until cancelled."""
        began_s = time.monotonic()
        while True:
            found: dict[Series, float] = {}
            texts = await asyncio.gather(*(asyncio.to_thread(_shown, port) for port in self.ports.values()))
            for pod, text in zip(self.ports, texts, strict=True):
                found |= {series: value for series, value in samples(text, pod) if series[0] in self.names}
            self.taken.append(found)
            await asyncio.sleep(max(0.0, began_s + len(self.taken) * self.every_s - time.monotonic()))

    def input_series(self) -> list[dict[str, str]]:
        """One series for each that was ever shown, with a gap where it was not."""
        every = sorted({series for found in self.taken for series in found})
        return [
            {"series": _written(series), "values": " ".join(_value(found.get(series)) for found in self.taken)}
            for series in every
        ]


def samples(text: str, pod: str) -> Iterator[tuple[Series, float]]:
    """The samples of an exposition as Prometheus stores them."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels | {"namespace": NAMESPACE, "pod": pod}
            yield (sample.name, tuple(sorted(labels.items()))), sample.value


def fires(scrapes: Scrapes, alert: str, labels: Mapping[str, str], *, silent_s: float, firing_s: float) -> str:
    """Empty where an alert is silent at one time (s from the first scrape) and fires at the other, else the errors.

    Raises FileNotFoundError without promtool.
    """
    promtool = shutil.which("promtool")
    if promtool is None:
        raise FileNotFoundError("no promtool: Debian's package prometheus has it")
    every_s = round(scrapes.every_s)

    def told(at_s: float, expected: list[dict[str, Any]]) -> dict[str, Any]:
        at_s = math.floor(at_s / every_s) * every_s
        return {"eval_time": f"{at_s}s", "alertname": alert, "exp_alerts": expected}

    firing = {"exp_labels": {"namespace": NAMESPACE, **labels}}
    case = {
        "interval": f"{every_s}s",
        "input_series": scrapes.input_series(),
        "alert_rule_test": [told(silent_s, []), told(firing_s, [firing])],
    }
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": f"{every_s}s", "tests": [case]}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "rules.yaml").write_text(yaml.safe_dump({"groups": rule_groups()}))
        Path(folder, "tests.yaml").write_text(yaml.safe_dump(tests, width=1 << 20))
        command = [promtool, "test", "rules", "tests.yaml"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def _shown(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=3) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return ""


def _written(series: Series) -> str:
    name, labels = series
    pairs = ",".join(f'{label}="{value}"' for label, value in labels)
    return f"{name}{{{pairs}}}"


def _value(value: float | None) -> str:
    return "_" if value is None else repr(value).replace("inf", "Inf").replace("nan", "NaN")
